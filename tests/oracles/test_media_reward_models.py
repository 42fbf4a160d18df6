"""Reward models that see or hear, packed with shared prompts, against plain transformers reading the folder that a run leaves behind."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from lightrft.algorithms.preference import PREFERENCE_LOSSES
from lightrft.config import (
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RewardTrainingConfig,
    TaskConfig,
    UpdateConfig,
)
from lightrft.datasets.comparisons import siblings
from lightrft.datasets.sides import Side, SidesOpener
from lightrft.models.export import write_folder
from lightrft.models.families import part
from lightrft.models.lora import full_weights
from lightrft.models.reward import Conversation, load_reward_model, scores, up_to_score, values
from lightrft.models.reward_source import RewardSource
from lightrft.models.words import response_positions
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_processor
from lightrft.trainer.batching import Batching, batch_tokens, pack, plan
from lightrft.trainer.optimize import optimize
from lightrft.trainer.preferences import Preferences
from lightrft.types import Prompt
from tests.oracles.test_media_models import answers_to, name_of

FAMILIES = ["gemma3_vl", "idefics3", "qwen2_5_vl", "qwen2_audio"]
"""One of each kind: a class of transformers' own, batched pictures, several axes of positions, sounds."""
SYSTEM = 259
"""<|system|>, which no conversation here ends with."""


def source(family, **model):
    return RewardSource(
        ModelConfig(path=f"random:{name_of(family)}", **model), outputs=("general", "cost"), padding=SYSTEM
    )


def saved(folder, module):
    """The folder that a run leaves behind."""
    weights = full_weights(module, lambda p, dtype: p.detach().to(dtype), torch.float32)
    write_folder(module, tiny_processor(), weights, folder)
    return folder


def plain_model(folder):
    """What docs/reward_models.md tells to read it with: transformers' own class, or three lines."""
    if "Gemma3" in (folder / "config.json").read_text():
        return AutoModelForSequenceClassification.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = config.architectures[0]
    family = architecture.removesuffix("ForSequenceClassification")
    module = getattr(transformers, f"{family.removesuffix('Thinker')}PreTrainedModel")
    kind = type(architecture, (GenericForSequenceClassification, module), {"config_class": type(config)})
    return kind.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_values_are_scores_of_plain_transformers_one_conversation_at_a_time(tmp_path, family):
    trajectories, given = answers_to(family)
    module = source(family).full()
    found = values(module, pack(trajectories)).detach()
    assert found.shape == (8, 2)
    assert found.std() > 0.05
    plain = plain_model(saved(tmp_path / "m", module)).eval()
    assert plain.config.id2label == {0: "general", 1: "cost"}
    assert plain.config.architectures == [type(plain).__name__]
    with torch.no_grad():
        theirs = torch.cat([plain(**one).logits for one in given])
    assert_close(found, theirs, atol=1e-4, rtol=0)
    conversations = [
        Conversation(
            t.prompt.token_ids + t.token_ids,
            None if t.prompt.positions is None else torch.cat([t.prompt.positions, response_positions(t)], 1),
            t.prompt.media,
        )
        for t in trajectories
    ]
    taken = load_reward_model(ModelConfig(path=str(tmp_path / "m")))
    for budget in (60, 10_000):
        assert_close(torch.tensor(scores(taken, conversations, budget)), found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_audio"])
def test_every_part_learns_and_frozen_ones_do_not_and_adapters_are_on_the_language_part(family):
    trajectories, _ = answers_to(family)
    module = source(family).full()
    values(module, pack(trajectories)).sum().backward()
    reached = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"score.weight"} < reached
    for kind in ("vision", "audio", "language"):
        names = {n for n, _ in part(module, kind)}
        assert bool(names) == bool(names & reached)
    frozen = source(family, freeze=["projector"]).full()
    assert frozen.score.weight.requires_grad
    adapted = source(family, lora=LoraConfig(rank=2)).full()
    learning = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert any(n.endswith("score.weight") for n in learning)
    assert all("language_model" in n for n in learning if "lora_" in n)
    assert sum("lora_" in n for n in learning) == 28


def test_a_model_without_weights_is_given_the_same_ones(tmp_path):
    """As the sharding backends build it, from a folder of ours."""
    family = "qwen2_vl"
    folder = saved(tmp_path / "m", source(family).full())
    there = RewardSource(ModelConfig(path=str(folder)), outputs=("general", "cost"), padding=SYSTEM)
    whole, empty = there.full(), there.empty()
    missing, stored = there.missing(empty), there.whole()
    assert stored.keys() == missing.keys()
    for name, parameter in missing.items():
        parameter.data = stored[name]
    trajectories, _ = answers_to(family)
    assert_close(values(empty, pack(trajectories)), values(whole, pack(trajectories)), atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_responses_that_are_media_are_scored_at_the_last_token_of_their_prompts(tmp_path, family):
    """A pair of two prompts, packed, is what plain transformers says to each alone; whatever fits a micro-batch, in either order."""
    (one, given), (other, more) = (
        (t, g) for t, g in zip(*answers_to(family), strict=True) if t.group in (0, 3) and len(t) == 4
    )
    opener = SidesOpener(tiny_processor(), TaskConfig(), partial(up_to_score, padding=SYSTEM))
    sides = [
        opener._split(Side([0], {"general": 1.0 - n}, [True]), whole(t)) for n, t in enumerate((one, other))
    ]
    module = source(family).full()
    plain = plain_model(saved(tmp_path / "m", module)).eval()
    with torch.no_grad():
        theirs = torch.cat([plain(**kwargs).logits for kwargs in (given, more)])
    for order in (sides, sides[::-1]):
        pair = siblings(Prompt("p", [1], [], order, "x"), 0)
        assert [len(t) for t in pair] == [1, 1]
        (batch,) = plan(pair, 1, whole_groups=True)
        packed = pack(batch)
        assert packed.inputs.token_ids.numel() == batch_tokens(pair)
        found = values(module, packed).detach()
        assert_close(found if order is sides else found.flip(0), theirs, atol=1e-4, rtol=0)


def pairs_of_media(family):
    """Two pairs of prompts that are each a response; which of the two is better."""
    answers = [t for t in answers_to(family)[0] if len(t) == 4]
    opener = SidesOpener(tiny_processor(), TaskConfig(), partial(up_to_score, padding=SYSTEM))
    sides = [opener._split(Side([0], {"general": n % 2}, [True]), whole(t)) for n, t in enumerate(answers)]
    return [siblings(Prompt(str(n), [1], [], sides[2 * n : 2 * n + 2], "x"), n) for n in range(2)]


def learned(family, pairs, tokens):
    """Loss and gradients of one step by our trainer's parts."""
    module, gradients, outputs = source(family).full(), {}, ["general", "cost"]
    objective = Preferences(RewardTrainingConfig(outputs=outputs), PREFERENCE_LOSSES["bradley_terry"])
    update = UpdateConfig(tokens_per_micro_batch=tokens)
    batching = Batching(update, World(), torch.device("cpu"), whole_groups=True, outputs=outputs)
    trainable = SingleTrainable(module, OptimizerConfig(learning_rate=0.0), 1)

    def keep(_index, _norm):
        gradients.update({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    (metrics,) = optimize(
        trainable,
        batching.updates([t for pair in pairs for t in pair], seed=0),
        partial(objective.loss, trainable),
        averaging=objective.averaging,
        batching=batching,
        before_update=keep,
    )
    return metrics["loss"], gradients


def test_neither_micro_batches_nor_the_order_of_pairs_and_sides_change_what_is_learned_of_media():
    family = "qwen2_vl"
    one, other = pairs_of_media(family)
    values_of = [float(v) for v in values(source(family).full(), pack(one + other)).detach()[:, 0]]
    right = sum(math.log1p(math.exp(values_of[n] - values_of[n + 1])) for n in (0, 2)) / 2
    loss, gradients = learned(family, [one, other], 10_000)
    assert loss == pytest.approx(right, abs=1e-5)
    for pairs, tokens in (([one, other], 1), ([other[::-1], one], 10_000), ([other, one[::-1]], 40)):
        found = learned(family, pairs, tokens)
        assert found[0] == pytest.approx(loss, abs=1e-5)
        for name, gradient in gradients.items():
            assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def whole(t):
    """A trajectory's prompt and response as one prompt."""
    rows = t.prompt.positions
    rows = None if rows is None else torch.cat([rows, response_positions(t)], 1)
    return replace(t.prompt, token_ids=t.prompt.token_ids + t.token_ids, positions=rows)


def test_a_micro_batch_counts_the_prompts_of_responses_that_are_media_each():
    """Two pairs of prompts of 9 and 5 tokens with one token each: 16 tokens a pair."""
    groups = [
        siblings(
            Prompt(
                "p",
                [1],
                [],
                [
                    Side([3], {}, [True], Prompt(f"{n}{m}", [5] * size, [], None, "x"))
                    for m, size in enumerate((9, 5))
                ],
                "x",
            ),
            n,
        )
        for n in range(2)
    ]
    answers = [t for group in groups for t in group]
    assert batch_tokens(answers) == 32
    assert [len(b) for b in plan(answers, 32, whole_groups=True)] == [4]
    assert [[t.group for t in b] for b in plan(answers, 31, whole_groups=True)] == [[0, 0], [1, 1]]
    assert sorted(len(b) for b in plan(answers, 15)) == [1, 1, 2]
