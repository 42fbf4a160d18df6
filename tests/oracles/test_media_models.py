"""Every family that sees or hears, packed with shared prompts, against one plain forward pass of the unmodified model.

Media here are the tensors that a family's processor would make; what processors make is tested in test_media_readers.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.families import (
    attention_of,
    has_position_rows,
    placeholders,
    position_rows,
    stored_media,
)
from lightrft.models.logprobs import logprobs
from lightrft.models.tiny import tiny_config, tiny_model
from lightrft.models.tiny_media import AUDIO, BEGIN, FINISH, IMAGE, MEDIA
from lightrft.trainer.batching import pack
from lightrft.types import Prompt, Sampling, Trajectory

SOUND = {"input_features": (32, 200), "feature_attention_mask": (200,)}
PATCHES = {"pixel_values": (16, 3 * 2 * 14 * 14)}
TENSORS: dict[str, tuple[dict[str, tuple[int, ...]], int]] = {
    "llava": ({"pixel_values": (3, 28, 28)}, 16),
    "gemma3_vl": ({"pixel_values": (3, 56, 56)}, 4),
    "idefics3": ({"pixel_values": (3, 28, 28), "pixel_attention_mask": (28, 28)}, 4),
    "smolvlm": ({"pixel_values": (3, 28, 28), "pixel_attention_mask": (28, 28)}, 4),
    "internvl": ({"pixel_values": (3, 28, 28)}, 4),
    "mistral3": ({"pixel_values": (3, 56, 56)}, 4),
    "qwen2_vl": (PATCHES, 4),
    "qwen2_5_vl": (PATCHES, 4),
    "qwen3_vl": ({"pixel_values": (16, 3 * 2 * 16 * 16)}, 4),
    "qwen2_audio": (SOUND, 50),
    "qwen2_5_omni_thinker": (SOUND, 50),
    "qwen2_5_omni_thinker, pictures": (PATCHES, 4),
    "granite_speech": ({"input_features": (40, 160), "input_features_mask": (9,)}, 9),
}
"""Family -> shape of each tensor of one medium, and the tokens it takes. Omni sees and hears, in turn."""


def name_of(case):
    return case.split(",")[0]


def encoded(family, count, draw):
    """What a processor returns for `count` media, beside the tokens."""
    shapes, _ = TENSORS[family]
    found = {}
    for name, shape in shapes.items():
        if name.endswith("mask"):
            found[name] = torch.ones(count, *shape, dtype=torch.long)
        else:
            found[name] = torch.randn(count, *shape, generator=draw)
    if family in ("granite_speech", "idefics3", "smolvlm"):
        found = {name: value.bool() if name.endswith("mask") else value for name, value in found.items()}
    if family in ("idefics3", "smolvlm"):
        found = {name: value[None] for name, value in found.items()}
    if family == "mistral3":
        found["image_sizes"] = torch.tensor([[56, 56]] * count)
    if shapes.get("pixel_values", (0,))[0] == 16:  # patches of a picture
        found["pixel_values"] = found["pixel_values"].flatten(0, 1)
        found["image_grid_thw"] = torch.tensor([[1, 4, 4]] * count)
    return found


def question(family, count, length, seed):
    """A prompt with `count` media between words, as tokens, tensors and positions; and what the model takes by itself."""
    draw = torch.Generator().manual_seed(seed)
    mark = AUDIO if "input_features" in TENSORS[family][0] else IMAGE
    token_ids = torch.randint(1, 255, (length,), generator=draw).tolist()
    for _ in range(count):
        token_ids += [BEGIN, *[mark] * TENSORS[family][1], FINISH, 65]
    config, found = tiny_config(name_of(family)), encoded(family, count, draw) if count else {}
    body = tiny_model(name_of(family)).model
    rows = position_rows(body, token_ids, found) if has_position_rows(body) else None
    media = stored_media(config, found)
    return Prompt(str(seed), token_ids, [], None, "test", positions=rows, media=media), found


def alone(family, token_ids, found):
    """Keyword arguments of a plain forward pass: no positions, the model finds them itself."""
    ids = torch.tensor([token_ids])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **found}
    if found and family.endswith("_vl"):
        kinds = (ids == IMAGE).long()
        given["token_type_ids" if family == "gemma3_vl" else "mm_token_type_ids"] = kinds
    return given


def answers_to(family):
    """Two answers to questions with one, no, two and three media; and each one's plain arguments."""
    draw, trajectories, plain = torch.Generator().manual_seed(9), [], []
    for group, (count, length) in enumerate([(1, 5), (0, 7), (2, 3), (3, 30)]):
        prompt, found = question(family, count, length, seed=group)
        for size in (4, 11):
            token_ids = torch.randint(1, 255, (size,), generator=draw).tolist()
            trajectories.append(Trajectory(prompt, group, token_ids, [True] * size, [0.0] * size, "stop"))
            plain.append(alone(family, prompt.token_ids + token_ids, found))
    return trajectories, plain


def packed_model(family):
    return tiny_model(name_of(family), attention=attention_of(tiny_config(name_of(family))))


def separately(model, trajectories, plain, never):
    values = []
    for t, given in zip(trajectories, plain, strict=True):
        logits = model(**given, use_cache=False).logits[0, len(t.prompt.token_ids) - 1 : -1]
        logits = logits.index_fill(1, torch.tensor(never), -torch.inf)
        values.append(logits.log_softmax(-1).gather(1, torch.tensor(t.token_ids)[:, None])[:, 0])
    return torch.cat(values)


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("family", TENSORS)
def test_packed_answers_about_media_are_those_of_separate_forward_passes(family, share_prompts):
    trajectories, plain = answers_to(family)
    ours, theirs = packed_model(family), tiny_model(name_of(family))
    assert ours.config.get_text_config()._attn_implementation == ATTENTION
    never = placeholders(ours.config)
    expected = separately(theirs, trajectories, plain, never)
    batch = pack(trajectories, share_prompts=share_prompts)
    found = logprobs(ours, batch, temperature=1.0, max_logits=1000).values
    assert_close(found, expected, atol=1e-5, rtol=0)
    (found * torch.cos(torch.arange(len(found)))).sum().backward()
    (expected * torch.cos(torch.arange(len(found)))).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None, name
        else:
            assert mine.grad is not None, name
            scale = other.grad.abs().max().clamp(min=1e-2)
            assert_close(
                mine.grad / scale, other.grad / scale, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", TENSORS)
def test_every_part_of_the_model_learns_from_an_answer_about_media(family):
    trajectories, _ = answers_to(family)
    model = packed_model(family)
    logprobs(model, pack(trajectories), temperature=1.0, max_logits=1000).values.sum().backward()
    reached = {
        name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    unasked = {"qwen2_5_omni_thinker": {"visual"}, "qwen2_5_omni_thinker, pictures": {"audio_tower"}}
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == reached | unasked.get(
        family, set()
    )


def test_every_family_that_ships_is_tested_here():
    assert {name_of(case) for case in TENSORS} == set(MEDIA)


@pytest.mark.parametrize("family", TENSORS)
def test_another_picture_or_sound_changes_only_the_answers_about_it(family):
    trajectories, _ = answers_to(family)
    model = packed_model(family)
    with torch.no_grad():
        before = logprobs(model, pack(trajectories), temperature=1.0, max_logits=1000).values
        for value in trajectories[0].prompt.media.values():
            if value.is_floating_point():
                value.neg_()
        after = logprobs(model, pack(trajectories), temperature=1.0, max_logits=1000).values
    about = len(trajectories[0]) + len(trajectories[1])
    assert (before[:about] != after[:about]).any()
    assert_close(before[about:], after[about:], atol=1e-6, rtol=0)


def engine_of(family):
    return NativeEngine(
        packed_model(family), frozenset(), lambda tokens: "", NativeEngineConfig(prefill_tokens=64)
    )


@pytest.mark.parametrize("family", TENSORS)
def test_greedy_answers_about_media_are_those_of_transformers_generate(family):
    asked = [question(family, count, 4 + count, seed=count) for count in (1, 0, 2)]
    answers = engine_of(family).generate(
        [prompt for prompt, _ in asked], Sampling(n=1, max_tokens=12, temperature=0, ignore_eos=True)
    )
    reference = tiny_model(name_of(family))
    for (prompt, found), (answer,) in zip(asked, answers, strict=True):
        given = alone(family, prompt.token_ids, found)
        text = reference.generate(
            **given,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=placeholders(reference.config),
        )
        assert answer.token_ids == text[0, len(prompt.token_ids) :].tolist()


@pytest.mark.parametrize("family", TENSORS)
def test_the_engine_and_the_trainer_agree_about_answers_to_media(family):
    prompts = [question(family, count, 4 + count, seed=count)[0] for count in (1, 0, 2, 1)]
    sampling = Sampling(n=3, max_tokens=20, temperature=0.8, seed=3, ignore_eos=True)
    drawn = engine_of(family).generate(prompts, sampling)
    trajectories = [
        Trajectory(p, g, c.token_ids, [True] * len(c.token_ids), c.logprobs, "length")
        for g, (p, completions) in enumerate(zip(prompts, drawn, strict=True))
        for c in completions
    ]
    never = set(placeholders(tiny_config(name_of(family))))
    assert not any(never & set(t.token_ids) for t in trajectories)
    batch = pack(trajectories)
    with torch.no_grad():
        found = logprobs(packed_model(family), batch, temperature=0.8, max_logits=1000).values
    assert_close(found, batch.behavior, atol=1e-4, rtol=0)
