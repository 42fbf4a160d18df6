"""Answers that go on, also after tokens that the policy did not choose."""

import pytest

from lightrft.config import ModelConfig, RolloutConfig
from lightrft.engines.base import EngineError, give
from lightrft.engines.native import native_engine
from lightrft.models.load import load_model
from lightrft.models.tiny import USER
from lightrft.testing import tiny_processor, tiny_prompt
from lightrft.trainer.responses import continued
from lightrft.trainer.rollout import rollout
from lightrft.types import Continuation, Sampling


def engine_of():
    module, processor = load_model(ModelConfig(path="random:llama"), trainable=False), tiny_processor()
    engine = native_engine(module, processor, RolloutConfig())
    give(engine, module.state_dict().items())
    return engine, processor


def test_an_answer_goes_on_after_tokens_that_the_policy_did_not_choose():
    engine, processor = engine_of()
    sampling = Sampling(max_tokens=12, ignore_eos=True, seed=3)
    ((t,),) = rollout(engine, [tiny_prompt(5)], sampling, processor, most_now=4)
    assert (t.finish, t.mask) == ("paused", [True] * 4)
    t.token_ids, t.mask, t.behavior = [*t.token_ids, 65, 66], [*t.mask, False, False], [*t.behavior, 0.0, 0.0]
    before = list(t.token_ids)
    assert rollout(engine, [], sampling, processor, unfinished=[t]) == []
    assert (len(t), t.token_ids[:6], t.finish) == (12, before, "length")
    assert t.mask == [True] * 4 + [False] * 2 + [True] * 6
    assert t.behavior[4:6] == [0.0, 0.0]
    assert all(x < 0 for x in t.behavior[:4] + t.behavior[6:])


def test_the_engine_is_told_which_tokens_the_policy_chose():
    engine, processor = engine_of()
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    ((t,),) = rollout(engine, [tiny_prompt(5)], sampling, processor, most_now=2)
    t.token_ids, t.mask, t.behavior = [*t.token_ids, 65], [*t.mask, False], [*t.behavior, 0.0]
    continuation = continued(t, 3).continuation
    assert (continuation.tokens, continuation.max_tokens) == (3, 3)
    assert (continuation.mask, continuation.since) == ((True, True, False), 3)
    assert Continuation(tokens=3, stream=0, max_tokens=1).since == 0


def test_a_stop_text_of_another_does_not_end_the_answer():
    """What a tool replied may hold it; the policy did not say so."""
    engine, processor = engine_of()
    ((t,),) = rollout(
        engine, [tiny_prompt(5)], Sampling(max_tokens=12, ignore_eos=True), processor, most_now=2
    )
    reply = processor.tokenizer.encode("STOP", add_special_tokens=False)
    assert processor.text(reply) == "STOP"
    t.token_ids, t.mask, t.behavior = (
        [*t.token_ids, *reply],
        [*t.mask, *[False] * len(reply)],
        [*t.behavior, *[0.0] * len(reply)],
    )
    rollout(engine, [], Sampling(max_tokens=12, stop=("STOP",)), processor, unfinished=[t])
    assert len(t) > 3 + len(reply), "it went on for more than the one token after which it is looked at"


@pytest.mark.parametrize("most_now", [0, 3])
def test_a_stop_text_that_is_a_special_token_ends_the_response(most_now):
    """Decoded responses leave special tokens out, so no text could be compared with it."""
    engine, processor = engine_of()
    user = processor.tokenizer.convert_tokens_to_ids(USER)
    drawn = rollout(engine, [tiny_prompt(5)], Sampling(n=200, max_tokens=12, seed=1), processor)[0]
    assert any(user in t.token_ids[:-1] for t in drawn), "the model goes on after it"
    sampling = Sampling(n=200, max_tokens=12, seed=1, stop=(USER, "zzz"))
    stopped = rollout(engine, [tiny_prompt(5)], sampling, processor, most_now=most_now)[0]
    rollout(engine, [], sampling, processor, unfinished=[t for t in stopped if t.finish == "paused"])
    for t, free in zip(stopped, drawn, strict=True):
        length = free.token_ids.index(user) + 1 if user in free.token_ids else len(free)
        assert t.token_ids == free.token_ids[:length]
        assert t.finish == ("stop" if user in free.token_ids else free.finish)


def test_a_stop_text_that_could_never_be_found_is_refused():
    with pytest.raises(ValueError, match=r"rollout.stop: the text '<\|user\|>hi' holds the special token"):
        tiny_processor().stopping(Sampling(stop=(f"{USER}hi",)))


def test_a_failure_says_which_border_it_came_over():
    from lightrft.media.parts import MediaError
    from lightrft.rewards.base import RewardError
    from lightrft.strategy.memory import NoRoomError
    from lightrft.utils.errors import RolloutError, boundary_of

    found = {boundary_of(kind("told")) for kind in (EngineError, RewardError, MediaError, NoRoomError)}
    assert found == {"engine", "reward", "media", "memory"}
    assert all(issubclass(kind, RolloutError) for kind in (EngineError, RewardError, MediaError, NoRoomError))
    wrapped = RuntimeError("at step 7")
    wrapped.__cause__ = RewardError("told")
    assert boundary_of(wrapped) == "reward"
    assert boundary_of(ValueError("a setting")) is None
