"""Log-probs and responses of masked diffusion language models against slow plain Python over transformers' own class."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from lightrft.models.canvases import Reading
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout
from lightrft.types import Sampling
from lightrft.utils.seeding import derive_seed
from tests.masked import MASK, Plain, as_oracle, made, prompts, settings

WAYS = [
    {},
    {"tokens_per_step": 2, "block": 4},
    {"tokens_per_step": 2, "block": 4, "context": "blocks", "order": "entropy"},
    {"tokens_per_step": 3, "order": "margin", "predicts": "next"},
    {"order": "left"},
    {"order": "random", "tokens_per_step": 2},
    {"order": "sampled", "block": 3, "tokens_per_step": 2},
    {"threshold": 0.01, "block": 3},
]


def sampled(kind, engine, *, n=2, seed=5, **given):
    options = kind.config.rollout
    sampling = Sampling(
        n=n, max_tokens=options.max_tokens, temperature=options.temperature, seed=seed, **given
    )
    groups = rollout(engine, prompts(kind), sampling, kind.processor)
    return [t for group in groups for t in group]


def found(kind, module, answers):
    batch = pack(answers, layout=kind.layout)
    return kind.logprobs(module, batch, kind.config)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_path_is_what_the_definition_says_and_what_the_engine_said(way):
    kind, module, engine = made(settings(temperature=1.3, max_tokens=7, **way), torch.float64)
    answers = sampled(kind, engine)
    values = found(kind, module, answers).values
    oracle = [x for t in answers for x in as_oracle(Plain(module), t, kind.config.rollout.unmask, 1.3)]
    assert values.tolist() == pytest.approx(oracle, abs=1e-10)
    assert [x for t in answers for x in t.behavior] == pytest.approx(oracle, abs=1e-10)
    assert all(token != MASK for t in answers for token in t.token_ids)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_mean_field_reads_a_canvas_of_masks_once(share):
    kind, module, engine = made(settings(likelihood="mean_field", prompt_mask=share), torch.float64)
    answers = sampled(kind, engine)
    plain, values = Plain(module), found(kind, module, answers).values.tolist()
    assert len(kind.layout(answers, True).prompt_spans) == len(answers)
    for t in answers:
        draw = random.Random(derive_seed(t.stream, "prompt"))
        prompt = [MASK if draw.random() < share else token for token in t.prompt.token_ids]
        logp = plain(prompt + [MASK] * len(t)).log_softmax(-1)
        oracle = [float(logp[len(prompt) + i, token]) for i, token in enumerate(t.token_ids)]
        assert values[: len(t)] == pytest.approx(oracle, abs=1e-10)
        assert t.behavior == pytest.approx(oracle, abs=1e-10)
        values = values[len(t) :]


def test_the_bound_is_the_mean_over_its_draws():
    kind, module, engine = made(settings(likelihood="elbo", draws=3), torch.float64)
    answers = sampled(kind, engine)
    plain, values = Plain(module), found(kind, module, answers).values.tolist()
    for t in answers:
        oracle = [0.0] * len(t)
        for number in range(3):
            draw = random.Random(derive_seed(t.stream, "elbo", number))
            k = 1 + int(draw.random() * len(t))
            keys = [draw.random() for _ in t.token_ids]
            masked = {i for i in range(len(t)) if sum(key < keys[i] for key in keys) < k}
            row = [MASK if i in masked else token for i, token in enumerate(t.token_ids)]
            logp = plain(t.prompt.token_ids + row).log_softmax(-1)
            for i in masked:
                oracle[i] += len(t) / k / 3 * float(logp[len(t.prompt.token_ids) + i, t.token_ids[i]])
        assert values[: len(t)] == pytest.approx(oracle, abs=1e-10)
        assert t.behavior == pytest.approx(oracle, abs=1e-10)
        values = values[len(t) :]


def test_the_bound_has_no_bias():
    """The mean over many responses' masks is the exact expectation over all subsets, within three standard errors."""
    kind, module, engine = made(settings(likelihood="elbo", draws=1, max_tokens=3))
    t = sampled(kind, engine, n=1)[0]
    plain, prompt = Plain(module), t.prompt.token_ids
    exact = 0.0
    for bits in range(1, 8):
        masked = [i for i in range(3) if bits >> i & 1]
        row = [MASK if i in masked else token for i, token in enumerate(t.token_ids)]
        logp = plain(prompt + row).log_softmax(-1)
        k = len(masked)
        ways = math.comb(3, k)
        exact += sum(float(logp[len(prompt) + i, t.token_ids[i]]) for i in masked) * 3 / k / ways / 3
    copies = [replace(t, stream=key) for key in range(400)]
    draws = found(kind, module, copies).values.view(400, 3).sum(1)
    assert abs(float(draws.mean()) - exact) < 3 * float(draws.std()) / 20


def slow_sampler(plain, prompt, size, options):
    """Greedy unmasking by confidence, block by block, as LLaDA's page of code has it: a token at a time."""
    canvas, steps, step = [MASK] * size, [-1] * size, 0
    block = options.block or size
    for start in range(0, size, block):
        end = min(start + block, size)
        while MASK in canvas[start:end]:
            seen = size if options.context == "canvas" else end
            p = plain(prompt + canvas[:seen])[len(prompt) :].softmax(-1)
            open_now = [i for i in range(start, end) if canvas[i] == MASK]
            ranked = sorted(open_now, key=lambda i: -float(p[i].max()))
            for i in ranked[: options.tokens_per_step]:
                canvas[i], steps[i] = int(p[i].argmax()), step
            step += 1
        if 256 in canvas[:end]:
            return canvas[:end], steps[:end]
    return canvas, steps


@pytest.mark.parametrize("context", ["canvas", "blocks"])
def test_without_temperature_the_engine_unmasks_as_the_slow_sampler_does(context):
    config = settings(max_tokens=10, tokens_per_step=2, block=4, context=context)
    kind, module, engine = made(config, torch.float64)
    asked = prompts(kind)
    answers = engine.generate(asked, Sampling(n=1, max_tokens=10, temperature=0.0))
    for prompt, (one,) in zip(asked, answers, strict=True):
        tokens, steps = slow_sampler(Plain(module), prompt.token_ids, 10, config.rollout.unmask)
        assert (one.token_ids, one.states[:, 0].tolist()) == (tokens, steps)
        assert one.finish == ("stop" if 256 in tokens else "length")


@pytest.mark.extended
def test_blocks_are_revealed_as_the_pipeline_of_diffusers_reveals_them():
    """LLaDA2Pipeline divides prompt and response together, so prompts here are whole blocks long."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    config = settings(max_tokens=8, tokens_per_step=2, block=4, context="blocks", threshold=0.012)
    kind, module, engine = made(config)
    asked = [p for p in prompts(kind, ["a", "bcdef", "ghijk"]) if len(p.token_ids) % 4 == 0]
    assert asked
    pipe = LLaDA2Pipeline(
        Plain(module, dtype=torch.float32).model, BlockRefinementScheduler(), kind.processor.tokenizer
    )
    pipe.set_progress_bar_config(disable=True)
    for prompt in asked:
        (one,) = engine.generate([prompt], Sampling(n=1, max_tokens=8, temperature=0.0, ignore_eos=True))[0]
        ids = pipe(
            input_ids=torch.tensor([prompt.token_ids]), gen_length=8, block_length=4, num_inference_steps=2, threshold=0.012,
            editing_threshold=None, eos_early_stop=False, mask_token_id=MASK, output_type="seq",
        ).sequences  # fmt: skip
        assert one.token_ids == ids[0].tolist()[-8:]


def test_a_prediction_reads_nothing_that_its_step_had_not_revealed():
    kind, module, engine = made(settings(tokens_per_step=2), torch.float64)
    t = sampled(kind, engine, n=1)[0]
    before = found(kind, module, [t]).values
    last = int(t.states[:, 0].argmax())
    t.token_ids = [*t.token_ids]
    t.token_ids[last] = (t.token_ids[last] + 1) % 256
    after = found(kind, module, [t]).values
    others = [i for i in range(len(t)) if i != last]
    assert torch.equal(before[others], after[others])
    assert before[last] != after[last]
    assert Reading(kind.config.rollout.unmask, MASK).most_rows(6) == 3
