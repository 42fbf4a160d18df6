"""A folder with the architecture of a small model that hears or sees, without weights: python make.py hearing OUT.

Stock transformers classes (Qwen2-Audio, LLaVA) at a few million parameters with one token per byte, for tasks that are small
enough to be learned from nothing. Train it with `--model random:OUT`.
"""

from __future__ import annotations

import argparse
from typing import Any

import transformers

from lightrft.models.tiny import tiny_tokenizer
from lightrft.models.tiny_media import AUDIO, IMAGE, MARKS, MEDIA_TEMPLATE

WIDTH, LAYERS, HEADS = 192, 4, 6
SECONDS = 2
"""Longest sound; each takes 25 tokens per second."""
MELS = 64
PICTURE, PATCH = 112, 8


def text() -> dict[str, Any]:
    """The language part."""
    return {
        "model_type": "qwen2",
        "vocab_size": 260 + len(MARKS),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "eos_token_id": 256,
        "bos_token_id": None,
        "pad_token_id": None,
    }


def hearing(tokenizer: Any) -> tuple[Any, Any]:
    """Config and processor of a Qwen2-Audio."""
    config = transformers.Qwen2AudioConfig(
        text_config=text(),
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": MELS,
            "d_model": WIDTH,
            "encoder_layers": LAYERS,
            "encoder_attention_heads": HEADS,
            "encoder_ffn_dim": 3 * WIDTH,
            "max_source_positions": 50 * SECONDS,
        },
        audio_token_index=AUDIO,
    )
    sounds = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS)
    template = MEDIA_TEMPLATE.replace("<{{ p['type'] }}>", "<begin><{{ p['type'] }}><finish>")
    marks = {"audio_token": "<audio>", "audio_bos_token": "<begin>", "audio_eos_token": "<finish>"}
    return config, transformers.Qwen2AudioProcessor(sounds, tokenizer, chat_template=template, **marks)


def seeing(tokenizer: Any) -> tuple[Any, Any]:
    """Config and processor of a LLaVA."""
    config = transformers.LlavaConfig(
        text_config=text(),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": PICTURE,
            "patch_size": PATCH,
        },
        image_token_index=IMAGE,
        image_seq_length=(PICTURE // PATCH) ** 2,
    )
    square = {"height": PICTURE, "width": PICTURE}
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": PICTURE}, crop_size=square)
    return config, transformers.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MEDIA_TEMPLATE,
    )


def main() -> None:
    """Writes config, tokenizer and processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sense", choices=["hearing", "seeing"])
    parser.add_argument("out")
    options = parser.parse_args()
    tokenizer = tiny_tokenizer(MARKS)
    config, processor = (hearing if options.sense == "hearing" else seeing)(tokenizer)
    config.architectures = [type(config).__name__.replace("Config", "ForConditionalGeneration")]
    config.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    print(f"{options.out}: train it with --model random:{options.out}")


if __name__ == "__main__":
    main()
