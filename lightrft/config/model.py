"""The model of a run, its teacher, and how media are read for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (peft). Off unless rank > 0."""

    rank: int = 0
    """Rank of the adapters; 0 trains the full model."""
    alpha: int = 32
    """Scale: the adapter's output is multiplied by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers to adapt, or all-linear."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in gradient passes; only where no ratio of log-probs is taken: sft, reward, dpo."""
    use_rslora: bool = False
    """Rank-stabilized LoRA: the scale is alpha / sqrt(rank)."""
    use_dora: bool = False
    """Weight-decomposed adapters: the norm of each output's weights is learned apart from their direction. Not with weights in pieces."""
    modules_to_save: list[str] = field(default_factory=list)
    """Names of parts that are trained whole beside the adapters, such as norm, and saved with them."""
    quantize_base: Literal["off", "nf4"] = "off"
    """nf4: QLoRA. Matrices that have adapters are rounded to 4 bits when the model is loaded (bitsandbytes; 0.56 bytes a weight), and the policy
    is these and the adapters, for engines and saved models too. off: they are in model.dtype."""
    start: str = ""
    """Adapter folder (peft) that the adapters start from; rank, alpha, targets and kind must be its own. Empty: new adapters."""

    def __post_init__(self) -> None:
        check_ranges("model.lora", self)
        if not self.rank:
            refuse_idle(
                "model.lora",
                self,
                because="model.lora.rank=0, which trains no adapters",
                cure="set model.lora.rank, e.g. 16",
            )
        if self.use_dora and self.dropout:
            raise ValueError(
                f"model.lora.dropout={self.dropout} with model.lora.use_dora: the learned norms are of whole weights. Set one of them to 0 or false."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and its precision, adapters and frozen parts."""

    path: str = ""
    """Folder, hub name, package:NAME (a GGUF model inside a Python package), random:NAME (a tiny untrained model), or
    random:FOLDER (the architecture of a folder, untrained)."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type the forward and backward pass compute in. With bfloat16 and float16 the optimizer keeps float32 master weights; with float16,
    for devices without bfloat16, the loss is scaled."""
    attention: Literal["packed", "separate"] = "packed"
    """packed: prefix-sharing kernels. separate: one plain sdpa call per sequence; slow, for checking."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (activation checkpointing): less memory, about a third more time."""
    checkpoint_every: int = 1
    """With gradient_checkpointing: one of so many layers is recomputed, so that 2 saves half the memory for half the time."""
    compile: bool = False
    """Compile the decoder layers for passes of the trainer (torch.compile), for all sizes of batches at once; the first passes of a run
    wait for the compiler. Not for mixtures of experts, and not with zero1, zero2, zero3 or strategy.sequence_parallel."""
    kernels: Literal["off", "auto", "liger"] = "off"
    """liger: norms, rotary positions and SwiGLU by the fused kernels of liger-kernel, on CUDA devices. auto: where that is installed and
    knows the model; off: by transformers' own operations."""
    chat_template: str = ""
    """Path to a Jinja chat template that replaces the tokenizer's. 'plain' joins the contents with newlines."""
    cache: str = ""
    """Folder for converted package models. Empty: $LIGHTRFT_CACHE, else ~/.cache/lightrft."""
    imports: list[str] = field(default_factory=list)
    """Modules or files to import first, such as one that registers a model class of your own with transformers."""
    freeze: list[str] = field(default_factory=list)
    """Parts that do not learn: vision, audio, projector, language, layers:N (the embedding and the first N layers), or the beginning of
    parameter names; in a critic those of them that its body has."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        check_ranges("model", self)
        if self.checkpoint_every > 1 and not self.gradient_checkpointing:
            raise ValueError(
                f"model.checkpoint_every={self.checkpoint_every} has no effect without model.gradient_checkpointing. Leave it out, or set that."
            )
        if self.compile and self.kernels != "off":
            raise ValueError(
                f"model.kernels={self.kernels} with model.compile=true: what is compiled is fused already. Set one of them to off or false."
            )
        if self.compile and self.lora.quantize_base != "off":
            raise ValueError(
                f"model.lora.quantize_base={self.lora.quantize_base} with model.compile=true: what makes a matrix whole cannot be compiled into a "
                "layer. Set one of them to off or false."
            )


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """How pictures, clips and sounds are read before the model's own processor sees them."""

    max_pixels: int = 1_048_576
    """A picture or frame with more pixels is scaled down, keeping its shape; 0: never."""
    fps: float = 1.0
    """Frames per second that are taken of a clip."""
    max_frames: int = 16
    """Most frames of a clip; a longer one gives so many, evenly spaced."""
    max_seconds: float = 30.0
    """Longest sound; a longer one counts as a bad record (tasks.on_bad_record). 0: any."""
    max_megapixels: float = 50.0
    """Largest picture or frame as it is stored, in million pixels; a larger one counts as a bad record."""
    urls: list[str] = field(default_factory=list)
    """Hosts that records may have media fetched from, e.g. [images.example.org]; '*': any. Empty: none, media are files."""
    max_megabytes: float = 100.0
    """Largest medium that is fetched from a host, 10^6 bytes."""
    fetch_seconds: float = 30.0
    """Longest time in which one medium is fetched, from the first byte to the last."""

    def __post_init__(self) -> None:
        check_ranges("media", self)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Teacher model for on-policy distillation (token-level); only with algorithm.teacher_coefficient."""

    path: str = ""
    """Model, as in model.path; its tokenizer must be the policy's."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
