"""Whether the files of a pipeline's parts are all there: looked at by their names, before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What files of weights are called before their endings, by diffusers and by transformers."""
ENDINGS = ("safetensors", "bin")
VARIANT = re.compile(rf"({'|'.join(STEMS)})\.([a-z0-9]+)(-\d+-of-\d+)?\.({'|'.join(ENDINGS)})")
"""Files of weights that load only where their variant, such as fp16, is asked for."""
AGAIN = "Is the download complete?"


def check_files(folder: Path, index: Mapping[str, Any], learns: str, told: str) -> None:
    """ValueError, beginning with `told`, for weights or a vocabulary that model_index.json names and the folder lacks.

    A tokenizer would otherwise be made without its words, and say nothing.
    """
    for part, said in index.items():
        if not (isinstance(said, list) and any(said)):
            continue
        if part == learns or part.startswith(("text_encoder", "vae")):
            _check_weights(folder / part, told)
        elif part.startswith("tokenizer"):
            _check_words(folder / part, said[1], told)


def _check_weights(folder: Path, told: str) -> None:
    files = {file.name for file in folder.iterdir()}
    if "config.json" not in files:
        raise ValueError(f"{told}{folder.name} has no config.json. {AGAIN}")
    plain = [f"{stem}.{ending}" for stem in STEMS for ending in ENDINGS]
    indices = [f"{name}.index.json" for name in plain if f"{name}.index.json" in files]
    for name in indices:
        lacking = sorted(_named(folder / name, told) - files)
        if lacking:
            raise ValueError(f"{told}{folder.name} lacks {lacking[0]}, which its {name} names. {AGAIN}")
    if indices or files.intersection(plain):
        return
    variants = sorted({found[2] for file in files if (found := VARIANT.fullmatch(file))})
    if variants:
        raise ValueError(
            f"{told}{folder.name} has weights only as variant {variants[0]}. Load the folder once with "
            f'DiffusionPipeline.from_pretrained(FOLDER, variant="{variants[0]}"), and name what its save_pretrained(NEW_FOLDER) writes.'
        )
    raise ValueError(f"{told}{folder.name} has no file of weights, such as {plain[0]}. {AGAIN}")


def _named(index: Path, told: str) -> set[str]:
    """The files that an index of weights names."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{told}{index.parent.name}/{index.name} cannot be read ({error!r}). {AGAIN}"
        ) from error


def _check_words(folder: Path, kind: str, told: str) -> None:
    known: Mapping[str, str] = getattr(getattr(transformers, kind, None), "vocab_files_names", {})
    whole = known.get("tokenizer_file")
    apart = [name for what, name in known.items() if what != "tokenizer_file"]
    there = {file.name for file in folder.iterdir()}
    if known and whole not in there and not (apart and there.issuperset(apart)):
        choices = " or ".join(filter(None, (whole, " with ".join(apart))))
        raise ValueError(f"{told}{folder.name}, a {kind}, has no words: it needs {choices}. {AGAIN}")
