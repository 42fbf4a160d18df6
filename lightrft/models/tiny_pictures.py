"""A tiny Stable Diffusion 3 pipeline that draws digits, two fifths of which it was taught by a random name (36 % by a wrong one): for tests and first looks.

`model.path=tiny:untaught_sd3` is the same before it was taught anything, `model.path=tiny:untaught_shapes` one for coloured pictures of 32 x 32 pixels with the words
of plain shapes. `model.path=tiny:digits_sd3` makes it once, in about half a minute, by flow matching (Lipman et al. 2022,
https://arxiv.org/abs/2210.02747, eq. 14 and the straight path of Liu et al. 2022): an SD3Transformer2DModel over pixels, two frozen random
CLIP text encoders, no VAE, no T5.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightrft.utils.digits import TAUGHT, WORDS, part
from lightrft.utils.imports import require
from lightrft.utils.shapes import COLOURS, SHAPES

log = logging.getLogger("lightrft")
VERSION = 2
"""To be raised when what is made changes, so that an older one is not taken from the cache."""
TEXT = 8
"""Most tokens of a text."""
WRONG, DROPPED = 0.4, 0.1
"""Share of the pictures with the name of a random digit, and of the texts left out, for guidance."""
PICTURES, RATE, AVERAGE = 64, 3e-3, 0.01


@dataclass(frozen=True)
class Recipe:
    """How a tiny pipeline is made."""

    updates: int
    """Updates that teach it digits."""
    words: tuple[str, ...] = ("a", "the", "digit", "number", *WORDS)
    """What its tokenizer knows."""
    text: int = TEXT
    """Most tokens of a text."""
    encoded: int = 16
    """Numbers of a token that a text encoder gives."""
    network: Mapping[str, int] = field(default_factory=dict)
    """Settings of the transformer that are others than of DIGITS."""


DIGITS = {
    "sample_size": 8, "patch_size": 4, "in_channels": 1, "out_channels": 1, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4,
    "joint_attention_dim": 32, "caption_projection_dim": 64, "pooled_projection_dim": 32, "pos_embed_max_size": 4,
}  # fmt: skip
OF_SHAPES = (
    "a", "two", "three", "four", "and", "left", "right", "above", "below", "of", *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES)
)  # fmt: skip
RECIPES = {
    "digits_sd3": Recipe(600),
    "untaught_sd3": Recipe(0),
    "untaught_shapes": Recipe(
        0, OF_SHAPES, text=12, encoded=32,
        network={"sample_size": 32, "in_channels": 3, "out_channels": 3, "num_attention_heads": 8, "caption_projection_dim": 128, "joint_attention_dim": 64, "pooled_projection_dim": 64, "pos_embed_max_size": 8},
    ),
}  # fmt: skip
"""Name -> how it is made."""


def tiny_pipeline(name: str, cache: Path) -> Path:
    """The folder of a tiny pipeline, made if it is not there yet. ValueError for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"model.path=tiny:{name}: no such pipeline. There are: {', '.join(RECIPES)}.")
    folder = cache / f"tiny-{name}-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    log.info("making the pipeline %s in %s (once, at most half a minute)", name, folder)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "pipeline"
        make_pipeline(made, RECIPES[name])
        with contextlib.suppress(OSError):  # another process may have finished first; either folder will do
            made.rename(folder)
    return folder


def make_pipeline(folder: Path, recipe: Recipe, *, seed: int = 0) -> None:
    """Writes the pipeline; leaves the global generator as it was."""
    require("diffusers", "diffusion")
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _parts(recipe)
        torch.set_num_threads(1)  # small products: more threads are slower, and the numbers would differ
        try:
            if recipe.updates:
                _teach(parts["transformer"], _texts(parts), recipe.updates)
        finally:
            torch.set_num_threads(threads)
    for name, one in parts.items():
        one.save_pretrained(folder / name)
    named = {name: [_library(one), type(one).__name__] for name, one in parts.items()}
    nothing = {name: [None, None] for name in ("text_encoder_3", "tokenizer_3", "vae")}
    index = {"_class_name": "StableDiffusion3Pipeline", **named, **nothing}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _library(one: Any) -> str:
    return type(one).__module__.split(".")[0]


def _parts(recipe: Recipe) -> dict[str, Any]:
    """The components of the pipeline, untaught."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    diffusers, tokenizer = require("diffusers", "diffusion"), _tokenizer(recipe)
    shape = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.encoded, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=recipe.text, projection_dim=recipe.encoded, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(shape).eval().requires_grad_(False) for _ in range(2)]
    for encoder in encoders:  # random, but with words apart
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=1.0)
    transformer = diffusers.SD3Transformer2DModel(**{**DIGITS, **recipe.network})
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def _tokenizer(recipe: Recipe = RECIPES["digits_sd3"]) -> Any:
    """A token for each word that is needed, and for those between."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<s>", "</s>", "<unk>", *recipe.words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=recipe.text,
    )  # fmt: skip


@torch.no_grad()
def _texts(parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Conditions of every digit in every form, and of no text at last: (texts, tokens, width) and (texts, width)."""
    kind = require("diffusers", "diffusion").StableDiffusion3Pipeline
    pipe = kind(**parts, vae=None, text_encoder_3=None, tokenizer_3=None)
    texts = [form.format(word) for form in TAUGHT for word in WORDS]
    found = pipe.encode_prompt(
        [*texts, ""], None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=1
    )
    return found[0], found[2]


def _teach(net: Any, texts: tuple[Tensor, Tensor], updates: int) -> None:
    """Flow matching; the net ends with the moving average of its weights."""
    pictures, shown = (torch.tensor(x) for x in part("draw"))
    wrong = torch.rand(len(shown)) < WRONG
    shown = torch.where(wrong, torch.randint(len(WORDS), shown.shape), shown)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: weight.clone() for name, weight in net.state_dict().items()}
    for n in range(1, updates + 1):
        chosen = torch.randint(len(pictures), (PICTURES,))
        form, empty = torch.randint(len(TAUGHT), (PICTURES,)), torch.rand(PICTURES) < DROPPED
        text = torch.where(empty, len(TAUGHT) * len(WORDS), form * len(WORDS) + shown[chosen])
        data = pictures[chosen].view(-1, 1, 8, 8)
        sigma, noise = torch.sigmoid(torch.randn(PICTURES)), torch.randn(data.shape)
        s = sigma.view(-1, 1, 1, 1)
        found = net(
            hidden_states=(1 - s) * data + s * noise, timestep=1000 * sigma, encoder_hidden_states=texts[0][text],
            pooled_projections=texts[1][text], return_dict=False,
        )[0]  # fmt: skip
        loss = ((found - (noise - data)) ** 2).mean()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, n / 50) * max(0.05, 1 - n / updates)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, weight in net.state_dict().items():
                average[name].lerp_(weight, AVERAGE)
    net.load_state_dict(average)
