"""What a model folder holds, decided once before any weight loads: every reader obeys it, or the folder is refused by name.

transformers, our own reader of files (models/weights.py) and `lightrft export` would else read some folders differently.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
NARROW = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "F4")
"""Types of numbers that mean nothing without their scales."""
HEAD = "lm_head.weight"
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""What every reader of transformers is told: else it asks on the terminal whether to run a folder's code, and waits."""
CODE = (
    "LightRFT runs no code of a model folder. Take a model that transformers knows, or one converted for it."
)


def check_folder(folder: Path) -> None:
    """ValueError naming the folder and the cure if its files could be read in two ways, or hold no plain weights."""
    stamp = tuple(
        sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in folder.iterdir() if f.is_file())
    )
    told = _problem(folder, stamp)
    if told is not None:
        raise ValueError(f"model.path={folder}: {told}")


@lru_cache(maxsize=32)
def _problem(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str | None:
    """What is wrong with a folder whose files have this stamp."""
    names = {name for name, _, _ in stamp}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"config.json cannot be read ({error})."
    if not isinstance(config, dict):
        return "config.json holds no settings."
    return _of_settings(names, config) or (
        _of_tensors(folder, config) if SINGLE in names or INDEX in names else None
    )


def _of_settings(names: set[str], config: dict[str, Any]) -> str | None:
    """What the settings of a folder, or the names of its files, say against learning from it."""
    if ADAPTER in names:
        return (
            f"the folder holds a model and an adapter ({ADAPTER}), and some readers would leave the adapter out. Merge it first "
            "(peft: merge_and_unload, save_pretrained), or remove the adapter's files."
        )
    if config.get("quantization_config") or config.get("text_config", {}).get("quantization_config"):
        found = config.get("quantization_config") or config["text_config"]["quantization_config"]
        kind = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        return f"its weights are quantised ({kind}), and a policy learns in plain ones. Take the model in bfloat16 or float32."
    if _needs_code(config):
        return f"it needs code of its own (auto_map; model_type {config.get('model_type')!r} is none that transformers has), and {CODE}"
    if SINGLE in names and INDEX in names:
        return f"the folder holds both {SINGLE} and {INDEX}: two saves, and readers differ in which they take. Remove the older one."
    return None


def why(error: Exception) -> str:
    """What transformers says against reading a folder; its advice to run a stranger's code is not ours."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return f"it needs code of its own (auto_map), and {CODE}"
    return str(error)


def _needs_code(config: dict[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING

    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING


def _of_tensors(folder: Path, config: dict[str, Any]) -> str | None:
    """What is wrong with the files of weights, by their headers; of two matrices that should be one, by their numbers."""
    from safetensors import SafetensorError, safe_open

    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is no dictionary
                    places[name] = file
                    kind = opened.get_slice(name).get_dtype()
                    if kind in NARROW:
                        return f"{name} holds numbers of type {kind}, which are quantised weights. Take the model in bfloat16 or float32."
        except SafetensorError:
            return None  # whoever reads the weights says what is wrong with the file
    embedding = next(
        (name for name in places if name.endswith("embed_tokens.weight") and "visual" not in name), None
    )
    if not _tied(config) or HEAD not in places or embedding is None:
        return None
    with (
        safe_open(places[HEAD], framework="pt") as one,
        safe_open(places[embedding], framework="pt") as other,
    ):
        head, table = one.get_slice(HEAD), other.get_slice(embedding)
        rows = head.get_shape()[0]
        same = head.get_shape() == table.get_shape() and all(
            bool((head[start : start + 4096] == table[start : start + 4096]).all())
            for start in range(0, rows, 4096)
        )
    if same or not _is_one(folder):
        return None
    return (
        f"config.json ties the head to the embedding, and the files hold two different matrices ({embedding}, {HEAD}). Set "
        "tie_word_embeddings to false in config.json if both are meant, or remove the one that is not."
    )


def _is_one(folder: Path) -> bool:
    """Whether transformers makes the head and the embedding one: some families say that they tie, and never do (Qwen2-Audio)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

    from lightrft.models.families import is_multimodal

    shape = AutoConfig.from_pretrained(folder, **NO_CODE)
    kind = AutoModelForMultimodalLM if is_multimodal(shape) else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(shape)  # type: ignore[no-untyped-call]
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _tied(config: dict[str, Any]) -> bool:
    """Whether the head is the embedding; what config.json leaves out is as transformers has it for that family."""
    stated = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    return bool(stated)
