"""Tiny models that see or hear, and their processors: configs only, beside the shape of the text part in tiny.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

MEDIA_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<{{ p['type'] }}>{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = (
    "<image>",
    "<video>",
    "<audio>",
    "<begin>",
    "<finish>",
    "<listen>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
)
"""Tokens that stand for media and around them, behind those of text."""
FIRST = 260
IMAGE, VIDEO, AUDIO, BEGIN, FINISH, LISTEN = range(FIRST, FIRST + 6)
CALLED = {
    "image_token": "<image>",
    "context_image_token": "<image>",
    "video_token": "<video>",
    "audio_token": "<audio>",
    **dict.fromkeys(("boi_token", "vision_start_token", "vision_bos_token", "start_image_token"), "<begin>"),
    **dict.fromkeys(("eoi_token", "vision_end_token", "vision_eos_token", "end_image_token"), "<finish>"),
    "audio_bos_token": "<listen>",
    "audio_eos_token": "<finish>",
}
"""What the families' processors look for on a tokenizer."""
_SEEING = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_PATCHES = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "patch_size": 14}
_HEARING = {
    "num_mel_bins": 32,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 100,
}
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_VISION_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": FINISH,
}
_WINDOWS = {"window_size": 56, "fullatt_block_indexes": [1]}
MEDIA: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model", **_SEEING, "image_size": 28, "patch_size": 7},
        "image_token_index": IMAGE,
        "image_seq_length": 16,
    },
    "gemma3_vl": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 16,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", **_SEEING, "image_size": 56, "patch_size": 14, "vision_use_head": False
        },
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": BEGIN,
        "eoi_token_index": FINISH,
    },
    "idefics3": {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "idefics3_vision", **_SEEING, "image_size": 28, "patch_size": 7},
        "image_token_id": IMAGE,
        "scale_factor": 2,
    },
    "smolvlm": {
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "smolvlm_vision", **_SEEING, "image_size": 28, "patch_size": 7},
        "image_token_id": IMAGE,
        "scale_factor": 2,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral"},
        "vision_config": {"model_type": "pixtral", **_SEEING, "head_dim": 16, "image_size": 56, "patch_size": 14},
        "image_token_index": IMAGE,
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {
            "model_type": "internvl_vision", **_SEEING, "image_size": [28, 28], "patch_size": [7, 7]
        },
        "image_token_id": IMAGE,
        "image_seq_length": 4,
    },
    "qwen2_vl": {
        "text_config": {"model_type": "qwen2_vl_text", "rope_parameters": _AXES},
        "vision_config": {**_PATCHES, "embed_dim": 32, "hidden_size": 64},
        **_VISION_IDS,
    },
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", "rope_parameters": _AXES},
        "vision_config": {
            **_PATCHES, **_WINDOWS, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64
        },
        **_VISION_IDS,
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", "rope_parameters": {**_AXES, "mrope_interleaved": True}},
        "vision_config": {
            **_PATCHES, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "patch_size": 16,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **_VISION_IDS,
    },
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2"},
        "audio_config": {"model_type": "qwen2_audio_encoder", **_HEARING},
        "audio_token_index": AUDIO,
    },
    "qwen2_5_omni_thinker": {
        "text_config": {"model_type": "qwen2_5_omni_text", "rope_parameters": _AXES},
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder", **_HEARING, "output_dim": 64, "n_window": 50
        },
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder", **_PATCHES, **_WINDOWS, "hidden_size": 32,
            "intermediate_size": 64, "out_hidden_size": 64,
        },
        "audio_token_id": AUDIO,
        "audio_start_token_id": LISTEN,
        **_VISION_IDS,
    },
    "granite_speech": {
        "text_config": {"model_type": "granite"},
        "encoder_config": {
            "input_dim": 160, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "dim_head": 16, "output_dim": 16,
            "context_size": 20, "max_pos_emb": 32,
        },
        "projector_config": {
            "model_type": "blip_2_qformer", **_SEEING, "num_hidden_layers": 1, "encoder_hidden_size": 32
        },
        "audio_token_index": AUDIO,
        "has_lora_adapter": False,
        "downsample_rate": 5,
        "window_size": 15,
    },
}  # fmt: skip
"""Models that see or hear, by model_type or with it: their config beside the text part's shape."""


def tiny_processor(family: str, tokenizer: Any) -> Any:
    """The processor of one of MEDIA around a tokenizer that has MARKS, by the names of CALLED.

    Those of smolvlm, internvl and the Qwen models that see contain a video processor, which needs torchvision: ImportError.
    """
    return _READERS[family](tokenizer)


def _llava(tokenizer: Any) -> Any:
    square = {"height": 28, "width": 28}
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MEDIA_TEMPLATE,
    )


def _gemma3(tokenizer: Any) -> Any:
    images = transformers.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    # This family's template writes the mark that begins a picture.
    template = MEDIA_TEMPLATE.replace("<{{ p['type'] }}>", "<begin>")
    return transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)


_IDEFICS: dict[str, Any] = {
    "size": {"longest_edge": 28},
    "max_image_size": {"longest_edge": 28},
    "do_image_splitting": False,
}


def _idefics3(tokenizer: Any) -> Any:
    images = transformers.Idefics3ImageProcessorPil(**_IDEFICS)
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=MEDIA_TEMPLATE)


def _smolvlm(tokenizer: Any) -> Any:
    videos = transformers.SmolVLMVideoProcessor(
        size={"longest_edge": 28}, max_image_size={"longest_edge": 28}
    )
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessorPil(**_IDEFICS),
        tokenizer,
        videos,
        image_seq_len=4,
        chat_template=MEDIA_TEMPLATE,
    )


def _mistral3(tokenizer: Any) -> Any:
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=28)
    return transformers.PixtralProcessor(
        images,
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=MEDIA_TEMPLATE,
        image_token="<image>",
        image_break_token="<begin>",
        image_end_token="<finish>",
    )


def _internvl(tokenizer: Any) -> Any:
    square = {"height": 28, "width": 28}
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessorPil(size=square, crop_to_patches=False),
        tokenizer,
        transformers.InternVLVideoProcessor(size=square),
        image_seq_length=4,
        chat_template=MEDIA_TEMPLATE,
    )


def _around(begin: str = "<begin>", end: str = "<finish>") -> str:
    """The template with marks around the one that stands for a medium."""
    return MEDIA_TEMPLATE.replace("<{{ p['type'] }}>", f"{begin}<{{{{ p['type'] }}}}>{end}")


def _qwen_vl(patch: int, images: str, videos: str, processor: str) -> Callable[[Any], Any]:
    def build(tokenizer: Any) -> Any:
        size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
        shared: dict[str, Any] = {
            "size": size,
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
        }
        return getattr(transformers, processor)(
            getattr(transformers, images)(**shared),
            tokenizer,
            getattr(transformers, videos)(**shared),
            chat_template=_around(),
        )

    return build


def _qwen2_audio(tokenizer: Any) -> Any:
    sounds = transformers.WhisperFeatureExtractor(feature_size=32, chunk_length=2)
    return transformers.Qwen2AudioProcessor(sounds, tokenizer, chat_template=_around("<listen>"))


def _omni(tokenizer: Any) -> Any:
    size = {"shortest_edge": 28**2, "longest_edge": 56**2}
    shared: dict[str, Any] = {"size": size, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    return transformers.Qwen2_5OmniProcessor(
        transformers.Qwen2VLImageProcessorPil(**shared),
        transformers.Qwen2VLVideoProcessor(**shared),
        transformers.WhisperFeatureExtractor(feature_size=32, chunk_length=2),
        tokenizer,
        chat_template=_OMNI_TEMPLATE,
    )


_OMNI_TEMPLATE = MEDIA_TEMPLATE.replace(
    "<{{ p['type'] }}>",
    "{% if p['type'] == 'audio' %}<listen><audio><finish>{% else %}<begin><{{ p['type'] }}><finish>{% endif %}",
)


def _granite_speech(tokenizer: Any) -> Any:
    sounds = transformers.GraniteSpeechFeatureExtractor(projector_window_size=15, projector_downsample_rate=5)
    return transformers.GraniteSpeechProcessor(sounds, tokenizer, chat_template=MEDIA_TEMPLATE)


_READERS: dict[str, Callable[[Any], Any]] = {
    "llava": _llava,
    "gemma3_vl": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "mistral3": _mistral3,
    "internvl": _internvl,
    "qwen2_vl": _qwen_vl(14, "Qwen2VLImageProcessorPil", "Qwen2VLVideoProcessor", "Qwen2VLProcessor"),
    "qwen2_5_vl": _qwen_vl(14, "Qwen2VLImageProcessorPil", "Qwen2VLVideoProcessor", "Qwen2_5_VLProcessor"),
    "qwen3_vl": _qwen_vl(16, "Qwen2VLImageProcessorPil", "Qwen3VLVideoProcessor", "Qwen3VLProcessor"),
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_omni_thinker": _omni,
    "granite_speech": _granite_speech,
}
