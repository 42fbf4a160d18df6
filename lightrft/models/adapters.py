"""Folders of low-rank adapters as peft reads and writes them, beside the model that they belong to."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightrft.config import LoraConfig
from lightrft.models.folder import ADAPTER
from lightrft.models.nf4 import rounded_sizes
from lightrft.utils.paths import expanded

WEIGHTS = "adapter_model.safetensors"
QUANTIZED = "quantize_base"
"""What a folder's settings call how its base was rounded: a word of ours, which peft says it does not know."""
SETTINGS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    QUANTIZED: QUANTIZED,
}
"""Settings of model.lora -> what peft calls them; those that two adapters of one model must share."""
ABOUT = """# Adapters beside a base in 4 bits

These low-rank adapters learned beside matrices that were rounded to nf4 (QLoRA, https://arxiv.org/abs/2305.14314): blocks of 64 numbers, scales
in float32. Beside the matrices as they were before they make a model that nobody has trained or seen.

The run's folder `model` holds both in one, and so does what `lightrft export RUN OUT` writes. transformers rounds alike, where the adapters are
beside all linear layers but the head:

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    rounded = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype="{dtype}")
    base = AutoModelForCausalLM.from_pretrained("BASE", dtype="{dtype}", quantization_config=rounded)
    model = PeftModel.from_pretrained(base, "ADAPTER")
"""
"""README.md of such a folder."""


class LearningDropout(nn.Dropout):
    """Dropout in passes with a gradient alone: the models here are in eval mode whether they learn or not."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Input with a share of its numbers dropped, or as it is."""
        return F.dropout(input, self.p, training=torch.is_grad_enabled())


def drop_in_learning(model: nn.Module) -> None:
    """Makes the dropout of a model's adapters that of `LearningDropout`."""
    inner: Any
    for inner in list(model.modules()):
        for name, part in list(getattr(inner, "lora_dropout", {}).items()):
            if isinstance(part, nn.Dropout):
                inner.lora_dropout[name] = LearningDropout(part.p)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What a folder says of its adapters. ValueError if they are none that can be learned from here."""
    try:
        found = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no adapter folder: {ADAPTER} cannot be read ({error}).") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder}: its adapters are not of LoRA. Train adapters of LoRA, or merge these into the model."
        )
    return {QUANTIZED: "off", **found}


def advice(folder: Path) -> str:
    """The settings that go on with the adapters of a folder, as words of the command line."""
    found = adapter_settings(folder)
    words = [f"--model.lora.start {folder}"]
    for name, theirs in SETTINGS.items():
        value = found.get(theirs)
        if isinstance(value, bool):
            words += [f"--model.lora.{name.replace('_', '-')}"] if value else []
        elif value != "off":
            words.append(f"--model.lora.{name.replace('_', '-')} {value}")
    return " ".join(words)


def check_start(config: LoraConfig) -> None:
    """ValueError if the adapters in model.lora.start are of another size or kind than the settings, or bring whole modules."""
    if not config.start:
        return
    folder = expanded(config.start, "model.lora.start")
    try:
        found = adapter_settings(folder)
    except ValueError as error:
        raise ValueError(f"model.lora.start={config.start}: {error}") from None
    for name, theirs in SETTINGS.items():
        if getattr(config, name) != found.get(theirs, False):
            raise ValueError(
                f"model.lora.start={config.start}: its adapters have {theirs}={found.get(theirs)}, and model.lora.{name}="
                f"{getattr(config, name)}. Set: {advice(folder)}"
            )
    for other in (
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "lora_bias",
        "target_parameters",
    ):
        if found.get(other):
            raise ValueError(
                f"model.lora.start={config.start}: its {other}={found[other]} cannot be taken over. Merge the adapters into the model "
                "(peft: merge_and_unload) and set model.path to the result."
            )


@torch.no_grad()
def read_adapter(adapted: nn.Module, start: str) -> None:
    """Gives adapters the numbers of the folder `start`. ValueError if those are of other layers or shapes.

    On the meta device only names and shapes are compared.
    """
    folder = expanded(start, "model.lora.start")
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.lora.start={start}: {WEIGHTS} cannot be read ({error}).") from None
    own = {adapter_name(name): p for name, p in adapted.named_parameters() if ".lora_" in name}
    shapes = ({n: tuple(t.shape) for n, t in found.items()} for found in (stored, own))
    theirs, ours = shapes
    odd = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
    if odd:
        raise ValueError(
            f"model.lora.start={start}: {odd[0]} has shape {theirs.get(odd[0], 'none')} there and {ours.get(odd[0], 'none')} here. Set "
            "model.path and model.lora.targets to those that the adapters were made for."
        )
    for name, parameter in own.items():
        if not parameter.is_meta:
            parameter.copy_(stored[name])


def adapter_name(name: str) -> str:
    """A parameter's name in an adapter folder: peft leaves out which of several adapters it is of, and what a norm is kept in."""
    place, found, rest = name.partition(".lora_")
    if not found:
        return name
    kind, _, last = rest.partition(".default")
    return f"{place}.lora_{kind}{'' if kind == 'magnitude_vector' else last}"


def write_adapter(module: Any, learned: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` loads onto the plain model.

    `learned`: all that learns of the adapted `module`, whole and in float32, under the names of its parameters. Parts that are trained
    whole stand among peft's modules_to_save. A folder of adapters beside rounded matrices says so, in its settings and in words.
    """
    settings = copy.deepcopy(module.peft_config["default"])
    whole = sorted(
        {n.rpartition(".")[0].removeprefix("base_model.model.") for n in learned if ".lora_" not in n}
    )
    settings.inference_mode = True
    settings.modules_to_save = whole or None
    settings.save_pretrained(folder)
    if rounded_sizes(module):
        _tell_rounded(folder, str(next(p.dtype for p in module.parameters() if p.is_floating_point())))
    weights = {adapter_name(name): t.detach().cpu().contiguous().clone() for name, t in learned.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _tell_rounded(folder: Path, dtype: str) -> None:
    """Writes into a folder of adapters that their base was rounded."""
    file = folder / ADAPTER
    said = json.loads(file.read_text(encoding="utf-8")) | {QUANTIZED: "nf4"}
    file.write_text(json.dumps(said, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "README.md").write_text(ABOUT.format(dtype=dtype.removeprefix("torch.")), encoding="utf-8")
