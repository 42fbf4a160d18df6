"""Tiny models, some that see or hear, in shapes that other engines take."""

from typing import Any

from transformers import WhisperFeatureExtractor

from lightrft.config import MediaConfig, ModelConfig
from lightrft.models.export import save_model
from lightrft.models.load import load_model, load_processor
from lightrft.models.tiny import tiny_model
from lightrft.testing import tiny_folder

WIDTH = 64
SECTIONS = {32: [4, 6, 6], 64: [8, 12, 12]}
"""Width of a head -> how the three axes of positions share half of it."""


QWEN_MARKS = {
    "<begin>": "<|vision_start|>", "<finish>": "<|vision_end|>", "<image>": "<|image_pad|>", "<video>": "<|video_pad|>",
    "<{{ p['type'] }}>": "<|{{ p['type'] }}_pad|>",
}  # fmt: skip
"""What vLLM calls the marks of Qwen3-VL, whatever its processor says."""


def text_model(folder, shape):
    """Module and processor of a small Llama of this shape."""
    settings = ModelConfig(path=str(tiny_folder(folder, "llama", **shape)))
    return load_model(settings, trainable=False), load_processor(settings)


def media_model(folder, family, *, head_dim):
    """Module, processor, and a transformers model with the same weights, its heads as wide as the engine wants them."""
    heads = WIDTH // head_dim
    changes: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": head_dim}
    if family.startswith("qwen") and family.endswith("vl"):
        rows = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": SECTIONS[head_dim]}
        changes["rope_parameters"] = {**rows, **({"mrope_interleaved": True} if family == "qwen3_vl" else {})}
    reader = load_processor(ModelConfig(path=f"random:{family}"), MediaConfig())
    if family == "qwen2_audio":  # vLLM pads its sounds to half a minute, whatever the config says
        reader.media.processor.feature_extractor = WhisperFeatureExtractor(feature_size=32, chunk_length=30)
        changes |= {"audio_config": {"max_source_positions": 1500}, "tie_word_embeddings": False}
    if family == "gemma3_vl":  # vLLM looks them up, whether a question has any or not
        changes["vocab_size"] = len(reader.tokenizer) + reader.tokenizer.add_tokens(
            ["\n" * n for n in (1, 2, 3, 4)]
        )
    reference = tiny_model(family, **changes)
    save_model(reference, reader, folder)
    if family == "qwen3_vl":
        rename(folder, QWEN_MARKS)
    settings = ModelConfig(path=str(folder))
    return load_model(settings, trainable=False), load_processor(settings, MediaConfig()), reference


def rename(folder, words):
    """Other words for marks in all that a processor was saved as."""
    for file in [*folder.glob("*.json"), *folder.glob("*.jinja")]:
        text = file.read_text(encoding="utf-8")
        for word, other in words.items():
            text = text.replace(word, other)
        file.write_text(text, encoding="utf-8")
