"""One section of options for each rollout engine; `serves` names the engines that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lightrft.config.addresses import checked
from lightrft.config.checks import refuse_idle
from lightrft.config.further import read_further, taken_by
from lightrft.config.ranges import check_ranges

SHARES = ("cps", "ddim")
"""Noises of rollout.denoise.noise whose level is a share of the noise there is."""
_ON_THE_WAY = ("sde", "dance", "cps", "ddim")
STEPWISE = {
    ("likelihood", "normed"): _ON_THE_WAY,
    ("weighting", "noise"): _ON_THE_WAY,
    ("weighting", "inverse_span"): ("sde",),
    ("keep_means", True): ("match",),
    ("same_start", True): _ON_THE_WAY,
}
"""Settings of rollout.denoise that look at a step's noise, or at how far it moves the state -> the noises of which that is known."""


@dataclass(frozen=True, kw_only=True)
class NativeEngineConfig:
    """The engine that samples with the actor's own weights."""

    serves = ("native",)
    is_own = True
    """Whether the engine computes by the trainer's own modules and functions."""
    tells_experts = ("native",)
    tells_support = ("native",)
    longest = 0
    finds_stops_across_steps = True
    beside = ("cpu",)
    """Types of the trainer's device beside which it can sample while the trainer learns; any: all."""

    max_sequences: int = 256
    """Maximum concurrent sequences; the rest queue."""
    prefill_tokens: int = 2048
    """Most prompt tokens that enter in one pass of the model; a longer prompt enters alone."""
    pack_weights: bool = True
    """Copy the weights into a faster layout while generating on a CPU; costs their memory once more."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Record what a CUDA device does in a decoding pass and repeat it (CUDA graphs), four times as fast for small models. auto: where
    device and model allow it; on: refuse models that do not; off: never."""
    attention_backend: Literal["torch", "flash"] = "torch"
    """What reads the cache's pages. torch: products of all pages with all that read them, on any device. flash: torch's flash attention with a table of
    pages, on NVIDIA GPUs, for models in bfloat16 or float16 without sliding windows; keys take half the
    memory, but pages have 256 tokens: it saves memory from some 320 tokens of a response on. Not run on a GPU yet."""

    def __post_init__(self) -> None:
        check_ranges("rollout.native", self)


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """The engine that draws pictures with the actor's own weights; only with rollout.engine=denoise."""

    serves = ("denoise",)
    is_own = True
    longest = 0
    begins_with_noise = True

    steps: int = 10
    """Steps from noise to a picture in training (num_inference_steps)."""
    evaluation_steps: int = 0
    """Steps of a picture that is drawn without noise on the way, in evaluation; 0: as in training."""
    first: int = 0
    """The first step that noise may enter, from 0."""
    until: int = 0
    """The step behind the last one that noise may enter, at most steps - 1; 0: that. Half of the steps keep noise to the noisy half."""
    window: int = 0
    """How many steps noise enters and are learned from, the others are exact (ODE); 0: all from `first` to `until`."""
    move: Literal["fixed", "random", "progressive"] = "fixed"
    """Where the window lies: fixed: at `first`. random: anywhere from there to `until`, drawn anew at each call. progressive: one step on every
    `move_every` updates, and from the beginning again after the last place (MixGRPO)."""
    move_every: int = 25
    """With move=progressive: optimizer updates for which the window stays."""
    noise: Literal["sde", "dance", "cps", "ddim", "match"] = "sde"
    """Which noise. Of flows: sde of Flow-GRPO, dance of DanceGRPO, cps of Flow-CPS (coefficients-preserving), match of AWM: none on the
    way, the finished picture is noised anew. Of diffusion models with a DDIMScheduler: ddim, as DDPO has it."""
    level: float = 0.7
    """How much of it: a of Flow-GRPO, eta of DanceGRPO and, at most 1, of Flow-CPS and DDIM. With match the deviation that errors of the
    velocity are measured in, so that a squared one weighs 1 / (2 level^2)."""
    likelihood: Literal["mean", "sum", "normed"] = "mean"
    """What the log-prob of a step is: the mean over the numbers of a picture's latent, with which published clip ranges (1e-4) and KL
    weights were used; or the sum, which is the true one. normed: the mean, so shifted and scaled that log-ratios have the mean 0 and the same
    spread at all levels of noise (RatioNorm of GRPO-Guard); a response then keeps half as many states again."""
    keep_means: bool = False
    """Keep with a response what was predicted of it when it was drawn, half as many states again, for algorithm.loss=diffusion_nft; only with noise=match."""
    weighting: Literal["even", "noise", "inverse_span"] = "even"
    """How much a step weighs in the policy loss, 1 on average over `first` to `until`. even: each the same. noise: in proportion to its
    deviation (noise-aware weighting of TempFlow-GRPO). inverse_span: in proportion to 1 / |dt|, so that long steps do not outweigh short ones
    (GRPO-Guard); only with noise=sde."""
    same_start: bool = False
    """Let the pictures of a prompt begin with one noise, as DanceGRPO has it, and draw the exact steps before the window once for all of them; only
    where noise enters on the way: in evaluation without it each begins with noise of its own."""
    guidance: float = 1.0
    """Classifier-free guidance (guidance_scale), in training too; 1: none, at half the cost."""
    height: int = 0
    """Rows of a picture in pixels; 0: what the transformer was made for."""
    width: int = 0
    """Columns of a picture in pixels; 0: what the transformer was made for."""
    frames: int = 1
    """Frames of a clip, of pipelines that draw clips; 1: a picture."""
    max_text_tokens: int = 256
    """Tokens of the long text encoder (max_sequence_length); positions without text are read as well."""
    max_sequences: int = 256
    """Maximum pictures drawn at once."""

    @property
    def learned(self) -> int:
        """Steps that noise enters."""
        return self.window or self.end - self.first

    @property
    def end(self) -> int:
        """The step behind the last one that noise may enter."""
        return self.until or self.steps - 1

    @property
    def kept(self) -> int:
        """States that a response keeps of each step: before and after it, and the mean that it was drawn around where something compares with that."""
        return 3 if self.likelihood == "normed" or self.keep_means else 2

    def __post_init__(self) -> None:
        check_ranges("rollout.denoise", self)
        if self.end > self.steps - 1 or self.first + self.learned > self.end or self.learned < 1:
            raise ValueError(
                f"rollout.denoise.first={self.first}, rollout.denoise.window={self.window} and rollout.denoise.until={self.until} do not fit into "
                f"rollout.denoise.steps={self.steps}, of which the last one ends without noise, where no likelihood is. Lower rollout.denoise.first, "
                "rollout.denoise.window or rollout.denoise.until."
            )
        if self.noise in SHARES and self.level > 1:
            raise ValueError(
                f"rollout.denoise.level={self.level:g}: with rollout.denoise.noise={self.noise} it is a share, and more than 1 takes out more noise than "
                "there is. Set it to at most 1."
            )
        for (name, value), noises in STEPWISE.items():
            if getattr(self, name) == value and self.noise not in noises:
                raise ValueError(
                    f"rollout.denoise.{name}={str(value).lower()} with rollout.denoise.noise={self.noise}: it is known for steps of {', '.join(noises)}. Set "
                    f"rollout.denoise.noise={noises[0]}, or leave rollout.denoise.{name} out."
                )
        if self.move == "fixed":
            cure = "set rollout.denoise.move=progressive"
            refuse_idle(
                "rollout.denoise", self, ["move_every"], because="rollout.denoise.move=fixed", cure=cure
            )
        elif not self.window:
            raise ValueError(
                f"rollout.denoise.move={self.move} with rollout.denoise.window=0: all steps are in the window, which cannot move. Set "
                "rollout.denoise.window=2."
            )


@dataclass(frozen=True, kw_only=True)
class UnmaskConfig:
    """The engine of masked diffusion language models; only with rollout.engine=unmask."""

    serves = ("unmask",)
    is_own = True
    longest = 0

    tokens_per_step: int = 1
    """Tokens that a denoising step reveals; rollout.max_tokens / tokens_per_step steps make a response."""
    block: int = 0
    """Tokens of a block: blocks are revealed from left to right, and none after that with an end token (semi-autoregressive); 0: the response is
    one block."""
    order: Literal["confidence", "entropy", "margin", "left", "random", "sampled"] = "confidence"
    """Which masked tokens of the block are revealed next: those with the largest probability, the lowest entropy, the largest lead of the first
    choice over the second; from left to right; in random order; or those whose sampled token is the likeliest (LLaDA)."""
    threshold: float = 1.0
    """Reveal those too whose probability, as order=confidence or order=sampled has it, is above this, so that a response takes fewer steps;
    1: none."""
    context: Literal["canvas", "blocks"] = "canvas"
    """What a step reads beside the prompt: the whole canvas of rollout.max_tokens with its masks (LLaDA), or the blocks up to its own (block
    diffusion)."""
    predicts: Literal["own", "next"] = "own"
    """Which token a position of the model predicts: its own (LLaDA), or the next one (Dream)."""
    likelihood: Literal["path", "mean_field", "elbo"] = "path"
    """The log-prob of a token. path: given the state that it was revealed from, the policy itself. mean_field: given the prompt and a canvas of masks,
    in one pass (diffu-GRPO). elbo: a bound of the log-likelihood, from `draws` random masks."""
    prompt_mask: float = 0.0
    """With likelihood=mean_field: share of the prompt's tokens that are masked at random, by seed, prompt and response alone (d1: 0.15)."""
    draws: int = 4
    """With likelihood=elbo: random masks of a response, each read once."""
    max_sequences: int = 256
    """Maximum responses that are revealed at once."""

    def __post_init__(self) -> None:
        check_ranges("rollout.unmask", self)
        section = "rollout.unmask"
        if self.block and self.tokens_per_step > self.block:
            raise ValueError(
                f"{section}.tokens_per_step={self.tokens_per_step}: a step reveals tokens of one block, and {section}.block={self.block}. Set it to "
                f"at most {self.block}."
            )
        if self.context == "blocks" and not self.block:
            raise ValueError(
                f"{section}.context=blocks has no effect with {section}.block=0, where the response is one block. Set {section}.block, e.g. 32, or "
                f"{section}.context=canvas."
            )
        if self.order not in ("confidence", "sampled"):
            told, cure = f"{section}.order={self.order}", f"set {section}.order=confidence"
            refuse_idle(section, self, ["threshold"], because=told, cure=cure)
        for option, likelihood in (("prompt_mask", "mean_field"), ("draws", "elbo")):
            if self.likelihood != likelihood:
                told, cure = (
                    f"{section}.likelihood={self.likelihood}",
                    f"set {section}.likelihood={likelihood}",
                )
                refuse_idle(section, self, [option], because=told, cure=cure)


_PROCESSES = (
    "It changes which processes hold the engine, and new weights would not reach them all. Leave it out."
)
_MODEL = (
    "The engine is to have the trainer's model and tokens. Leave it out, and set what you mean under model."
)
_NEEDED = "Training needs it as it is."
OF_VLLM = taken_by(
    "rollout.vllm",
    ("max_num_seqs", "max_model_len", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager"),
    {
        _NEEDED: (
            "model", "load_format", "dtype", "logprobs_mode", "distributed_executor_backend", "enable_sleep_mode", "worker_extension_cls",
            "enable_return_routed_experts", "mm_device_do_normalize", "enable_prefix_caching", "served_model_name", "middleware",
        ),
        _PROCESSES: ("pipeline_parallel_size", "prefill_context_parallel_size", "data_parallel_size", "data_parallel_size_local", "nnodes"),
        _MODEL: ("hf_overrides", "hf_config_path", "tokenizer", "skip_tokenizer_init", "runner", "convert"),
    },
)  # fmt: skip
"""Arguments of vLLM that are given already -> what to do instead."""
OF_SGLANG = taken_by(
    "rollout.sglang",
    ("max_running_requests", "context_length", "mem_fraction_static", "max_total_tokens"),
    {
        _NEEDED: (
            "model_path", "load_format", "dtype", "device", "enable_deterministic_inference", "enable_memory_saver",
            "enable_return_routed_experts", "base_gpu_id",
        ),
        _PROCESSES: ("tp_size", "dp_size", "pp_size", "nnodes"),
        _MODEL: ("tokenizer_path", "skip_tokenizer_init", "json_model_override_args"),
    },
)  # fmt: skip
"""Arguments of SGLang's Engine that are given already -> what to do instead."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM in the trainer's process; only with rollout.engine=vllm."""

    serves = ("vllm", "vllm_server")
    tells_experts = ("vllm",)

    max_num_seqs: int = 256
    """Maximum concurrent sequences."""
    max_model_len: int = 0
    """Maximum tokens of a prompt with its response, for which vLLM keeps room; 0: what the model was made for."""
    tensor_parallel_size: int = 1
    """Neighbouring processes that have one engine together, each a part of its weights and cache."""
    gpu_memory_utilization: float = 0.4
    """Share of an accelerator's memory for weights and cache together."""
    cache_gib: float = 1.0
    """GiB for the cache on a CPU."""
    enforce_eager: bool = False
    """Do not compile the model: a quicker start and a slower rollout."""
    sleep_level: Literal[1, 2] = 2
    """What it keeps in host memory between rollouts: 1: the weights, so that another rollout with the same ones needs no sync; 2: nothing."""
    options: dict[str, str] = field(default_factory=dict)
    """Further arguments of vLLM by name, each read as YAML, e.g. {kv_cache_dtype: fp8}; of `lightrft serve` too."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.max_model_len

    def __post_init__(self) -> None:
        check_ranges("rollout.vllm", self)
        self.further()

    def further(self, prepare: Callable[[str], str] = str) -> dict[str, Any]:
        """`options` as vLLM is given them, their texts prepared. ValueError for one that is not YAML, or has a setting of its own."""
        return read_further("rollout.vllm.options", self.options, OF_VLLM, prepare)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Servers that generate the responses (`lightrft serve`), on other machines or this one; only with rollout.engine=vllm_server."""

    serves = ("vllm_server",)
    longest = 0
    beside = ("any",)

    urls: list[str] = field(default_factory=list)
    """Where they are, e.g. http://node7:8000; prompts are shared out among them, and each is given all weights at a sync."""
    wait_seconds: float = 120.0
    """Longest to wait for a server that does not answer yet, at the start and after it died."""
    timeout_seconds: float = 600.0
    """Longest time for one prompt with all its responses, or for one bucket of weights."""
    retries: int = 2
    """How often a prompt that failed is sent again, to another server if there is one."""
    requests: int = 64
    """Maximum concurrent requests."""
    bucket_mib: int = 256
    """Most MiB of weights in one message; a server holds that beside its own, the trainer one tensor."""
    key: str = ""
    """Environment variable that holds the servers' key (vLLM's --api-key); empty: none."""

    def __post_init__(self) -> None:
        check_ranges("rollout.server", self)
        for url in self.urls:
            checked("rollout.server.urls", url, "rollout.server.key")


@dataclass(frozen=True, kw_only=True)
class SglangConfig:
    """SGLang in processes of its own beside the trainer; only with rollout.engine=sglang."""

    serves = ("sglang",)
    tells_experts = ("sglang",)

    max_running_requests: int = 256
    """Maximum concurrent sequences."""
    context_length: int = 0
    """Maximum tokens of a prompt with its response; 0: what the model was made for."""
    mem_fraction_static: float = 0.4
    """Share of the device's memory for weights and cache together; of a CPU's only as much as max_total_tokens need."""
    max_total_tokens: int = 65536
    """Tokens for which there is room in the cache on a CPU."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""
    start_seconds: float = 1800.0
    """Longest that its start may take."""
    options: dict[str, str] = field(default_factory=dict)
    """Further arguments of SGLang's Engine by name, each read as YAML, e.g. {attention_backend: fa3}."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.context_length

    def __post_init__(self) -> None:
        check_ranges("rollout.sglang", self)
        self.further()

    def further(self, prepare: Callable[[str], str] = str) -> dict[str, Any]:
        """`options` as SGLang is given them, their texts prepared. ValueError for one that is not YAML, or has a setting of its own."""
        return read_further("rollout.sglang.options", self.options, OF_SGLANG, prepare)


@dataclass(frozen=True, kw_only=True)
class LmdeployConfig:
    """LMDeploy's PyTorch engine beside the trainer; only with rollout.engine=lmdeploy."""

    serves = ("lmdeploy",)

    max_batch_size: int = 256
    """Maximum concurrent sequences."""
    session_len: int = 0
    """Maximum tokens of a prompt with its response; 0: what the model was made for."""
    cache_max_entry_count: float = 0.4
    """Share of the free memory of an accelerator for the cache."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.session_len

    def __post_init__(self) -> None:
        check_ranges("rollout.lmdeploy", self)
