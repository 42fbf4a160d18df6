"""Sampling beside learning (rollout.max_staleness): exact, never older than one step, resumed, and with engines that die."""

import contextlib
import shutil
import signal
import time

import pytest
import torch

from lightrft.algorithms.requirements import build_for
from lightrft.build.rl import build_run
from lightrft.build.waiting import check_sampled_at
from lightrft.config import Config, layers
from lightrft.engines.base import EngineError
from lightrft.engines.beside import check_beside
from lightrft.runs.live import timeline
from lightrft.trainer.asynchronous import Beside
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Stopped
from tests.e2e.test_late_answers import SMALL, Mortal, drawn, run_of, trainer_of, weights_after
from tests.unit.engines.stand_in import TroubleError, healthy, standing_in

BESIDE = ["--rollout.max-staleness", "1"]
LEARNING = ["--optimizer.learning-rate", "0.01"]
OLDER = [*BESIDE, *LEARNING]


class OneAfterTheOther(Beside):
    """Step k + 1 is drawn when it is asked for, and nothing happens at the same time."""

    def begin(self, step, count):
        super().begin(step, count)
        if self.buffer.flight is not None:
            self.buffer.flight.wait()


def same(these, those):
    return all(torch.equal(these[name], those[name]) for name in those)


def weights_of(run):
    return {name: p.detach().clone() for name, p in run.trainer.actor.weights()}


def test_it_gives_bit_for_bit_what_the_same_order_gives_without_threads(tmp_path):
    with trainer_of(tmp_path / "a", *OLDER) as trainer:
        beside = weights_after(trainer, 4)
    with trainer_of(tmp_path / "b", *OLDER) as trainer:
        trainer.collector.supply.__class__ = OneAfterTheOther
        assert same(beside, weights_after(trainer, 4))
    with trainer_of(tmp_path / "c", *LEARNING) as trainer:
        assert not same(beside, weights_after(trainer, 4)), "responses are a step older"


@pytest.mark.parametrize("more", [[], ["--algorithm.group-filter", "mixed_outcomes"]], ids=["all", "dynamic"])
def test_weights_that_do_not_change_give_what_the_plain_order_gives(tmp_path, more):
    """No staleness, no difference: the same prompts, tokens, log-probs and rewards, each group once."""
    with trainer_of(tmp_path / "a", *more) as plain:
        whole = drawn(plain, 4)
    with trainer_of(tmp_path / "b", *more, *BESIDE, "--steps", "4") as beside:
        found = drawn(beside, 4)
        assert beside.buffer.flight is None, "no step needs it"
    assert found == whole


def test_responses_are_one_update_old_and_keep_the_logprobs_of_the_weights_that_sampled(tmp_path):
    """What is stale and would be learned from as new has the present weights' log-probs instead, which differ."""
    with trainer_of(tmp_path, *OLDER) as trainer:
        for step in range(1, 5):
            trainer.sampler.settle()
            trainer.push_weights()
            groups, metrics = trainer.collect(step)
            answers = [t for group in groups for t in group]
            assert {t.weight_version for t in answers} == {max(0, step - 2)}
            assert metrics["rollout/staleness"] == (step > 1)
            assert metrics["rollout/off_policy_fraction"] == (step > 1)
            trainer.score(answers)
            for t in answers if step > 1 else ():
                old, stale = t.columns.pop("old"), t.stale
                assert stale == len(t)
                assert torch.equal(old, torch.tensor(t.behavior))
                t.stale = 0
                trainer.scorer.fill_old([t])
                assert (t.columns["old"] - old).abs().max() > 1e-3
                t.columns["old"], t.stale = old, stale
            trainer.update(step, answers)
            trainer.buffer.mark_stale()


def test_a_resume_goes_on_to_the_same_end_with_what_was_in_flight(tmp_path):
    """From a checkpoint on the way, and after a stop in the middle of a step, which leaves a later flight in the air."""
    flags = [*OLDER, "--steps", "4", "--checkpoint.every-steps", "2", "--checkpoint.keep-last", "9"]
    with run_of(tmp_path / "whole", *flags) as run:
        run.train()
        whole = weights_of(run)
    (tmp_path / "again/checkpoints").mkdir(parents=True)
    name = "checkpoints/step-000002"
    shutil.copytree(tmp_path / "whole" / name, tmp_path / "again" / name)
    with resumed(tmp_path / "again", *flags) as run:
        assert len(run.trainer.buffer.prefetched) == run.trainer.collector.share
        supply, interrupt = run.trainer.collector.supply, run.interrupt

        def begin(step, count):
            Beside.begin(supply, step, count)
            interrupt._number = signal.SIGTERM

        supply.begin = begin
        with pytest.raises(Stopped):
            run.train()
        assert run.done == 2
        assert run.trainer.buffer.flight is not None
    with resumed(tmp_path / "again", *flags) as run:
        run.train()
        assert same(weights_of(run), whole)


@pytest.mark.parametrize("keeps", [BESIDE, ["--replay.groups-per-step", "2"]], ids=["beside", "replay"])
def test_another_temperature_is_refused_while_responses_of_the_old_one_wait(tmp_path, keeps):
    """Their log-probs at sampling are of the temperature they were sampled at, and would be compared with those of another."""
    flags = [*keeps, "--steps", "2", "--checkpoint.every-steps", "1", "--checkpoint.keep-last", "2"]
    with run_of(tmp_path, *flags) as run:
        run.train()
    shutil.rmtree(tmp_path / "checkpoints/step-000002")  # so that step 2 is in flight
    told = (
        "rollout.temperature=0.7: the checkpoint holds responses that were sampled with rollout.temperature=1"
    )
    with pytest.raises(ValueError, match=told), resumed(tmp_path, *flags, "--rollout.temperature", "0.7"):
        pass
    with resumed(tmp_path, *flags) as run:
        assert run.done == 1


SAMPLED_BEFORE = ["--replay.groups-per-step", "2", "--checkpoint.every-steps", "1"]


def test_another_temperature_is_refused_only_where_old_responses_would_be_used(tmp_path, caplog):
    with run_of(tmp_path, *SAMPLED_BEFORE, "--steps", "1") as run:
        run.train()
    cooler = [*SAMPLED_BEFORE, "--steps", "2", "--rollout.temperature", "0.7"]
    with (
        pytest.raises(ValueError, match=r"or replay.groups_per_step=0, or start"),
        resumed(tmp_path, *cooler),
    ):
        pass
    with resumed(tmp_path, *cooler, "--replay.groups-per-step", "0") as run:
        assert run.trainer.buffer.replayable == [], "or a later resume might draw them again"
    assert "of earlier steps are dropped: replay.groups_per_step=0" in caplog.text


@pytest.mark.parametrize(("born", "used"), [([1], False), ([1, 2], True)])
def test_groups_too_old_to_be_drawn_again_refuse_no_temperature(born, used):
    """After step 2, in step 3: those of step 1 are two steps old."""
    flags = ["--replay.groups-per-step", "2", "--replay.max-age", "1", "--rollout.temperature", "0.7"]
    packed = {"counts": {}, "born": born, "sampled_at": {"temperature": 1.0}}
    state = {"done": 2, "ranks": {"buffer": [packed]}}
    with pytest.raises(ValueError, match="temperature=0.7") if used else contextlib.nullcontext():
        check_sampled_at(layers.load([*SMALL, *flags], Config), state)


def test_what_was_sampled_from_a_part_is_not_weighed_unasked(tmp_path, caplog):
    """The other way round, a correction that is lost is warned of. `native` under another name is another program."""
    mine = ["--rollout.engine", "lightrft.engines.native:native_engine"]
    part = ["--rollout.top-p", "0.9"]
    with run_of(tmp_path, *SAMPLED_BEFORE, *mine, *part, "--steps", "1") as run:
        run.train()
    told = "algorithm.mismatch_correction=auto: the checkpoint holds responses that were sampled with top_k"
    flags = [*SAMPLED_BEFORE, "--steps", "2"]
    with pytest.raises(ValueError, match=told), resumed(tmp_path, *flags, *mine):
        pass
    for allowed in ([], [*mine, "--algorithm.mismatch-correction", "none"]):
        with resumed(tmp_path, *flags, *allowed):
            pass
    assert "goes on correcting" not in caplog.text
    with resumed(tmp_path, *flags, *mine, "--replay.groups-per-step", "0"):
        pass
    shutil.rmtree(tmp_path / "checkpoints")
    with run_of(tmp_path, *SAMPLED_BEFORE, *mine, "--steps", "1") as run:
        run.train()
    for changed in ([], [*mine, *part]):
        caplog.clear()
        with resumed(tmp_path, *flags, *changed):
            assert "algorithm.mismatch_correction=truncate goes on correcting" in caplog.text


@contextlib.contextmanager
def resumed(folder, *flags):
    config = layers.load([*SMALL, *flags], Config)
    with contextlib.ExitStack() as stack:
        yield build_run(config, folder, stack, started=time.perf_counter(), resume=True)


class MortalBeside(Mortal):
    """Of its own weights, so that it may sample beside the trainer."""

    samples_beside = True


MORTAL = ["--rollout.engine", f"{__file__}:MortalBeside", *OLDER]


def test_an_engine_that_dies_beside_a_step_is_asked_again_with_the_present_weights(tmp_path, caplog):
    with trainer_of(tmp_path / "a", *MORTAL) as trainer:
        healthy_run = asked(trainer, 4)
    with trainer_of(tmp_path / "b", *MORTAL) as trainer:
        engine = trainer.sampler.engine
        engine.deaths = (3,)  # the first two calls are steps 1 and 2
        mended = asked(trainer, 4)
        assert engine.restarts == 1
    assert [prompts for prompts, _ in mended] == [prompts for prompts, _ in healthy_run], "none is lost"
    assert [versions for _, versions in healthy_run] == [{0}, {0}, {1}, {2}]
    assert [versions for _, versions in mended] == [{0}, {0}, {2}, {2}], "again: with those of now"
    assert "the engine died beside the step before and is started again: the card has fallen" in caplog.text


def asked(trainer, steps):
    """Of each step the groups with their prompts, and which weights sampled them."""
    found = []
    for step in range(1, steps + 1):
        _, answers = trainer.train_step(step)
        prompts = sorted({(t.group, t.prompt.id) for t in answers})
        found.append((prompts, {t.weight_version for t in answers}))
    return found


def test_prompts_whose_engine_died_for_good_are_in_the_checkpoint_and_asked_again(tmp_path):
    with trainer_of(tmp_path / "a", *MORTAL) as trainer:
        expected = asked(trainer, 4)
    with run_of(tmp_path / "b", *MORTAL) as run:
        engine = run.trainer.sampler.engine
        engine.deaths = (3,)

        def restart():
            raise EngineError("no other card is there")

        engine.restart = restart
        with pytest.raises(EngineError, match="no other card"):
            run.train()
        assert run.done == 2
    with resumed(tmp_path / "b", *MORTAL) as run:
        assert len(run.trainer.buffer.unanswered) == run.trainer.collector.share
        _, answers = run.trainer.train_step(3)
        assert sorted({(t.group, t.prompt.id) for t in answers}) == expected[2][0]
        assert {t.weight_version for t in answers} == {2}
        assert all(not t.stale and len(t) for t in answers)
        assert run.trainer.buffer.unanswered == []
    with resumed(tmp_path / "b", *MORTAL, "--rollout.max-staleness", "0") as run:
        _, answers = run.trainer.train_step(3)
        assert sorted({(t.group, t.prompt.id) for t in answers}) == expected[2][0], "in the plain order, too"


def test_servers_sample_while_the_trainer_learns_and_the_timeline_shows_it(tmp_path):
    """The servers need longer for a rollout than the trainer for a step; one refuses for a while in the middle of a step."""
    trouble = {"left": 0}

    def busy(path, body):
        if path == "/v1/completions":
            time.sleep(0.05)
            if trouble["left"]:
                trouble["left"] -= 1
                raise TroubleError(500)

    with standing_in(busy, healthy) as servers:
        urls = ["--rollout.server.urls", *(server.url for server in servers)]
        flags = ["--rollout.engine", "vllm_server", *urls, "--rollout.server.retries", "0", *OLDER]
        with run_of(tmp_path, *flags, "--steps", "4") as run:
            update = run.trainer.learner.update

            def unlucky(step, answers, **given):
                trouble["left"] = int(step == 2)
                time.sleep(0.05)
                return update(step, answers, **given)

            run.trainer.learner.update = unlucky
            run.train()
            assert run.done == 4
    rows = timeline(tmp_path, steps=9)
    beside = [(row["step"], row["start"], row["start"] + row["seconds"]) for row in rows if row.get("beside")]
    learning = {
        row["step"]: (row["start"], row["start"] + row["seconds"]) for row in rows if row["phase"] == "train"
    }
    assert [step for step, *_ in beside] == [2, 3, 4]
    for step, start, end in beside:
        begins, ends = learning[step - 1]
        assert start < ends, "asked for before the step before has learned"
        assert step == 3 or end > begins, "and still under way, but where the server failed at once"
    assert {row["step"] for row in rows if row["phase"] == "wait"} == {2, 3, 4}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rollout.engine", "vllm"], "rollout.max_staleness=1 with rollout.engine=vllm: that engine has its memory from the trainer"),
        (["--rollout.overlap-rewards", "true", "--rewards.workers", "1"], "rollout.overlap_rewards=true has no effect with rollout.max_staleness=1"),
        (["--rollout.max-tokens-per-step", "2"], "rollout.max_tokens_per_step=2 with rollout.max_staleness=1"),
        (["--rollout.extra-groups", "carry_over"], "rollout.extra_groups=carry_over with rollout.max_staleness=1"),
        (["--rollout.max-staleness", "2"], "rollout.max_staleness=2"),
        (["--algorithm.loss", "policy_gradient"], "rollout.max_staleness learns from responses of earlier weights"),
        (["--algorithm.advantage", "greedy_baseline"], "rollout.max_staleness with algorithm.advantage=greedy_baseline"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(flags, told, capsys):
    with pytest.raises((SystemExit, ValueError)) as refusal:
        build_for(layers.load([*SMALL, *BESIDE, *flags], Config), resolve)
    shown = " ".join(f"{refusal.value} {capsys.readouterr().err}".replace("│", " ").split())
    assert told in shown


def test_an_engine_that_cannot_is_refused_before_weights_load(tmp_path):
    config = layers.load([*SMALL, *BESIDE], Config)
    with pytest.raises(ValueError, match="on cuda: both would compute on one device"):
        check_beside(config.rollout, None, torch.device("cuda"))
    flags = ["--rollout.engine", "tests.e2e.test_late_answers:make_mortal", *BESIDE]
    told = "does not say that it can sample while the trainer learns"
    with pytest.raises(ValueError, match=told), run_of(tmp_path, *flags):
        pass
    judged = ["--judge.path", "policy", "--rewards.functions", "judge", "1", *BESIDE]
    with (
        pytest.raises(ValueError, match="rollout.max_staleness=1 with judge.path=policy"),
        run_of(tmp_path, *judged),
    ):
        pass
