"""A conversation in the terminal: what is shown is the response, piece by piece and safe; what was said stays, until /new."""

import io
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightrft import cli
from lightrft.commands.chat import Conversation, Shown, asked, converse, model_of
from lightrft.config import ModelConfig, NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import causal_lm
from lightrft.testing import tiny_processor
from lightrft.types import Message, Record, Sampling
from lightrft.utils.shown import shown

CONFIG = ModelConfig(path="random:llama")


@pytest.fixture(scope="module")
def engine():
    processor = load_processor(CONFIG)
    module = causal_lm(load_model(CONFIG, trainable=False))
    return NativeEngine(module, processor.stop_ids, processor.text, NativeEngineConfig())


def talk_of(engine, longest=None, **sampling):
    return Conversation(
        engine, load_processor(CONFIG), Sampling(max_tokens=8, **sampling), longest, "Be brief."
    )


def test_tokens_are_told_as_they_are_drawn_and_are_those_of_generate(engine):
    talk, seen = talk_of(engine, seed=3), []
    prompt = tiny_prompt_of(talk)
    sampling = Sampling(max_tokens=8, seed=3, ignore_eos=True)
    followed = engine.follow(prompt, sampling, lambda tokens: seen.append(list(tokens)))
    assert [len(tokens) for tokens in seen] == list(range(1, 9))
    assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(seen))
    (whole,) = engine.generate([prompt], sampling)[0]
    assert followed.token_ids == whole.token_ids == seen[-1]


def tiny_prompt_of(talk):
    return talk.processor.prompt(Record("a", [Message(role="user", content="hello")], None, "a"))


def test_a_conversation_keeps_what_was_said_until_it_begins_again(engine):
    talk, told = talk_of(engine), []
    converse(talk, ["hello", "", "and?"], told.append)
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    converse(talk, ["/new"], told.append)
    assert [m["role"] for m in talk.messages] == ["system"]
    converse(talk, ["/quit", "unheard"], told.append)
    assert len(talk.messages) == 1


def test_what_is_shown_is_the_response(engine):
    talk, pieces = talk_of(engine), []
    answer = talk.ask("hello", pieces.append)
    assert "".join(pieces) == shown(answer)
    assert talk.messages[-1]["content"] == answer


def test_a_conversation_that_outgrows_the_model_says_so_and_keeps_nothing(engine):
    talk, told = talk_of(engine, longest=4), []
    converse(talk, ["hello"], told.append)
    assert "tokens, and the model was made for 4. Begin again: /new" in told[0]
    assert len(talk.messages) == 1


def test_escape_sequences_of_a_model_do_not_reach_the_terminal_and_characters_come_whole():
    processor, pieces = tiny_processor(), []
    told = Shown(processor, pieces.append)
    tokens = processor.tokenizer.encode("a\x1b[2Jé", add_special_tokens=False)
    for end in range(1, len(tokens) + 1):
        told(tokens[:end])
    text = told.end(tokens)
    assert "\x1b" not in "".join(pieces)
    assert "�" not in "".join(pieces)
    assert text == processor.text(tokens)


def test_a_run_without_a_model_says_how_to_make_one(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="has not finished.*lightrft export"):
        model_of(str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_of(str(tmp_path)) == str(Path(tmp_path, "model"))
    assert model_of("random:llama") == "random:llama"


def test_the_command_talks_and_refuses_what_is_out_of_range(monkeypatch, capsys):
    torch.manual_seed(0)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/quit\n"))
    assert cli.main(["chat", "random:llama", "--max-tokens", "3", "--temperature", "0"]) == 0
    assert "random:llama: /new begins again, /quit ends.\n\n> " in capsys.readouterr().out
    assert cli.main(["chat", "random:llama", "--top-p", "2"]) == 2
    assert "--top-p must be above 0 and at most 1" in capsys.readouterr().err


def test_bytes_that_are_no_text_do_not_end_a_conversation(monkeypatch, engine):
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nagain\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", typed)
    talk = talk_of(engine)
    converse(talk, asked(), lambda _: None)
    assert [m["content"] for m in talk.messages if m["role"] == "user"] == ["caf\ufffd", "again"]
