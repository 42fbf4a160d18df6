"""Responses whose program asks with several pasts: each row is what a plain pass finds, and the response weighs as one."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.build.turns import build_turns
from lightrft.config import (
    Config,
    EnvironmentConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    UpdateConfig,
)
from lightrft.engines.base import give
from lightrft.engines.native import native_engine
from lightrft.environments.base import Reply
from lightrft.environments.episodes import EnvironmentFailedError
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.runs.storage import restored, stored
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_folder
from lightrft.trainer.batching import Batching, owners_of, pack, rows_of
from lightrft.trainer.flight import apart, mark_older
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.responses import share_with_forks
from lightrft.trainer.rollout import rollout
from lightrft.trainer.skipping import without_advantage
from lightrft.trainer.talk import Talk
from lightrft.types import Prompt, Record, Sampling, Terms, Trajectory

TALKERS = str(Path(__file__).parents[1] / "unit/environments/talkers.py")


class Bench:
    """A tiny model with its engine, and an environment that forks."""

    def __init__(self, folder, stack, **environment):
        self.config = ModelConfig(path=str(folder))
        self.processor, self.model = load_processor(self.config), load_model(self.config)
        options = EnvironmentConfig(
            **{"workers": 0, "name": f"{TALKERS}:Forking", "forks": True, "turn_tokens": 7, **environment}
        )
        self.turns = build_turns(Config(environment=options), self.processor, stack)
        self.engine = native_engine(self.model, self.processor, RolloutConfig())
        give(self.engine, self.model.state_dict().items(), 1)

    def groups(self, count=3, **sampling):
        settings = Sampling(**{"n": 3, "max_tokens": 300, "seed": 3, **sampling})
        records = [
            Record(f"q{i}", [{"role": "user", "content": f"hello {i}"}], None, "x") for i in range(count)
        ]
        prompts = [self.processor.prompt(record) for record in records]
        return rollout(self.engine, prompts, settings, self.processor, turns=self.turns)


@pytest.fixture
def bench(tmp_path):
    with ExitStack() as stack:
        yield lambda **environment: Bench(tiny_folder(tmp_path, "llama"), stack, **environment)


def test_each_row_is_what_one_plain_pass_finds_and_shared_tokens_are_learned_once(bench, tmp_path):
    made = bench()
    ts = [t for group in made.groups() for t in group]
    rows = rows_of(ts)
    assert [len(t.forks) for t in ts] == [2] * len(ts)
    batch = pack(rows)
    found = logprobs(made.model, batch, temperature=1.0, max_logits=10**6).values
    assert (found - batch.behavior)[batch.mask].abs().max() < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    for row in rows:
        ids, start = torch.tensor([row.prompt.token_ids + row.token_ids]), len(row.prompt.token_ids)
        with torch.no_grad():
            logits = plain(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        right = logits.gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
        chosen = torch.tensor(row.mask)
        assert (right - torch.tensor(row.behavior))[chosen].abs().max() < 1e-5
    for t in ts:
        again, back = t.forks
        # Turns 1 and 2 are in the first row, 3, 4 and 6 in the second, and 5 in the third, which begins with turn 1.
        spoken = [sum(m["role"] == "assistant" for m in row.said) for row in (t, again, back)]
        assert spoken == [2, 3, 2]
        assert len(t.step_rewards) == 6
        assert not any(back.mask[: (shared := next(n for n, c in enumerate(back.mask) if c))])
        assert back.token_ids[: shared - 1][:5] == t.token_ids[:5]
        assert again.mask[0], "the prompt asked again"
        assert again.token_ids != t.token_ids, "random numbers of its own"
        assert t.answer == again.said[-1]["content"], "what was said last"


def test_turns_end_where_no_room_is_left_and_without_the_setting_it_is_a_failure(bench):
    cut = [t for group in bench(max_turns=3).groups(1) for t in group]
    assert [(t.finish, len(t.forks)) for t in cut] == [("turns", 1)] * 3
    assert all(any(row.mask) for row in rows_of(cut))
    with pytest.raises(EnvironmentFailedError, match=r"environment\.forks=true"):
        bench(forks=False).groups(1)


def test_responses_without_advantage_are_skipped_whole_and_counted_once(bench):
    made = bench()
    ts = made.groups(1)[0]
    for place, t in enumerate(ts):
        t.reward = float(place == 0)
        for name in ("rewards", "advantages", "returns"):
            t.columns[name] = torch.where(torch.tensor(t.mask), t.reward, 0.0)
    share_with_forks(ts)
    model = SingleTrainable(made.model, OptimizerConfig(max_grad_norm=0.0), total_updates=1)

    def loss(batch):
        values = logprobs(made.model, batch, temperature=1.0, max_logits=10**6).values
        return Terms(-values * batch.advantages, {}, {}, {"weight": batch.weights})

    batching = Batching(UpdateConfig(), World(), torch.device("cpu"))
    (found,) = optimize(
        model,
        [(0, ts)],
        loss,
        averaging=Averaging("token", 50),
        batching=batching,
        keep_tokens=True,
        idle=without_advantage,
    )
    assert found["update/skipped_responses"] == 2
    assert all(len(row.learned["weight"]) == len(row) for row in rows_of(ts))


def test_a_response_one_of_whose_rows_was_cut_is_truncated(bench):
    (t, *_) = bench().groups(1)[0]
    talk = Talk(1, 1, Reply())
    talk.open(t)
    t.forks, t.finish = [], "length"
    talk.note_turn()
    assert talk.turn_to(0, 0)
    talk.row.finish = "stop"
    talk.note_turn()
    assert t.finish == "length"
    talk.turn_to(0, 1)  # the first row goes on behind the turn that was cut, and ends
    t.finish = "stop"
    talk.note_turn()
    assert t.finish == "stop"
    assert talk.turn_to(1, 1) is False
    assert talk.row is t.forks[0]
    assert talk.turn_to(1, 0)
    talk.drop_row()
    assert (len(t.forks), talk.number) == (1, 1)


def test_an_episode_whose_past_is_refused_is_ended(bench):
    made = bench(forks=False, on_failure="drop")
    assert all(t.failed for t in made.groups(1)[0])
    (host,) = made.turns.episodes._runner.functions.values()
    assert not host._episodes


def test_a_response_with_forks_is_stored_copied_and_marked_older_whole(bench):
    ts = [t for group in bench().groups(2) for t in group]
    found = restored(stored(ts))
    for kept, t in zip(found, ts, strict=True):
        assert kept.token_ids == t.token_ids
        assert [f.token_ids for f in kept.forks] == [f.token_ids for f in t.forks]
        assert [f.mask for f in kept.forks] == [f.mask for f in t.forks]
        assert all(f.prompt is kept.prompt for f in kept.forks)
    (copy,) = [apart(ts[0])]
    copy.forks[0].token_ids.append(1)
    assert ts[0].forks[0].token_ids[-1:] != [1] or len(copy.forks[0]) > len(ts[0].forks[0])
    mark_older([found])
    assert [row.stale for row in rows_of(found)] == [len(row) for row in rows_of(found)]
    old = stored(ts)
    del old["forks"]  # as versions before forks wrote
    assert len(restored(old)) == len(rows_of(ts))


def test_a_fork_has_the_advantage_of_its_response(bench):
    ts = [t for group in bench().groups(1) for t in group]
    for place, t in enumerate(ts):
        t.reward = float(place)
        for name in ("rewards", "advantages", "returns"):
            t.columns[name] = torch.where(torch.tensor(t.mask), float(place) - 1, 0.0)
    share_with_forks(ts)
    for place, t in enumerate(ts):
        for fork in t.forks:
            right = torch.where(torch.tensor(fork.mask), float(place) - 1, 0.0)
            assert torch.equal(fork.columns["advantages"], right)
            assert fork.reward == place
    ts[0].columns["advantages"][0] += 1
    with pytest.raises(ValueError, match="differs between the tokens"):
        share_with_forks(ts)


@pytest.mark.parametrize("average", ["token", "sequence", "fixed", "group"])
@pytest.mark.parametrize("budget", [30, 100_000])
def test_the_gradient_is_that_of_all_rows_read_alone(average, budget, bench):
    """Plain Python: each row read by itself, its chosen tokens weighed by hand."""
    made = bench()
    made.model.double()
    groups = made.groups(2)
    groups[0][0].forks = []  # responses with and without
    ts = [t for group in groups for t in group]
    for place, t in enumerate(ts):
        t.reward = float(place % 3)
        for name in ("rewards", "advantages", "returns"):
            t.columns[name] = torch.where(torch.tensor(t.mask), place - 2.5, 0.0)
    share_with_forks(ts)

    def rows_loss(batch):
        values = logprobs(made.model, batch, temperature=1.0, max_logits=10**6).values
        return Terms(-(values * batch.advantages), {}, {}, {"weight": batch.weights})

    right = []
    tokens = sum(sum(row.mask) for row in rows_of(ts))
    for t in ts:
        own = sum(sum(row.mask) for row in (t, *t.forks))
        siblings = sum(sum(row.mask) for row in rows_of([s for s in ts if s.group == t.group]))
        weight = {
            "token": 1 / tokens,
            "sequence": 1 / (len(ts) * own),
            "fixed": 1 / (len(ts) * 50),
            "group": 1 / (2 * siblings),
        }
        right += [(row, weight[average]) for row in (t, *t.forks)]
    made.model.zero_grad()
    for row, weight in right:
        batch = pack([row])
        ((rows_loss(batch).loss * batch.mask).sum() * weight).backward()
    wanted = [p.grad.clone() for p in made.model.parameters()]
    made.model.zero_grad()
    batching = Batching(
        UpdateConfig(tokens_per_micro_batch=budget),
        World(),
        torch.device("cpu"),
        whole_groups=average == "group",
    )
    found = []

    def keep(_index, _norm):
        found.extend(p.grad.clone() for p in made.model.parameters())

    model = SingleTrainable(made.model, OptimizerConfig(max_grad_norm=0.0), total_updates=1)
    list(
        optimize(
            model,
            [(0, ts)],
            rows_loss,
            averaging=Averaging(average, 50),
            batching=batching,
            before_update=keep,
            keep_tokens=True,
        )
    )
    for row, weight in zip(rows_of(ts), (weight for _, weight in right), strict=True):
        told = torch.where(torch.tensor(row.mask), weight, 0.0)
        assert torch.allclose(row.learned["weight"], told, rtol=1e-6)
    for one, right in zip(found, wanted, strict=True):
        assert (one - right).abs().max() < 1e-6 * right.abs().max(), "weights are float32"


def test_weights_of_rows_by_hand():
    """Two responses: one of three chosen tokens in two rows, one of a single token."""
    rows = [_response([True, False]), _response([False, True, True]), _response([True])]
    batch = pack(rows, inputs=False)
    owners = torch.tensor([0, 0, 1])
    assert denominators(batch.mask, owners[batch.segments], 2) == (4, 2)
    found = token_weights(batch, "sequence", 9, 4, 2, owners)
    assert found.tolist() == pytest.approx([1 / 6, 0, 0, 1 / 6, 1 / 6, 1 / 2])
    rows[0].forks = [rows[1]]
    assert owners_of([rows[0], rows[2]]).tolist() == [0, 0, 1]


def _response(mask):
    prompt = Prompt("q", [3], [], None, "x")
    return Trajectory(prompt, 0, [5] * len(mask), mask, [0.0] * len(mask), "stop")
