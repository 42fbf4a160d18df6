"""Answers that come late (partial rollout, overlap) and engines that die: exactly what the plain order would give."""

import contextlib
import time

import pytest
import torch

from lightrft.algorithms.requirements import build_for
from lightrft.build.rl import build_run
from lightrft.config import Config, layers
from lightrft.engines.base import EngineDiedError, EngineError
from lightrft.engines.native import native_engine
from lightrft.trainer.rl import RLTrainer
from lightrft.trainer.supply import Ahead
from lightrft.utils.imports import resolve
from tests.e2e.runs import PLAIN

SMALL = [
    "tiny",
    *PLAIN,
    "--evaluate.before-and-after",
    "false",
    "--steps",
    "6",
    "--checkpoint.every-steps",
    "0",
]
UNEVEN = [
    "--rollout.stop",
    *"abcdefghijklmnopqrstuvwxyz",
    "--rollout.max-tokens",
    "24",
    "--rollout.group-size",
    "2",
]
"""Some answers end early, some late."""


@contextlib.contextmanager
def run_of(folder, *flags):
    config = layers.load([*SMALL, *flags], Config)
    with contextlib.ExitStack() as stack:
        yield build_run(config, folder, stack, started=time.perf_counter())


@contextlib.contextmanager
def trainer_of(folder, *flags):
    with run_of(folder, *flags) as run:
        yield run.trainer


def said(group):
    return [(t.token_ids, t.behavior, t.finish, t.answer, t.reward) for t in group]


def drawn(trainer, steps):
    """Number of a group -> its answers, over so many steps of a policy that does not change."""
    found = {}
    for step in range(1, steps + 1):
        groups, _ = trainer.collect(step)
        trainer.score([t for group in groups for t in group])
        trainer.buffer.mark_stale()
        for group in groups:
            assert group[0].group not in found, "a group is learned from once"
            found[group[0].group] = said(group)
    return found


def test_answers_that_are_cut_and_go_on_are_those_of_the_plain_order(tmp_path):
    with trainer_of(tmp_path / "a", *UNEVEN) as plain:
        whole = drawn(plain, 6)
    with trainer_of(tmp_path / "b", *UNEVEN, "--rollout.max-tokens-per-step", "5") as partial:
        found = drawn(partial, 6)
        waiting = partial.buffer.unfinished
    assert len(waiting) > 2, "some of the last ones are not at their end"
    assert len(found) == 24 - len(waiting)
    for number, group in found.items():
        for (tokens, behavior, *rest), (right, logprobs, *same) in zip(group, whole[number], strict=True):
            assert (tokens, rest) == (right, same)
            assert behavior == pytest.approx(logprobs, abs=1e-5), "read at once or token by token: rounding"
    for group in waiting:
        for t, (tokens, *_) in zip(group, whole[group[0].group], strict=True):
            assert t.token_ids == tokens[: len(t)]


def test_tokens_of_older_weights_keep_the_logprobs_they_had_and_the_others_have_the_trainers(tmp_path):
    seen = []

    class Looking(RLTrainer):
        def update(self, step, trajectories):
            seen.extend((t, t.columns["old"].clone(), self.fresh(t)) for t in trajectories if t.stale)
            return super().update(step, trajectories)

        def fresh(self, t):
            """Its log-probs under the present weights."""
            column = t.columns.pop("old")
            stale, t.stale = t.stale, 0
            self.scorer.fill_old([t])
            present, t.columns["old"], t.stale = t.columns["old"], column, stale
            return present

    flags = [*UNEVEN, "--rollout.max-tokens-per-step", "5", "--optimizer.learning-rate", "0.01"]
    with trainer_of(tmp_path, *flags) as trainer:
        trainer.__class__ = Looking
        for step in range(1, 7):
            trainer.train_step(step)
    assert sum(t.stale < len(t) for t, *_ in seen) > 5
    for t, old, present in seen:
        behavior = torch.tensor(t.behavior)
        assert 0 < t.stale <= len(t), "a sibling may have gone on alone"
        assert torch.equal(old[: t.stale], behavior[: t.stale])
        assert (old[: t.stale] - present[: t.stale]).abs().max() > 1e-3, "the weights have changed since"
        torch.testing.assert_close(old[t.stale :], present[t.stale :])
        torch.testing.assert_close(old[t.stale :], behavior[t.stale :], atol=1e-4, rtol=0)


def weights_after(trainer, steps):
    for step in range(1, steps + 1):
        trainer.train_step(step)
    return {name: p.detach().clone() for name, p in trainer.actor.weights()}


OVERLAP = [
    "--rollout.overlap-rewards",
    "true",
    "--rewards.workers",
    "1",
    "--optimizer.learning-rate",
    "0.01",
]


def test_overlap_gives_bit_for_bit_what_the_same_order_gives_without_threads(tmp_path):
    class OneAfterTheOther(Ahead):
        """Step k + 1 is drawn after step k and before its update; nothing happens at the same time."""

        def judged_meanwhile(self, groups, count):
            self.buffer.prefetched = self.source.ask(self.buffer.asked, 1, count)
            return self.source.judged(groups)

    with trainer_of(tmp_path / "a", *OVERLAP) as trainer:
        overlapped = weights_after(trainer, 6)
    with trainer_of(tmp_path / "b", *OVERLAP) as trainer:
        trainer.collector.supply.__class__ = OneAfterTheOther
        in_order = weights_after(trainer, 6)
    assert all(torch.equal(overlapped[name], in_order[name]) for name in in_order)
    with trainer_of(tmp_path / "c", *OVERLAP, "--rollout.overlap-rewards", "false") as trainer:
        plain = weights_after(trainer, 6)
    assert not all(torch.equal(overlapped[name], plain[name]) for name in plain), "answers are a step older"


def test_overlap_draws_what_the_plain_order_draws_from_the_same_weights(tmp_path):
    with trainer_of(tmp_path / "a") as plain:
        whole = drawn(plain, 6)
    with trainer_of(
        tmp_path / "b", "--rollout.overlap-rewards", "true", "--rewards.workers", "1"
    ) as overlapping:
        assert drawn(overlapping, 6) == whole
        assert overlapping.buffer.prefetched == []


def test_answers_drawn_ahead_are_one_update_old_and_say_so(tmp_path):
    with trainer_of(tmp_path, *OVERLAP) as trainer:
        for step in range(1, 5):
            groups, metrics = trainer.collect(step)
            versions = {t.weight_version for group in groups for t in group}
            assert versions == {max(0, step - 2)}
            assert metrics["rollout/oldest_weight_version"] == max(0, step - 2)
            assert metrics["rollout/off_policy_fraction"] == (0.0 if step == 1 else 1.0)
            trainer.score([t for group in groups for t in group])
            trainer.update(step, [t for group in groups for t in group])
            trainer.buffer.mark_stale()


class Mortal:
    """The native engine, which dies at some calls and may be started again."""

    deaths: tuple[int, ...] = ()

    def __init__(self, module, processor, config):
        self.engine = native_engine(module, processor, config)
        self.calls = self.restarts = self.loads = 0

    @property
    def weight_version(self):
        return self.engine.weight_version

    @weight_version.setter
    def weight_version(self, version):
        self.engine.weight_version = version

    def generate(self, prompts, sampling, progress=None):
        self.calls += 1
        if self.calls in self.deaths:
            self.engine.generate(prompts[:1], sampling)  # it dies on the way
            raise EngineDiedError("the card has fallen off the bus", self.restart)
        return self.engine.generate(prompts, sampling, progress)

    def restart(self):
        self.restarts += 1

    def load_weights(self, weights):
        self.loads += 1
        self.engine.load_weights(weights)

    def parts(self):
        return self.engine.parts()


def make_mortal(module, processor, config):
    return Mortal(module, processor, config)


MORTAL = ["--rollout.engine", f"{__file__}:make_mortal", "--optimizer.learning-rate", "0.01"]


def test_an_engine_that_dies_is_started_again_with_the_present_weights_and_nothing_changes(tmp_path):
    with trainer_of(tmp_path / "a", *MORTAL) as trainer:
        healthy = weights_after(trainer, 4)
        loads = trainer.sampler.engine.loads
    with trainer_of(tmp_path / "b", *MORTAL) as trainer:
        trainer.sampler.engine.deaths = (2, 4, 5)
        mended = weights_after(trainer, 4)
        assert trainer.sampler.engine.restarts == 3
        assert trainer.sampler.engine.loads == loads + 3, "each restart is followed by a sync"
    assert all(torch.equal(healthy[name], mended[name]) for name in healthy)


def test_an_engine_that_goes_on_dying_stops_the_run_with_a_checkpoint(tmp_path):
    with run_of(tmp_path, *MORTAL, "--rollout.max-engine-restarts", "1") as run:
        run.trainer.sampler.engine.deaths = (3, 4)
        with pytest.raises(
            EngineError, match=r"died 2 times in one rollout \(rollout.max_engine_restarts=1\).*fallen off"
        ):
            run.train()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("step")] == [
        "step-000002"
    ]


class Silent(Mortal):
    """Forgets to say log-probs."""

    def generate(self, prompts, sampling, progress=None):
        found = super().generate(prompts, sampling, progress)
        for answers in found:
            for answer in answers:
                answer.logprobs.clear()
        return found


def make_silent(module, processor, config):
    return Silent(module, processor, config)


def test_an_engine_without_logprobs_is_told_so_at_its_first_answers(tmp_path):
    with (
        trainer_of(tmp_path, "--rollout.engine", f"{__file__}:make_silent") as trainer,
        pytest.raises(RuntimeError, match=r"Silent gave 0 log-probs for \d+ tokens.*check_engine"),
    ):
        trainer.train_step(1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rollout.max-tokens-per-step", "8"], "rollout.max_tokens_per_step=8 has no effect with rollout.max_tokens=8"),
        (["--rollout.overlap-rewards", "true", "--rewards.workers", "0"], "rollout.overlap_rewards with rewards.workers=0"),
        (
            ["--rollout.max-tokens-per-step", "2", "--algorithm.advantage", "greedy_baseline"],
            "rollout.max_tokens_per_step with algorithm.advantage=greedy_baseline",
        ),
        (
            [*("--rollout.engine", "vllm", "--rollout.max-tokens-per-step", "2", "--rollout.stop", "x")],
            "a stop text that lies across two steps",
        ),
        (
            ["--rollout.overlap-rewards", "true", "--rewards.workers", "1", "--algorithm.loss", "policy_gradient"],
            "rollout.overlap_rewards learns from responses of earlier weights",
        ),
        (["--rollout.server.retries", "3"], "rollout.server.retries=3 has no effect with rollout.engine=native"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(flags, told, capsys):
    """By the settings themselves, or by what the chosen functions say of them; both before weights load."""
    with pytest.raises((SystemExit, ValueError)) as refusal:
        build_for(layers.load([*SMALL, *flags], Config), resolve)
    shown = " ".join(f"{refusal.value} {capsys.readouterr().err}".replace("│", " ").split())
    assert told in shown
