"""Environments that raise, hang or die: begun again, then left out or a stop; never a zero, never a hang."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from lightrft.build.turns import build_turns
from lightrft.config import Config, EnvironmentConfig, ModelConfig, RewardConfig, RolloutConfig
from lightrft.engines.base import give
from lightrft.engines.native import native_engine
from lightrft.environments.episodes import EnvironmentFailedError
from lightrft.models.load import load_model
from lightrft.rewards.base import RewardRunner
from lightrft.testing import tiny_processor
from lightrft.trainer.rollout import rollout
from lightrft.types import Record, Sampling
from lightrft.utils.errors import boundary_of
from lightrft.utils.imports import load_file

TALKERS = Path(__file__).with_name("talkers.py")


@pytest.fixture
def spoken():
    """Calls a rollout of two prompts, two responses each, in an environment of TALKERS; its groups and the counts."""
    with ExitStack() as stack:

        def call(
            name="Moody", workers=1, timeout_seconds=20, prompts=None, share=lambda e: e, template="", **more
        ):
            processor = tiny_processor()
            processor.tokenizer.chat_template = template or processor.tokenizer.chat_template
            module = load_model(ModelConfig(path="random:llama"), trainable=False)
            given = {"turn_tokens": 4, "workers": workers, "timeout_seconds": timeout_seconds, **more}
            options = EnvironmentConfig(name=f"{TALKERS}:{name}", **given)
            turns = build_turns(Config(environment=options), processor, stack)
            engine = native_engine(module, processor, RolloutConfig())
            give(engine, module.state_dict().items())
            prompts = prompts or [
                processor.prompt(Record(f"q{n}", [{"role": "user", "content": "hello"}], None, "talk"))
                for n in range(2)
            ]
            sampling = Sampling(n=2, max_tokens=120, seed=5)
            groups = rollout(share(engine), prompts, sampling, processor, turns=turns)
            return groups, turns.counted()

        yield call


def test_what_is_begun_again_says_what_it_would_have_said(spoken, tmp_path):
    """One episode raises once; its conversation comes out as if nothing had been."""
    calm, _ = spoken()
    groups, counts = spoken(options={"kind": "raise", "tries": str(tmp_path / "tries")})
    assert [[t.token_ids for t in group] for group in groups] == [[t.token_ids for t in g] for g in calm]
    assert [[t.step_rewards for t in group] for group in groups] == [[[1.0] * 3] * 2] * 2
    assert counts["environment/restarted"] == 1
    assert "environment/failed" not in counts


@pytest.mark.parametrize("kind", ["die", "hang"])
def test_a_process_that_dies_or_hangs_takes_no_other_conversation_with_it(kind, spoken, tmp_path):
    options = {"kind": kind, "tries": str(tmp_path / "tries")}
    groups, counts = spoken(options=options, retries=1, timeout_seconds=2 if kind == "hang" else 20)
    assert [[t.step_rewards for t in group] for group in groups] == [[[1.0] * 3] * 2] * 2
    assert (
        counts["environment/restarted"] > 1
    )  # the others of its process too, and none of them counts as failed
    assert not any(t.failed for group in groups for t in group)


@pytest.mark.parametrize(
    ("kind", "told"), [("raise", "a bad day"), ("reset", "no day at all"), ("nan", "reward is nan")]
)
def test_one_that_fails_still_stops_the_run_by_name(kind, told, spoken):
    with pytest.raises(EnvironmentFailedError, match=told) as caught:
        spoken(options={"kind": kind}, workers=0)
    assert boundary_of(caught.value) == "environment"
    for words in ("Moody", "q1", "environment.retries=1", "environment.on_failure=drop"):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["raise", "reset"])
def test_or_its_response_is_left_out_counted_and_never_a_zero(kind, spoken):
    groups, counts = spoken(options={"kind": kind}, workers=0, on_failure="drop")
    assert [[bool(t.failed) for t in group] for group in groups] == [[False] * 2, [True] * 2]
    assert counts["environment/failed"] == 2
    with RewardRunner({"talk": {"environment": 1.0}}, RewardConfig(workers=0)) as judge:
        found = judge([t for group in groups for t in group])
    assert [t.reward for t in found.kept] == [3.0, 3.0]
    assert [t.group for t in found.dropped] == [1, 1]
    assert all(t.reward != t.reward for t in found.dropped)
    assert found.metrics["counts/dropped_responses"] == 2


def test_what_fails_is_closed_and_begun_again_with_the_row_alone(spoken):
    """And half a surrogate pair in what it says is a question mark."""
    witness = load_file(str(TALKERS)).Witness
    witness.rows.clear()
    witness.closed = 0
    groups, counts = spoken("Witness", workers=0)
    assert counts["environment/restarted"] == 4
    assert witness.rows == [[{"role": "user", "content": "hello"}]] * 8
    assert witness.closed == 1 + 8, (
        "the one that was asked for its tools, four that failed, and four that ended"
    )
    assert {t.said[1]["content"] for group in groups for t in group} == {"half: ?"}


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) or m['role'] == 'system' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_insists_on_alternation_gets_one_message_of_two(spoken):
    """The row's question and what is said first are one, after a failure as well."""
    witness = load_file(str(TALKERS)).Witness
    witness.rows.clear()
    groups, counts = spoken("Witness", workers=0, template=ALTERNATING)
    assert counts["environment/restarted"] == 4
    for t in (t for group in groups for t in group):
        (asked,) = t.prompt.messages
        assert asked == {"role": "user", "content": f"hello\nfirst {t.prompt.episode}"}
        assert not t.failed


def test_what_a_template_refuses_to_begin_with_is_a_failure_by_name(spoken):
    with pytest.raises(
        EnvironmentFailedError, match=r"refuses what environment .*:Instructs' says first \(roles must"
    ):
        spoken("Instructs", workers=0, template=ALTERNATING)


def test_one_that_begins_otherwise_after_a_failure_is_given_up(spoken):
    """Its prompt holds what it said before."""
    groups, _ = spoken("Changed", options={"kind": "raise"}, workers=0, on_failure="drop")
    assert not any(t.failed for t in groups[0])
    assert ["begins otherwise" in t.failed for t in groups[1]] == [True] * 2


class Shared:
    """An engine of two ranks, each a thread, that wait for each other in every call as those of a tensor-parallel one do."""

    def __init__(self, engine, rank, barrier, said):
        self._engine, self._rank, self._barrier, self._said = engine, rank, barrier, said

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def generate(self, *asked):
        self._barrier.wait()
        return self._engine.generate(*asked)

    def any(self, here):
        self._said[self._rank] = here
        self._barrier.wait()
        found = any(self._said)
        self._barrier.wait()
        return found


@pytest.mark.parametrize("kind", ["raise", "reset"])
def test_a_rank_that_stops_leaves_none_waiting_that_shares_its_engine(kind, spoken):
    barrier, said = threading.Barrier(2, timeout=30), [False, False]

    def rank(number):
        kind_here = kind if number else "never"
        return spoken(
            options={"kind": kind_here}, workers=0, share=lambda engine: Shared(engine, number, barrier, said)
        )

    with ThreadPoolExecutor(2) as both:
        well, failing = both.submit(rank, 0), both.submit(rank, 1)
        with pytest.raises(EnvironmentFailedError, match="q1"):
            failing.result(timeout=60)
        well.result(timeout=60)  # where the ranks meet next, it learns of the failure


def test_siblings_that_begin_differently_are_refused(spoken):
    with pytest.raises(EnvironmentFailedError, match="began the episodes of one group differently"):
        spoken("Unseeded", workers=0)


def test_what_an_environment_says_first_becomes_the_prompt(spoken):
    groups, _ = spoken("Opening", workers=0)
    for group in groups:
        messages = group[0].prompt.messages
        assert [m["role"] for m in messages] == ["user", "user"]
        assert messages[1]["content"].startswith("The number begins with")
        assert all(t.prompt is group[0].prompt for t in group)


@pytest.mark.parametrize("limit", [{"max_turns": 2}, {"max_turns": 50}])
def test_a_conversation_that_is_cut_is_asked_for_its_last_reward(limit, spoken):
    """By the number of turns, or by the room for tokens."""
    groups, _ = spoken("Endless", workers=0, **limit)
    for t in (t for group in groups for t in group):
        assert t.finish == ("turns" if limit["max_turns"] == 2 else "length")
        assert t.step_rewards == [1.0] * (len(t.step_rewards) - 1) + [6.0]
        assert t.mask[-1], "no reply stands at the end that the policy could not answer"
        assert len(t) <= 120


def test_a_prompt_that_is_answered_again_begins_the_same_episode(spoken):
    """As the most likely response does that ReMax compares with: it meets what its siblings met."""
    groups, _ = spoken("Opening", workers=0)
    asked = [group[0].prompt for group in groups]
    again, _ = spoken("Opening", workers=0, prompts=asked[::-1])
    assert [group[0].prompt for group in again] == asked[::-1]


def test_an_environment_that_is_not_there_or_cannot_be_made_is_named_before_anything(spoken):
    with pytest.raises(ValueError, match="Moody"):
        spoken("Moodyy", workers=0)
    with pytest.raises(ValueError, match="no_such"):
        spoken(options={"no_such": "1"}, workers=0)
