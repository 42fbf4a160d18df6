"""Conversations with an environment: what the engine sampled in turns is what the trainer, and one plain pass, find in the whole."""

import random
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightrft.build.turns import build_turns
from lightrft.config import Config, EnvironmentConfig, ModelConfig, NativeEngineConfig, RolloutConfig
from lightrft.engines.base import give
from lightrft.engines.native import native_engine
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.testing import tiny_folder
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout
from lightrft.types import Record, Sampling

TALKERS = str(Path(__file__).parents[1] / "unit/environments/talkers.py")


class Bench:
    """A tiny model with its engine and an environment."""

    def __init__(self, folder, stack, max_sequences=256, **environment):
        self.config = ModelConfig(path=str(folder))
        self.processor, self.model = load_processor(self.config), load_model(self.config)
        options = EnvironmentConfig(**{"workers": 0, **environment})
        self.turns = build_turns(Config(environment=options), self.processor, stack)
        native = NativeEngineConfig(max_sequences=max_sequences)
        self.engine = native_engine(self.model, self.processor, RolloutConfig(native=native))
        give(self.engine, self.model.state_dict().items(), 1)

    def prompts(self, count):
        draw = random.Random(1)
        return [
            self.processor.prompt(
                Record(
                    f"q{i}", [{"role": "user", "content": "hello " * draw.randint(1, 9) + str(i)}], None, "x"
                )
            )
            for i in range(count)
        ]

    def groups(self, count=6, **sampling):
        settings = Sampling(**{"n": 4, "max_tokens": 300, "seed": 3, **sampling})
        return rollout(self.engine, self.prompts(count), settings, self.processor, turns=self.turns)


@pytest.fixture
def stack():
    with ExitStack() as found:
        yield found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_is_what_the_trainer_and_one_plain_pass_find(family, temperature, tmp_path, stack):
    folder = tiny_folder(tmp_path, family)
    bench = Bench(folder, stack, name=f"{TALKERS}:Chatty", turn_tokens=9, max_turns=5)
    ts = [t for group in bench.groups(temperature=temperature) for t in group]
    turns = [len(t.step_rewards) for t in ts]
    assert min(turns) < 3
    assert max(turns) == 5
    batch = pack(ts)
    found = logprobs(bench.model, batch, temperature=temperature, max_logits=10**6).values
    assert (found - batch.behavior)[batch.mask].abs().max() < 1e-5
    assert (batch.behavior[~batch.mask] == 0).all()
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    for t in ts:
        ids, prompt = torch.tensor([t.prompt.token_ids + t.token_ids]), len(t.prompt.token_ids)
        with torch.no_grad():
            rows = (plain(ids).logits[0, prompt - 1 : -1].float() / temperature).log_softmax(-1)
        right = rows.gather(1, torch.tensor(t.token_ids)[:, None])[:, 0]
        chosen = torch.tensor(t.mask)
        assert (right - torch.tensor(t.behavior))[chosen].abs().max() < 1e-5
        assert t.num_chosen == int(chosen.sum())


class Rereading:
    """An engine that keeps nothing between two calls."""

    def __init__(self, engine):
        self.generate = engine.generate


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("max_sequences", [256, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_each_token_is_read_once_and_nothing_else_comes_of_it(
    family, max_sequences, temperature, tmp_path, stack
):
    """Of five running responses only so many can be kept. One conversation begins anew, and is read anew."""
    options = {"kind": "raise", "tries": str(tmp_path / "tries")} if max_sequences == 5 else {}
    name = f"{TALKERS}:{'Moody' if options else 'Chatty'}"
    bench = Bench(
        tiny_folder(tmp_path, family), stack, max_sequences, name=name, turn_tokens=9, options=options
    )
    kept = [t for group in bench.groups(temperature=temperature) for t in group]
    read = bench.engine.read_tokens
    bench.engine.parts()["cache"].offload()
    bench.model.double()  # shared with the engine: what is left of a difference is not rounding
    kept_exactly = [t for group in bench.groups(temperature=temperature) for t in group]
    bench.engine, engine = Rereading(bench.engine), bench.engine
    again = [t for group in bench.groups(temperature=temperature) for t in group]
    for t, exact, right in zip(kept, kept_exactly, again, strict=True):
        assert t.token_ids == exact.token_ids == right.token_ids
        assert t.behavior == pytest.approx(right.behavior, abs=1e-5)
        assert exact.behavior == pytest.approx(right.behavior, abs=1e-12)
    prompts = {id(t.prompt): len(t.prompt.token_ids) for t in kept}
    necessary = sum(prompts.values()) + sum(len(t) - 1 for t in kept)
    assert read == necessary if max_sequences == 256 else read > necessary
    assert engine._cache.prompts.nbytes() > 0
    assert len(engine._cache.prompts) == len(engine._cache.answers) == 0, "all pages are back"


def test_a_conversation_is_its_turns_and_replies_end_to_end(tmp_path, stack):
    """Tokens grow only, by turns that were sampled and by what the template writes between them."""
    bench = Bench(tiny_folder(tmp_path, "llama"), stack, name=f"{TALKERS}:Chatty", turn_tokens=9)
    for group in bench.groups():
        assert len({len(t.step_rewards) for t in group}) == 1  # one seed for all siblings
        for t in group:
            text = bench.processor.text(t.prompt.token_ids + t.token_ids, special=True)
            said = [m for m in t.said if m["role"] != "assistant"]
            assert [m["content"] for m in said] == [
                m["content"] for m in group[0].said if m["role"] != "assistant"
            ]
            for m in said:
                assert f"<|{m['role']}|>{m['content']}<|end|>" in text
            spoken = [m["content"] for m in t.said if m["role"] == "assistant"]
            assert len(spoken) == len(t.step_rewards)
            assert t.answer == spoken[-1]
            assert text.count("<|assistant|>") >= len(spoken)


def test_replies_change_no_gradient_whatever_stands_in_their_columns(tmp_path, stack):
    bench = Bench(tiny_folder(tmp_path, "llama"), stack, name=f"{TALKERS}:Chatty", turn_tokens=9)
    ts = [t for group in bench.groups(3) for t in group]
    found = []
    for strange in (0.0, 1e3):
        batch = pack(ts)
        weights = torch.where(batch.mask, 1.0, 0.0)
        advantages = torch.where(batch.mask, 0.7, strange)
        bench.model.zero_grad()
        values = logprobs(bench.model, batch, temperature=1.0, max_logits=10**6).values
        (-(values * advantages) * weights).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in bench.model.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("first_token_temperature", [0.0, 1.7])
def test_the_head_computes_what_was_chosen_and_the_same_of_it(first_token_temperature, tmp_path, stack):
    """Values and gradients are those of the head over every token; replies have none."""
    bench = Bench(tiny_folder(tmp_path, "llama"), stack, name=f"{TALKERS}:Chatty", turn_tokens=9)
    bench.model.double()
    batch = pack([t for group in bench.groups(3) for t in group])
    assert batch.inputs.chosen.tolist() == batch.mask.nonzero()[:, 0].tolist()
    every = replace(batch, inputs=replace(batch.inputs, chosen=None))
    found = []
    for one in (batch, every):
        bench.model.zero_grad()
        out = logprobs(
            bench.model,
            one,
            temperature=0.7,
            max_logits=10**6,
            first_token_temperature=first_token_temperature,
        )
        ((out.values + out.entropy) * batch.mask).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in bench.model.parameters()])
        found.append((out.values, out.entropy, gradient))
    assert (found[0][0][~batch.mask] == 0).all()
    for mine, right in zip(found[0][:2], found[1][:2], strict=True):
        assert (mine - right)[batch.mask].abs().max() < 1e-12
    assert (found[0][2] - found[1][2]).abs().max() < 1e-10
