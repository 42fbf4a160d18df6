"""Each row of FAMILIES against the pipeline of diffusers that it stands for, whole but tiny."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.config import Config, DenoiseConfig, LoraConfig, ModelConfig, RolloutConfig, TaskConfig
from lightrft.engines.denoise import normals
from lightrft.engines.sampling import stream
from lightrft.models.blocks import blocks
from lightrft.models.denoisers import FAMILIES, packed, unpacked
from lightrft.models.lora import is_adapted, merged_adapters, plain_state
from lightrft.models.pictures import Pictures
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout
from lightrft.types import Sampling
from tests.pipelines import (
    flux_pipeline,
    made,
    prompts,
    qwen_pipeline,
    sd3_pipeline,
    sd_pipeline,
    sdxl_pipeline,
    wan_pipeline,
)

WORDS = ("the digit five", "a two")
DDIM = {"noise": "ddim", "level": 1.0, "max_text_tokens": 256}
PIPELINES = {
    "sd3": (sd3_pipeline, {"guidance": 1.0}),
    "flux dev": (flux_pipeline, {"guidance": 3.5}),
    "flux schnell": (lambda: flux_pipeline(guidance_embeds=False), {"guidance": 1.0}),
    "qwen-image": (qwen_pipeline, {"guidance": 1.0, "max_text_tokens": 48}),
    "qwen-image guided": (qwen_pipeline, {"guidance": 3.0, "max_text_tokens": 48}),
    "wan": (wan_pipeline, {"guidance": 4.0, "frames": 5}),
    "wan, a picture": (wan_pipeline, {"guidance": 1.0}),
    "sd": (sd_pipeline, {"guidance": 7.5, **DDIM}),
    "sd by v": (lambda: sd_pipeline(prediction_type="v_prediction"), {"guidance": 1.0, **DDIM}),
    "sdxl": (sdxl_pipeline, {"guidance": 5.0, **DDIM, "height": 16, "width": 24}),
}
"""Name -> what makes it, and how it is drawn with."""
CALLS = {
    "qwen-image": {"true_cfg_scale": 1.0},
    "wan": {"guidance_scale": 4.0, "num_frames": 5},
    "wan, a picture": {"guidance_scale": 1.0, "num_frames": 1},
    "qwen-image guided": {"true_cfg_scale": 3.0, "negative_prompt": ""},
}
"""What its pipeline calls that, where that is not guidance_scale."""


@pytest.fixture(scope="module", params=PIPELINES)
def drawn(request, tmp_path_factory):
    """Name, folder, kind, module and engine of each pipeline."""
    make, denoise = PIPELINES[request.param]
    folder = tmp_path_factory.mktemp("pipeline") / "saved"
    make().save_pretrained(folder)
    kind, module, engine = made_of(folder, **denoise)
    return request.param, folder, kind, module, engine


def made_of(folder, lora=LoraConfig(), **denoise):  # noqa: B008  # it is frozen
    plain = {"steps": 4, "max_text_tokens": 8, "likelihood": "sum", "height": 16, "width": 16}
    options = RolloutConfig(engine="denoise", denoise=DenoiseConfig(**{**plain, **denoise}))
    model = ModelConfig(path=str(folder), lora=lora)
    config = Config(model=model, rollout=options, tasks=TaskConfig(train={"digits": 1.0}))
    return made(config)


def test_without_noise_on_the_way_a_picture_is_that_of_the_pipeline(drawn):
    """Latents within 1e-5 of the largest number, pixels within one level of 255."""
    import diffusers

    name, folder, kind, module, engine = drawn
    plain = diffusers.DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    found = engine.generate(prompts(kind, WORDS), Sampling(n=1, temperature=0.0, seed=3))
    options = kind.config.rollout.denoise
    for place, text in enumerate(WORDS):
        first = normals(torch.tensor([stream(3, place, 0)]), 0, kind.processor.shape)
        given = {
            "prompt": text, "num_inference_steps": 4, "height": options.height, "width": options.width,
            "latents": layout(name)(first), **CALLS.get(name, {"guidance_scale": options.guidance}),
        }  # fmt: skip
        if "max_sequence_length" in inspect.signature(plain.__call__).parameters:
            given["max_sequence_length"] = options.max_text_tokens
        latent = plain(**given, output_type="latent")[0]
        x, conditions = first, prompts(kind, WORDS)[place].media
        with torch.no_grad():
            for step in range(4):
                x = engine._plain.exact(module, x, torch.tensor([step]), conditions)
        torch.testing.assert_close(
            layout(name)(x), latent, rtol=0, atol=1e-5 * max(1, latent.abs().max().item())
        )
        theirs = torch.tensor(plain(**given, output_type="np")[0][0] * 255).round()
        ours = found[place][0].made
        assert (torch.tensor(ours.get("clip", ours["image"])).float() - theirs).abs().max() <= 1


def layout(name):
    """State -> how its pipeline lays it out."""
    return packed if name.startswith(("flux", "qwen")) else lambda x: x


def test_the_trainer_gives_each_step_the_log_prob_it_was_drawn_with_and_a_gradient_to_all_weights(drawn):
    _, _, kind, module, engine = drawn
    answers = [
        t
        for group in rollout(engine, prompts(kind, WORDS), Sampling(n=2, seed=1), kind.processor)
        for t in group
    ]
    batch = pack(answers, layout=kind.layout)
    found = kind.logprobs(module, batch, kind.config).values
    torch.testing.assert_close(found, batch.behavior, rtol=0, atol=2e-3)
    found.sum().backward()
    idle = [p for p in module.parameters() if p.grad is None or not p.grad.any()]
    module.zero_grad()
    last = {id(p) for p in blocks(module)[-1].parameters()}  # what it makes of the text is read by nobody
    assert all(id(p) in last for p in idle)
    assert len(idle) < len(last) / 2


def test_what_is_sharded_are_blocks_that_are_not_in_each_other(drawn):
    _, _, kind, _, _ = drawn
    whole = kind.source(learns=False).empty()
    found = blocks(whole)
    inside = [{id(p) for p in block.parameters()} for block in found]
    assert len(found) >= 2
    assert sum(len(one) for one in inside) == len(set().union(*inside))
    assert sum(p.numel() for block in found for p in block.parameters()) > 0.5 * sum(
        p.numel() for p in whole.parameters()
    )


def test_adapters_learn_beside_the_network_and_the_folder_holds_the_merged_weights(drawn, tmp_path):
    """Loaded by diffusers, it predicts what the adapted network does; with adapters off that is what it began with."""
    import diffusers

    name, folder, plain, before, engine = drawn
    kind, module, _ = made_of(folder, LoraConfig(rank=2), **PIPELINES[name][1])
    learns = {n for n, p in module.named_parameters() if p.requires_grad}
    assert is_adapted(module)
    assert all(".lora_" in n for n in learns)
    with torch.no_grad():
        for n, p in module.named_parameters():
            if n in learns:
                p.add_(0.05 * torch.randn_like(p))
    answers = [
        t for group in rollout(engine, prompts(plain, WORDS), Sampling(n=1), plain.processor) for t in group
    ]
    batch = pack(answers, layout=kind.layout)

    def logprobs(of):
        with torch.no_grad():
            return kind.logprobs(of, batch, kind.config).values

    with module.disable_adapter():
        torch.testing.assert_close(logprobs(module), logprobs(before))
    assert (logprobs(module) - logprobs(before)).abs().max() > 1e-2
    with merged_adapters(module):
        kind.write(module, plain_state(module).items(), tmp_path / "model")
    loaded = getattr(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model"), kind.pipeline.learns)
    torch.testing.assert_close(logprobs(loaded), logprobs(module), rtol=1e-5, atol=1e-3)


def test_a_packed_state_comes_back():
    x = torch.randn(2, 4, 6, 8)
    assert packed(x).shape == (2, 12, 16)
    assert torch.equal(unpacked(packed(x), x), x)


def test_every_row_has_a_pipeline_here():
    rows = {
        type(make().components.get("transformer") or make().components["unet"]).__name__
        for make, _ in PIPELINES.values()
    }
    assert rows == set(FAMILIES)


def test_adapters_of_layers_that_are_not_there_are_refused_before_weights(drawn):
    _, _, kind, _, _ = drawn
    model = dataclasses.replace(kind.config.model, lora=LoraConfig(rank=2, targets=["q_proj"]))
    with pytest.raises(ValueError, match=r"model\.lora\.targets: no layer of the model is called 'q_proj'"):
        Pictures.of(dataclasses.replace(kind.config, model=model))


def test_adapters_of_what_is_not_linear_are_refused_with_names_of_what_is(drawn):
    _, _, kind, module, _ = drawn
    convolutions = [n for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)]
    for name in convolutions[:1]:  # FLUX and Qwen-Image have none
        model = dataclasses.replace(kind.config.model, lora=LoraConfig(rank=2, targets=[name]))
        with pytest.raises(ValueError, match=f"'{name}' is of type Conv") as told:
            Pictures.of(dataclasses.replace(kind.config, model=model))
        cure = re.search(r"Name those, e\.g\. (\S+) (\S+), or take", str(told.value))
        assert cure is not None
        named = dataclasses.replace(kind.config.model, lora=LoraConfig(rank=2, targets=list(cure.groups())))
        Pictures.of(dataclasses.replace(kind.config, model=named))
