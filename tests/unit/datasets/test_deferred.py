"""Prompts that are tokenised when they are drawn are those that would have been tokenised at the start."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lightrft.config import TaskConfig
from lightrft.datasets import deferred
from lightrft.datasets.deferred import _most, defer, prepared
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener, prepare
from lightrft.testing import tiny_processor
from lightrft.types import Record

PROCESSOR = tiny_processor()
TEXTS = st.text(st.sampled_from("ab 1é한ﷺĄ,-\n"), max_size=20)


def records(texts, source="q"):
    return [
        Record(f"{source}/{n}", [{"role": "user", "content": text}], n, source, {"target": n, "text": text})
        for n, text in enumerate(texts)
    ]


def loader(found, config, processor=PROCESSOR, **world):
    opener = Opener(processor, config)
    return PromptLoader([(found, 1.0)], seed=3, open=opener, tokens=opener.tokens, **world)


def outcome(call):
    """What a call gives, or what it says."""
    try:
        return call()
    except ValueError as error:
        return str(error)


class Counting:
    """A processor that counts the conversations it tokenises."""

    def __init__(self, refused="nothing"):
        self.calls, self.refused = 0, refused

    def __getattr__(self, name):
        return getattr(PROCESSOR, name)

    def prompt(self, record):
        self.calls += 1
        if self.refused in record.messages[-1]["content"]:
            raise TemplateError("not so")
        return PROCESSOR.prompt(record)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXTS, min_size=1, max_size=12), st.sampled_from(["skip", "truncate_left"]), st.integers(4, 40)
)
def test_the_same_prompts_are_kept_and_opened(texts, policy, most):
    config = TaskConfig(on_long_prompt=policy, on_bad_record="skip", max_prompt_tokens=most)
    asked = [*records(texts), *records(texts[:1])]  # one of them twice
    asked[1:2] = [
        replace(r, messages=[{"role": "system", "content": "be kind"}, *r.messages]) for r in asked[1:2]
    ]
    both = [outcome(partial(make, asked, PROCESSOR, config, ("target",))) for make in (prepare, defer)]
    if isinstance(both[0], str):
        assert both[0] == both[1]
        return
    (eager, told), (late, counts) = both
    assert list(map(Opener(PROCESSOR, config), late)) == eager
    assert replace(counts, deferred=0) == told


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@settings(max_examples=40, deadline=None)
@example(text="ªÀ")  # one of them grows in each of two forms
@given(text=st.text(max_size=12))
def test_no_tokenizer_makes_more_tokens_of_a_text_than_counted(form, text):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bytewise.normalizer = getattr(normalizers, form)()
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert len(bytewise.encode(text).ids) <= _most(text)


def test_only_what_could_be_too_long_is_tokenised_at_the_start(monkeypatch):
    monkeypatch.setattr(deferred, "LONGEST", 2)
    counting = Counting()
    kept, counts = defer(records(["short"] * 50 + ["long" * 15]), counting, TaskConfig(max_prompt_tokens=50))
    assert (len(kept), counts.deferred, counts.too_long, counts.longest) == (50, 47, 1, 63)
    assert (
        counting.calls == 1 + 1 + 2
    )  # the first of its form, the long one, and two to know how long they are


def test_a_long_prompt_is_refused_at_the_start_where_settings_say_so():
    strict = TaskConfig(max_prompt_tokens=20, on_long_prompt="raise")
    with pytest.raises(ValueError, match=r"q/1: the prompt has 23 tokens, tasks.max_prompt_tokens=20"):
        defer(records(["short", "long" * 5]), PROCESSOR, strict)


@pytest.mark.parametrize("world", [{}, {"rank": 1, "size": 2}])
def test_draws_are_those_of_prompts_tokenised_at_the_start(monkeypatch, world):
    config = TaskConfig(max_prompt_tokens=60)
    monkeypatch.setattr(deferred, "LONGEST", 2)
    texts = [f"{n} " + "x" * (n % 11 * 10) for n in range(40)]
    eager, _ = prepared(records(texts), PROCESSOR, config)
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    late, counts = prepared(records(texts), PROCESSOR, config)
    assert counts.deferred > 5
    assert counts.too_long > 5
    one, other = loader(eager, config, **world), loader(late, config, **world)
    assert [one.draw(30) for _ in range(3)] == [other.draw(30) for _ in range(3)]


@pytest.mark.parametrize("first", ["eager", "late"])
def test_a_run_goes_on_with_prompts_tokenised_otherwise(first):
    config = TaskConfig()
    found = {
        "eager": prepare(records("abcdefgh"), PROCESSOR, config)[0],
        "late": defer(records("abcdefgh"), PROCESSOR, config)[0],
    }
    whole = loader(found[first], config)
    whole.draw(5)
    for now in found.values():
        resumed = loader(now, config)
        resumed.load(whole.state())
        again = loader(found[first], config)
        again.draw(5)
        assert resumed.draw(9) == again.draw(9)


@pytest.mark.parametrize("what", ["text", "target", "template"])
def test_changed_data_is_seen_though_nothing_was_tokenised(what):
    config = TaskConfig()
    state = loader(defer(records("abc"), PROCESSOR, config)[0], config).state()
    assert "contents" not in state["fingerprint"][0]
    now, processor = records("abd" if what == "text" else "abc"), PROCESSOR
    if what == "target":
        now[2] = replace(now[2], target="2")  # it was a number
    if what == "template":
        processor = tiny_processor()
        processor.tokenizer.chat_template = "Q: " + processor.tokenizer.chat_template
    with pytest.raises(ValueError, match="the training data of 'q' changed since the checkpoint: texts was"):
        loader(defer(now, processor, config)[0], config, processor).load(state)


def test_a_text_that_the_template_refuses_is_named_or_left_out_when_it_is_drawn(monkeypatch):
    monkeypatch.setattr(deferred, "LONGEST", 0)
    refusing = Counting("bad")
    kept, _ = defer(records(["good", "bad"]), refusing, TaskConfig())
    strict, opener = Opener(refusing, TaskConfig()), Opener(refusing, TaskConfig(on_bad_record="skip"))
    with pytest.raises(ValueError, match="q/1: the chat template refuses it: not so"):
        PromptLoader([(kept, 1.0)], seed=0, open=strict, tokens=lambda _: []).draw(2)
    late = PromptLoader([(kept, 1.0)], seed=0, open=opener, tokens=lambda _: [])
    assert [p.id for p in late.draw(2)] == ["q/0", "q/0"]
    assert opener.bad.skipped == 1
