"""Models of a few hundred thousand random weights with a byte-level tokenizer, made without any file or download.

`model.path=random:llama` trains one, random:llava one that sees; the tests use all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lightrft.models.tiny_media import CALLED, MARKS, MEDIA, tiny_processor

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 260

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "smollm": {"model_type": "llama", "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    },
}

EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "num_experts": 8,
        "shared_expert_intermediate_size": 32,
        "decoder_sparse_step": 2,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 32},
}
"""Mixtures of experts, 2 of which each token is sent to."""
EXPERT_SHAPE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

MASK = "<|mask|>"
MASKED: dict[str, dict[str, Any]] = {
    "masked": {
        "model_type": "llama",
        "is_causal": False,
        "vocab_size": VOCABULARY + 1,
        "mask_token_id": VOCABULARY,
    },
}
"""Masked diffusion language models: the transformers that FAMILIES are, with attention both ways."""


def tiny_tokenizer(
    marks: Sequence[str] = (), called: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """One token per byte, four special tokens and then `marks`, a chat template that keeps prefixes.

    `called`: names under which a processor finds marks on the tokenizer, saved with it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(x, special=True) for x in (END, USER, ASSISTANT, SYSTEM, *marks)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, extra_special_tokens=dict(called or {})
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_reader(family: str) -> Any:
    """The tokenizer of a tiny model, or its processor if it sees or hears."""
    if family in MASKED:
        tokenizer = tiny_tokenizer((MASK,))
        tokenizer.mask_token = MASK
        return tokenizer
    return tiny_processor(family, tiny_tokenizer(MARKS, CALLED)) if family in MEDIA else tiny_tokenizer()


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a tiny model; `changes` override it, those of the text part in models that see or hear, but for whole parts of
    that name (audio_config, say)."""
    if family not in {**FAMILIES, **EXPERTS, **MASKED, **MEDIA}:
        known = ", ".join([*FAMILIES, *EXPERTS, *MASKED, *MEDIA])
        raise ValueError(f"model.path=random:{family}: no such tiny model. There are: {known}.")
    shape = {**_SHAPE, "eos_token_id": 256, "bos_token_id": None, "pad_token_id": None}
    if family not in MEDIA:
        shape |= EXPERT_SHAPE if family in EXPERTS else {}
        return AutoConfig.for_model(**{**shape, **{**FAMILIES, **EXPERTS, **MASKED}[family], **changes})
    options = {
        name: {**part, **changes.pop(name, {})} if isinstance(part, dict) else part
        for name, part in MEDIA[family].items()
    }
    text = {**shape, "vocab_size": VOCABULARY + len(MARKS), **options.pop("text_config"), **changes}
    return AutoConfig.for_model(
        **{
            "model_type": family,
            "text_config": text,
            "tie_word_embeddings": text["tie_word_embeddings"],
            **options,
        }
    )


def tiny_model(
    family: str = "llama", *, seed: int = 0, attention: str | dict[str, str] = "sdpa", **changes: Any
) -> PreTrainedModel:
    """A random float32 model of one of FAMILIES, MASKED or MEDIA; `changes` as in `tiny_config`."""
    config = tiny_config(family, **changes)
    auto = AutoModelForMultimodalLM if family in MEDIA else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            # The usual 0.02 is so small at this width that the model hardly reacts to its input.
            for parameter in model.parameters():
                if parameter.dim() > 1 and not parameter.is_meta:
                    parameter.mul_(3.0) if parameter.any() else parameter.normal_(0.0, 0.1)
    model.eval()
    return model
