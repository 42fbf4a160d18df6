"""Every option of every command: frozen dataclasses with a docstring per field, and cross-checks that name the cure.

Standard library only. A YAML layer is a list of these flags (see config/layers.py); `lightrft config ...` prints the
result. Only build/, commands/ and the trainers read `Config` as a whole: other parts receive their own section.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (peft). Off unless rank > 0."""

    rank: int = 0
    """Rank of the adapters; 0 trains the full model."""
    alpha: int = 32
    """Scale: the adapter's output is multiplied by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers to adapt, or all-linear."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is held."""

    path: str = ""
    """Folder, hub name, package:NAME (a GGUF model inside a Python package), random:NAME (a tiny untrained model), or
    random:FOLDER (the architecture of a folder, untrained)."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the forward and backward pass compute in. With bfloat16 the optimizer keeps float32 master weights."""
    attention: Literal["packed", "separate"] = "packed"
    """packed: prefix-sharing kernels. separate: one plain sdpa call per sequence; slow, for checking."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    chat_template: str = ""
    """Path to a Jinja chat template that replaces the tokenizer's. 'plain' joins the contents with newlines."""
    cache: str = ""
    """Folder for converted package models. Empty: $LIGHTRFT_CACHE, else ~/.cache/lightrft."""
    imports: list[str] = field(default_factory=list)
    """Modules or files to import first, such as one that registers a model class of your own with transformers."""
    freeze: list[str] = field(default_factory=list)
    """Parts that do not learn: vision, audio, projector, language, or the beginning of parameter names."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is learned: tasks (data + format + reward), mixed by weight."""

    train: dict[str, float] = field(default_factory=dict)
    """Task name -> share of the draws, e.g. {gsm8k: 1.0}. A name, NAME:OPTION, or an import path."""
    evaluate: dict[str, float] = field(default_factory=dict)
    """Task name -> weight in the mean evaluation score. Empty: the tasks of train, on their evaluation split."""
    train_file: str = ""
    """For task `file`: json/jsonl/csv/parquet file or hub name with the training rows."""
    evaluate_file: str = ""
    """For task `file`: the same for evaluation. Must not be the training file."""
    train_split: str = "train"
    """For task `file` from a hub name: split to train on."""
    evaluate_split: str = "test"
    """For task `file` from a hub name: split to evaluate on."""
    rewards: dict[str, float] = field(default_factory=dict)
    """For task `file`: its own reward, name or import path -> weight, by which evaluation is scored whatever is trained on. Empty:
    rewards.functions."""
    format: str = "columns"
    """For task `file`: how a row becomes messages and target: a name or an import path."""
    prompt_field: str = "prompt"
    """For format `columns`: the field with the question, or with a list of messages."""
    target_field: str = "target"
    """For format `columns`: the field with the right answer; may be absent from the rows if left empty."""
    system: str = ""
    """System message put before each prompt; empty: none."""
    instruction: str = ""
    """Text added after each question; empty: the task's own."""
    on_bad_record: Literal["raise", "skip"] = "raise"
    """A row that is broken or lacks a field: stop with file and line, or skip, count and log it."""
    on_long_prompt: Literal["raise", "skip", "truncate_left"] = "skip"
    """A prompt over max_prompt_tokens: stop, skip and count, or cut tokens from the left."""
    max_prompt_tokens: int = 1024
    """Longest prompt, in tokens."""
    train_limit: int = 0
    """Use only the first so many training rows; 0: all."""


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

    def __post_init__(self) -> None:
        at_least(0, "media", max_pixels=self.max_pixels)
        at_least(1, "media", max_frames=self.max_frames)
        if self.fps <= 0 or self.max_seconds < 0:
            raise ValueError(
                f"media.fps={self.fps}, max_seconds={self.max_seconds}: fps must be above 0, max_seconds at least 0."
            )


@dataclass(frozen=True, kw_only=True)
class NativeEngineConfig:
    """The engine that samples with the actor's own weights."""

    max_sequences: int = 256
    """Most answers decoded at the same time; more wait and enter as others finish."""
    prefill_tokens: int = 2048
    """Most prompt tokens that enter in one pass of the model; a longer prompt enters alone."""
    pack_weights: bool = True
    """Copy the weights into a faster layout while generating on a CPU; costs their memory once more."""
    cuda_graphs: bool = False
    """On a CUDA device, record what the device does in a decoding pass and repeat it (CUDA graphs). New, its last state not run on
    a GPU yet: off unless asked for."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM in the trainer's process; only with rollout.engine=vllm."""

    max_num_seqs: int = 256
    """Most answers decoded at the same time."""
    max_model_len: int = 0
    """Most tokens of a question with its answer, for which vLLM keeps room; 0: what the model was made for."""
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

    def __post_init__(self) -> None:
        at_least(
            1, "rollout.vllm", max_num_seqs=self.max_num_seqs, tensor_parallel_size=self.tensor_parallel_size
        )
        at_least(0, "rollout.vllm", max_model_len=self.max_model_len)
        if not 0 < self.gpu_memory_utilization <= 1 or self.cache_gib <= 0:
            raise ValueError(
                f"rollout.vllm.gpu_memory_utilization={self.gpu_memory_utilization}, cache_gib={self.cache_gib}: need 0 < gpu_memory_utilization <= 1 and "
                "cache_gib above 0."
            )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Servers that draw the answers (`lightrft serve`), on other machines or this one; only with rollout.engine=vllm_server."""

    urls: list[str] = field(default_factory=list)
    """Where they are, e.g. http://node7:8000; questions are shared out among them, and each is given all weights at a sync."""
    wait_seconds: float = 120.0
    """Longest to wait for a server that does not answer yet, at the start and after it died."""
    timeout_seconds: float = 600.0
    """Longest for one question with all its answers, or for one bucket of weights."""
    retries: int = 2
    """How often a question that failed is asked again, of another server if there is one."""
    requests: int = 64
    """Most questions under way at the same time."""
    bucket_mib: int = 256
    """Most MiB of weights in one message; a server holds that beside its own, the trainer one tensor."""
    key: str = ""
    """Environment variable that holds the servers' key (vLLM's --api-key); empty: none."""

    def __post_init__(self) -> None:
        at_least(0, "rollout.server", retries=self.retries)
        at_least(1, "rollout.server", requests=self.requests, bucket_mib=self.bucket_mib)
        if min(self.wait_seconds, self.timeout_seconds) <= 0:
            raise ValueError(
                f"rollout.server.wait_seconds={self.wait_seconds:g}, timeout_seconds={self.timeout_seconds:g}: must be above 0."
            )


@dataclass(frozen=True, kw_only=True)
class SglangConfig:
    """SGLang in processes of its own beside the trainer; only with rollout.engine=sglang."""

    max_running_requests: int = 256
    """Most answers decoded at the same time."""
    context_length: int = 0
    """Most tokens of a question with its answer; 0: what the model was made for."""
    mem_fraction_static: float = 0.4
    """Share of the device's memory for weights and cache together; of a CPU's only as much as max_total_tokens need."""
    max_total_tokens: int = 65536
    """Tokens for which there is room in the cache on a CPU."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""
    start_seconds: float = 1800.0
    """Longest that its start may take."""
    options: dict[str, str] = field(default_factory=dict)
    """Further arguments of SGLang's Engine by name, e.g. {attention_backend: fa3}."""

    def __post_init__(self) -> None:
        at_least(
            1, "rollout.sglang", max_running_requests=self.max_running_requests, max_total_tokens=self.max_total_tokens, bucket_mib=self.bucket_mib
        )  # fmt: skip
        at_least(0, "rollout.sglang", context_length=self.context_length)
        if self.start_seconds <= 0:
            raise ValueError(f"rollout.sglang.start_seconds={self.start_seconds:g}: must be above 0.")
        if not 0 < self.mem_fraction_static <= 1:
            raise ValueError(
                f"rollout.sglang.mem_fraction_static={self.mem_fraction_static}: must be above 0 and at most 1."
            )


@dataclass(frozen=True, kw_only=True)
class LmdeployConfig:
    """LMDeploy's PyTorch engine beside the trainer; only with rollout.engine=lmdeploy."""

    max_batch_size: int = 256
    """Most answers decoded at the same time."""
    session_len: int = 0
    """Most tokens of a question with its answer; 0: what the model was made for."""
    cache_max_entry_count: float = 0.4
    """Share of the free memory of an accelerator for the cache."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""

    def __post_init__(self) -> None:
        at_least(1, "rollout.lmdeploy", max_batch_size=self.max_batch_size, bucket_mib=self.bucket_mib)
        at_least(0, "rollout.lmdeploy", session_len=self.session_len)
        if not 0 < self.cache_max_entry_count <= 1:
            raise ValueError(
                f"rollout.lmdeploy.cache_max_entry_count={self.cache_max_entry_count}: must be above 0 and at most 1."
            )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn for training."""

    engine: str = "native"
    """native, vllm, vllm_server, sglang, lmdeploy, or the import path of an Engine class."""
    prompts_per_step: int = 8
    """Questions per training step, over all ranks."""
    group_size: int = 8
    """Answers per question."""
    max_tokens: int = 256
    """Most tokens of an answer; a longer one is cut and counts as truncated."""
    temperature: float = 1.0
    """Sampling temperature; trainer log-probs are taken at the same."""
    first_token_temperature: float = 0.0
    """Another temperature, usually a high one, for the first token of each answer (FIRE); 0: the same as for the others."""
    first_token_top_k: int = 0
    """Draw the first token of each answer among the k likeliest only; 0: like the others."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all. Restricting the draw (top_k, top_p, min_p) leaves the ratio as it is, but
    the mismatch metrics then hold the log of the kept probability as well."""
    top_p: float = 1.0
    """Sample among the likeliest tokens with this total probability; 1: all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0: none."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer."""
    max_sampling_rounds: int = 4
    """With algorithm.group_filter other than all: most rounds of drawing per step before training on what there is."""
    extra_groups: Literal["drop", "carry_over"] = "drop"
    """Groups drawn too much, with algorithm.group_filter other than all: drop them, or learn from them in the next step."""
    max_tokens_per_step: int = 0
    """Most tokens that an answer gets in one step (partial rollout): a longer one waits and goes on in the next step, with newer
    weights; groups are learned from when all their answers have ended. 0: answers end in the step they begin in."""
    overlap_rewards: bool = False
    """Draw the answers of the next step while those of this one are judged; they come from weights one step older."""
    max_engine_restarts: int = 2
    """How often in one rollout an engine that died is started again before the run stops."""
    native: NativeEngineConfig = field(default_factory=NativeEngineConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    sglang: SglangConfig = field(default_factory=SglangConfig)
    lmdeploy: LmdeployConfig = field(default_factory=LmdeployConfig)

    def __post_init__(self) -> None:
        self._check_engine()
        at_least(
            0,
            "rollout",
            max_tokens_per_step=self.max_tokens_per_step,
            max_engine_restarts=self.max_engine_restarts,
        )
        at_least(
            1,
            "rollout",
            prompts_per_step=self.prompts_per_step,
            group_size=self.group_size,
            max_tokens=self.max_tokens,
            max_sampling_rounds=self.max_sampling_rounds,
        )
        if self.temperature <= 0:
            raise ValueError(
                f"rollout.temperature={self.temperature}: training needs sampled answers. Set it above 0, e.g. 1.0."
            )
        if self.first_token_temperature < 0:
            raise ValueError(
                f"rollout.first_token_temperature={self.first_token_temperature}: must be above 0, e.g. 10, or 0 for rollout.temperature."
            )
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1 or min(self.top_k, self.first_token_top_k) < 0:
            raise ValueError(
                f"rollout.top_p={self.top_p}, min_p={self.min_p}, top_k={self.top_k}, first_token_top_k={self.first_token_top_k}: need "
                "0 < top_p <= 1, 0 <= min_p < 1, top_k >= 0 and first_token_top_k >= 0."
            )

    @property
    def longest(self) -> int:
        """Tokens of a question with its answer for which the engine was set to keep room; 0: it was not set."""
        lengths = {
            "vllm": self.vllm.max_model_len,
            "vllm_server": self.vllm.max_model_len,
            "sglang": self.sglang.context_length,
            "lmdeploy": self.lmdeploy.session_len,
        }
        return lengths.get(self.engine, 0)

    def _check_engine(self) -> None:
        """Settings of engines that are not used, or what the one that is needs."""
        because = f"rollout.engine={self.engine}"
        for engines, section in (
            (("native",), "native"),
            (("vllm", "vllm_server"), "vllm"),
            (("vllm_server",), "server"),
            (("sglang",), "sglang"),
            (("lmdeploy",), "lmdeploy"),
        ):
            if self.engine not in engines and ":" not in self.engine:
                cure = f"set rollout.engine={engines[0]}"
                refuse_idle(f"rollout.{section}", getattr(self, section), because=because, cure=cure)
        if self.max_tokens_per_step >= self.max_tokens:
            raise ValueError(
                f"rollout.max_tokens_per_step={self.max_tokens_per_step} has no effect with rollout.max_tokens={self.max_tokens}. Set it below, e.g. "
                "to a quarter, or to 0."
            )
        if self.max_tokens_per_step and self.stop and self.engine != "native":
            raise ValueError(
                f"rollout.max_tokens_per_step={self.max_tokens_per_step} with rollout.stop and {because}: a stop text that lies across a cut would be "
                "missed. Leave one of them out, or set rollout.engine=native."
            )


POLICY = "policy"
"""judge.path: the policy judges itself."""
COMPARING = ("group_norm", "group_mean", "leave_one_out", "length_weighted_mean")
"""Advantages that compare whole answers to one prompt."""
WITHOUT_CRITIC = (*COMPARING, "reinforce", "greedy_baseline", "none")
"""All built-in advantages but gae."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """A row of settings over pure functions. The defaults are GRPO without KL."""

    advantage: str = "group_norm"
    """group_norm, group_mean, leave_one_out, length_weighted_mean, reinforce, greedy_baseline, gae (with a critic), none (with a
    teacher); or an import path."""
    gamma: float = 1.0
    """For advantages reinforce and gae: what a reward is worth one chosen token earlier, from 0 to 1."""
    gae_lambda: float = 1.0
    """For advantage gae: 0 trusts the critic, 1 the rewards that came."""
    advantage_clip: float = 0.0
    """Advantages are clipped to [-x, x], after whitening; 0: not."""
    loss: str = "clipped"
    """clipped, policy_gradient, sequence_clipped, sequence_clipped_token, geometric, cispo, sapo, cpgd; or an import path."""
    clip: list[float] = field(default_factory=lambda: [0.2, 0.2])
    """How far the ratio may fall below 1 and rise above it before its gradient stops; its logarithm for loss geometric."""
    average: Literal["token", "sequence", "fixed"] = "sequence"
    """token: all tokens weigh the same. sequence: all answers do. fixed: divide by rollout.max_tokens (Dr.GRPO)."""
    group_filter: str = "all"
    """Which groups to learn from: all, mixed_outcomes (rewards differ; others are redrawn), or an import path."""
    response_filter: str = "all"
    """Which answers of a group to learn from, after all have counted in its baseline: all, best_random, best_worst (PF-PPO),
    random_responses, or an import path."""
    high_entropy_fraction: float = 1.0
    """Learn only from this share of the tokens, those with the highest entropy at sampling. 1: all."""
    high_entropy_scope: Literal["batch", "sequence"] = "batch"
    """What high_entropy_fraction is a share of: the tokens of a step on all ranks, or those of each answer."""
    kl: Literal["k1", "k2", "k3", "k1+", "k3+"] = "k3"
    """Estimator of the divergence from the reference model; + means with the gradient of k2."""
    kl_coefficient: float = 0.0
    """Weight of the divergence from the reference; 0 loads no reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence enters."""
    kl_target: float = 0.0
    """Divergence per token that kl_coefficient is steered towards, step by step; 0: the coefficient is fixed."""
    kl_gain: float = 0.1
    """With kl_target: kl_coefficient changes by at most a fifth of this share per step."""
    reference_update_steps: int = 0
    """The reference follows the policy every so many steps; 0: it stays the model the run began with."""
    reference_update_rate: float = 1.0
    """How far it follows: 1 becomes the policy; small, with reference_update_steps=1, is a moving average."""
    teacher_coefficient: float = 0.0
    """Weight of the divergence from teacher.path, per token (on-policy distillation); 0 loads no teacher."""
    teacher_in: Literal["advantage", "loss"] = "advantage"
    """Where the teacher enters: log teacher - log policy is added to the advantage, or its divergence (k3+) to the loss."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus in the loss."""
    truncated: Literal["keep", "mask"] = "keep"
    """Answers cut at rollout.max_tokens: learn from them as from others, or leave their tokens out of the loss."""
    whiten: bool = False
    """Shift and scale advantages to mean 0, deviation 1 over all tokens of all ranks."""
    reward_clip: float = 0.0
    """Rewards are clipped to [-x, x] before advantages; 0: not."""
    overlong_buffer: int = 0
    """The last so many tokens before rollout.max_tokens cost more and more of overlong_penalty; 0: no penalty for length."""
    overlong_penalty: float = 1.0
    """What an answer of rollout.max_tokens tokens loses of its reward, if overlong_buffer is set."""
    mismatch_correction: Literal["none", "truncate", "mask"] = "none"
    """Weights against the mismatch of engine and trainer: none, p_trainer / p_engine cut at mismatch_limit, or the same
    with 0 for tokens beyond the limit either way."""
    mismatch_level: Literal["token", "sequence"] = "token"
    """A weight per token, or the product over the answer for all its tokens."""
    mismatch_limit: float = 2.0
    """Largest weight; mask also leaves out what is below its inverse."""
    options: dict[str, float] = field(default_factory=dict)
    """Keyword arguments of the advantage, loss, keep or filter function (dual_clip, tau_positive, drift, responses_to_learn_from, or
    your own function's), checked against its signature at start-up."""

    def __post_init__(self) -> None:
        if len(self.clip) != 2 or min(self.clip) < 0:
            raise ValueError(
                f"algorithm.clip={self.clip}: give two numbers >= 0, below and above, e.g. [0.2, 0.28]."
            )
        if not 0 < self.high_entropy_fraction <= 1:
            raise ValueError(
                f"algorithm.high_entropy_fraction={self.high_entropy_fraction}: a share above 0 and at most 1, e.g. 0.2."
            )
        if self.mismatch_limit <= 1:
            raise ValueError(
                f"algorithm.mismatch_limit={self.mismatch_limit}: the weight of a token both agree about is 1, so set it above 1, e.g. 2."
            )
        at_least(
            0,
            "algorithm",
            overlong_buffer=self.overlong_buffer,
            reference_update_steps=self.reference_update_steps,
        )
        self._check_reference()
        if self.advantage == "none" and (self.teacher_coefficient == 0 or self.teacher_in != "advantage"):
            raise ValueError(
                "algorithm.advantage=none leaves everything to a teacher, and none enters the advantage. Set teacher.path, "
                "algorithm.teacher_coefficient=1 and algorithm.teacher_in=advantage, or another algorithm.advantage."
            )
        for name, number in (("gamma", self.gamma), ("gae_lambda", self.gae_lambda)):
            if not 0 <= number <= 1:
                raise ValueError(f"algorithm.{name}={number}: must lie between 0 and 1.")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Settings that belong to something that is off."""
        for off, names, because, cure in (
            (self.advantage in WITHOUT_CRITIC, ["gae_lambda"], "advantage", "advantage=gae"),
            (
                self.advantage in (*COMPARING, "greedy_baseline", "none"),
                ["gamma"],
                "advantage",
                "advantage=reinforce",
            ),
            (
                self.advantage == "none",
                [
                    "whiten",
                    "advantage_clip",
                    "reward_clip",
                    "overlong_buffer",
                    "high_entropy_fraction",
                    "kl_in",
                ],
                "advantage",
                "advantage=group_norm",
            ),
            (
                self.kl_coefficient == 0,
                ["kl_target", "reference_update_steps"],
                "kl_coefficient",
                "kl_coefficient, e.g. 0.01",
            ),
            (self.kl_target == 0, ["kl_gain"], "kl_target", "kl_target, e.g. 0.05"),
            (
                self.reference_update_steps == 0,
                ["reference_update_rate"],
                "reference_update_steps",
                "reference_update_steps=1",
            ),
            (self.teacher_coefficient == 0, ["teacher_in"], "teacher_coefficient", "teacher_coefficient=1"),
            (
                self.overlong_buffer == 0,
                ["overlong_penalty"],
                "overlong_buffer",
                "overlong_buffer to some tokens",
            ),
            (
                self.high_entropy_fraction == 1,
                ["high_entropy_scope"],
                "high_entropy_fraction",
                "high_entropy_fraction=0.2",
            ),
        ):
            if off:
                reason = f"algorithm.{because}={getattr(self, because)}"
                refuse_idle("algorithm", self, names, because=reason, cure=f"set algorithm.{cure}")

    def _check_reference(self) -> None:
        if self.kl_target < 0 or self.kl_gain <= 0:
            raise ValueError(
                f"algorithm.kl_target={self.kl_target}, kl_gain={self.kl_gain}: the target must be at least 0 (0: fixed "
                "kl_coefficient), the gain above 0, e.g. 0.1."
            )
        if not 0 < self.reference_update_rate <= 1:
            raise ValueError(
                f"algorithm.reference_update_rate={self.reference_update_rate}: a share above 0 and at most 1 (1: becomes the policy)."
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A better model whose word-by-word judgement the policy follows; only with algorithm.teacher_coefficient."""

    path: str = ""
    """Model, as in model.path; its tokenizer must be the policy's."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""


@dataclass(frozen=True, kw_only=True)
class ConstraintConfig:
    """A cost that must stay low while the reward rises (PPO-Lagrangian). Off without cost."""

    cost: str = ""
    """Reward function (name or import path) that gives the cost of an answer; it need not be among rewards.functions."""
    limit: float = 0.0
    """Mean cost that is allowed."""
    multiplier: float = 1.0
    """What a unit of cost takes off the reward, at the start."""
    learning_rate: float = 0.1
    """Per step the multiplier rises by this times (mean cost - limit), never below 0."""
    max_multiplier: float = 100.0
    """Where it stops."""

    def __post_init__(self) -> None:
        if not 0 <= self.multiplier <= self.max_multiplier or self.learning_rate < 0:
            raise ValueError(
                f"constraint.multiplier={self.multiplier}, max_multiplier={self.max_multiplier}, learning_rate={self.learning_rate}: "
                "need 0 <= multiplier <= max_multiplier and learning_rate >= 0."
            )


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Answers of earlier steps, learned from again beside the new ones, with the log-probs of the policy that sampled them."""

    groups_per_step: int = 0
    """Groups of earlier steps that each step learns from again, over all ranks; 0: none."""
    max_age: int = 4
    """Steps after which an answer is not used any more."""

    def __post_init__(self) -> None:
        at_least(0, "replay", groups_per_step=self.groups_per_step)
        at_least(1, "replay", max_age=self.max_age)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """How answers are judged. Empty functions: each task's own reward."""

    functions: dict[str, float] = field(default_factory=dict)
    """Reward name or import path -> weight, added up; replaces the tasks' own reward in training. E.g. {math: 1.0, format: 0.2}."""
    timeout_seconds: float = 30.0
    """Longest time one call may take for one step's answers of one task; it runs in a child process that is then killed."""
    on_failure: Literal["raise", "drop"] = "raise"
    """A reward that raises, hangs, or returns NaN or infinity: stop the run, or drop those answers, counted and logged."""
    workers: int = 1
    """Child processes that compute rewards; 0 computes them in the main process, without time limit."""
    scale: dict[str, float] = field(default_factory=dict)
    """Task -> factor on the rewards of its answers before they are learned from; 1 where a task is not named."""
    normalise: Literal["none", "scale", "shift_and_scale"] = "none"
    """Divide rewards by the deviation of all rewards of their task so far in the run, on all ranks; or subtract the mean first."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A language model that judges answers in words; only with the reward `judge`."""

    path: str = ""
    """Model, as in model.path, whole on every device while answers are judged; or `policy`: the policy itself, by rollout.engine."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
    chat_template: str = ""
    """As model.chat_template, for a judge without one of its own."""
    max_length: int = 0
    """Most tokens of what the judge is asked with its reply; 0: what the model was made for. An answer that needs more has no score
    (rewards.on_failure)."""
    engine: str = "native"
    """What asks the model of judge.path: native, or the import path of an engine that has its weights, e.g.
    examples/openai_engine.py:OpenAIEngine for a server; the model then gives the tokenizer alone."""
    template: str = ""
    """Text file with what the judge is asked; {question}, {answer} and {target} are filled in. Empty: a general one."""
    score_pattern: str = r"(?i)score:\s*\**\s*(-?\d+(?:\.\d+)?)"
    """Regular expression whose group is the score in the judge's reply; the last one counts."""
    max_score: float = 10.0
    """The score of a perfect answer, for which the reward is 1."""
    samples: int = 1
    """Replies per answer, whose mean counts."""
    temperature: float = 0.0
    """Of the replies; 0: the likeliest."""
    max_tokens: int = 256
    """Most tokens of a reply."""

    def __post_init__(self) -> None:
        at_least(1, "judge", samples=self.samples, max_tokens=self.max_tokens)
        at_least(0, "judge", max_length=self.max_length)
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"judge.samples={self.samples} with judge.temperature=0 gives the same reply {self.samples} times. Set "
                "judge.temperature, e.g. 0.7."
            )
        if not self.max_score > 0:
            raise ValueError(f"judge.max_score={self.max_score:g}: must be above 0.")
        try:
            groups = re.compile(self.score_pattern).groups
        except re.error as error:
            raise ValueError(
                f"judge.score_pattern={self.score_pattern}: not a regular expression: {error}."
            ) from None
        if groups != 1:
            raise ValueError(
                f"judge.score_pattern={self.score_pattern}: must have one group, the score, and has {groups}."
            )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """A model that computes a number for a whole answer; only with the reward `reward_model`."""

    path: str = ""
    """Model with a trained head (transformers' ForSequenceClassification), as in model.path; whole on every device while answers
    are judged, in model.dtype."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
    chat_template: str = ""
    """As model.chat_template, for a model without one of its own."""
    max_length: int = 0
    """Most tokens of a question with its answer; 0: what the model was made for. A longer one has no reward
    (rewards.on_failure)."""
    output_index: int = 0
    """Which of its outputs, counted from 0."""
    tokens_per_micro_batch: int = 8192
    """Most tokens computed at once; a longer conversation goes alone."""

    def __post_init__(self) -> None:
        at_least(0, "reward_model", output_index=self.output_index, max_length=self.max_length)
        at_least(1, "reward_model", tokens_per_micro_batch=self.tokens_per_micro_batch)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-6
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = 1e-8
    """Added to the root of the running square."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: never."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0 linearly."""
    final_fraction: float = 0.0
    """Share of the peak learning rate at the last step of linear and cosine."""
    max_bad_steps: int = 5
    """Optimizer steps in a row with a NaN or infinite loss or gradient, each skipped and counted, before the run stops."""

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: must be >= 0.")
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas={self.betas}: give two numbers, e.g. [0.9, 0.999].")


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The model that predicts rewards still to come; only where an advantage needs it, such as gae."""

    path: str = ""
    """Model it starts from, as in model.path, with a new head; empty: the model the actor starts from."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    """Its own optimizer."""
    value_clip: float = 0.2
    """How far a value may move from that at sampling before its gradient stops; 0: any distance."""
    warmup_steps: int = 0
    """Steps at the start of the run in which only the critic learns."""

    def __post_init__(self) -> None:
        at_least(0, "critic", warmup_steps=self.warmup_steps)
        if self.value_clip < 0:
            raise ValueError(f"critic.value_clip={self.value_clip}: must be at least 0.")


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How one step's answers become gradient steps."""

    epochs: int = 1
    """Passes over the answers of a step."""
    num_minibatches: int = 1
    """Optimizer steps per pass; answers are shared out evenly, groups split only where they must be."""
    tokens_per_micro_batch: int = 1024
    """Most tokens the model reads in one forward and backward pass. Gradients accumulate and do not depend on it."""
    logits_per_chunk: int = 4_194_304
    """Most logits (positions x part of the vocabulary) that exist at once; 4 bytes each. What fits the cache is fastest."""
    share_prompts: bool = True
    """Compute a prompt once for all answers to it. false lays it before each answer; slow, for checking."""

    def __post_init__(self) -> None:
        at_least(
            1,
            "update",
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            tokens_per_micro_batch=self.tokens_per_micro_batch,
            logits_per_chunk=self.logits_per_chunk,
        )


@dataclass(frozen=True, kw_only=True)
class FsdpConfig:
    """Sharding by torch's FSDP2; only with strategy.backend=fsdp."""

    reshard_after_forward: bool = True
    """Forget a block's weights after its forward pass and gather them again for the backward pass; false: less traffic, more memory."""
    offload: bool = False
    """Keep weights, gradients and optimizer in host memory; a block's weights come to the device when it computes."""
    replicas: int = 1
    """Copies of the model, each sharded over as many processes (hybrid sharding), e.g. one per node."""

    def __post_init__(self) -> None:
        at_least(1, "strategy.fsdp", replicas=self.replicas)


@dataclass(frozen=True, kw_only=True)
class DeepspeedConfig:
    """DeepSpeed's ZeRO; only with strategy.backend=zero1, zero2 or zero3."""

    offload_optimizer: bool = False
    """Keep optimizer and float32 weights in host memory, and update them there."""
    offload_param: bool = False
    """With zero3: keep the pieces of the weights in host memory too; a block's weights come to the device when it computes."""
    bucket_mib: int = 256
    """Most MiB of gradients that are summed, or of weights that are gathered, in one message; each process holds a few of them."""
    param_persistence_threshold: int = 100_000
    """With zero3: a weight of fewer numbers (biases, norms) is whole on every process, which saves small messages."""
    max_live_parameters: int = 1_000_000_000
    """With zero3: as many weights may stay whole on a process from the forward to the backward pass, which saves gathering them
    again; 0: none but those that compute."""

    def __post_init__(self) -> None:
        at_least(1, "strategy.deepspeed", bucket_mib=self.bucket_mib)
        at_least(
            0,
            "strategy.deepspeed",
            param_persistence_threshold=self.param_persistence_threshold,
            max_live_parameters=self.max_live_parameters,
        )


ZERO = ("zero1", "zero2", "zero3")
"""The backends of DeepSpeed."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Where and how the model is trained."""

    backend: str = "single"
    """single: one process. fsdp: any number of processes, each with a piece of the model. zero1, zero2, zero3: the same
    by DeepSpeed. Or the import path of a Strategy class."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, npu, xpu, mps."""
    threads: int = 0
    """CPU threads for torch; 0: torch's choice ($OMP_NUM_THREADS)."""
    timeout_seconds: float = 1800.0
    """Longest that a process waits for the others, or does not get on itself, before the run ends with what it waited for."""
    offload: bool = False
    """Move residents that a phase does not need to host memory (accelerators; on CPU there is nothing to move)."""
    sequence_parallel: int = 1
    """Processes that compute each micro-batch together, each a part of its tokens: for answers too long for one (Ulysses)."""
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)

    def __post_init__(self) -> None:
        at_least(1, "strategy", sequence_parallel=self.sequence_parallel)
        because = f"strategy.backend={self.backend}"
        if self.backend not in ZERO:
            cure = "set strategy.backend=zero2"
            refuse_idle("strategy.deepspeed", self.deepspeed, because=because, cure=cure)
        elif self.backend != "zero3":
            weights = ["offload_param", "param_persistence_threshold", "max_live_parameters"]
            cure = "set strategy.backend=zero3"
            refuse_idle("strategy.deepspeed", self.deepspeed, weights, because=because, cure=cure)
        if self.backend != "fsdp":
            cure = "set strategy.backend=fsdp"
            refuse_idle("strategy.fsdp", self.fsdp, because=because, cure=cure)
        if self.timeout_seconds <= 0:
            raise ValueError(
                f"strategy.timeout_seconds={self.timeout_seconds:g}: must be above 0. Set 1800 (half an hour)."
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved, and when."""

    every_steps: int = 50
    """Save everything needed to go on, every so many steps; 0: only at the end or when stopped."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    background: bool = False
    """Copy to host memory and write while training goes on; the next checkpoint, or the end, waits for it."""

    def __post_init__(self) -> None:
        at_least(0, "checkpoint", every_steps=self.every_steps)
        at_least(1, "checkpoint", keep_last=self.keep_last)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Held-out evaluation, in training and in `lightrft evaluate`."""

    every_steps: int = 0
    """Evaluate every so many steps; 0: only before and after."""
    before_and_after: bool = True
    """Evaluate before the first and after the last step."""
    limit: int = 256
    """Most questions per task; 0: all."""
    samples: int = 1
    """Answers per question."""
    temperature: float = 0.0
    """Sampling temperature; 0: the most likely token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens with this total probability."""
    max_tokens: int = 0
    """Most tokens of an answer; 0: rollout.max_tokens."""
    pass_k: list[int] = field(default_factory=lambda: [1])
    """k of pass@k; each at most samples."""
    majority_k: list[int] = field(default_factory=list)
    """k of maj@k; each at most samples."""

    def __post_init__(self) -> None:
        too_large = [k for k in [*self.pass_k, *self.majority_k] if k > self.samples]
        if too_large:
            raise ValueError(
                f"evaluate.pass_k / majority_k={too_large}: need at least as many answers. Set evaluate.samples={max(too_large)} or more."
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluate.samples={self.samples} with evaluate.temperature=0 gives the same answer {self.samples} times. Set evaluate.temperature, e.g. 0.7."
            )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes down."""

    progress: bool = True
    """Live progress in the terminal; false prints one line per step."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    trajectories_every_steps: int = 1
    """Save the answers of every n-th step for `lightrft view`; 0: none."""
    token_columns: bool = True
    """Save per-token log-probs and advantages with the trajectories."""
    capture_steps: list[int] = field(default_factory=list)
    """Steps whose whole input is written as a capsule for `lightrft replay`."""
    capture_spikes: float = 0.0
    """Capture a step whose gradient norm exceeds this many times its running median; 0: never. NaN steps always are."""

    def __post_init__(self) -> None:
        at_least(0, "log", trajectories_every_steps=self.trajectories_every_steps)
        if self.capture_spikes != 0 and not self.capture_spikes > 1:
            raise ValueError(
                f"log.capture_spikes={self.capture_spikes}: a spike is a gradient norm above its median. Set it above 1, e.g. 5, or to 0."
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Reinforcement learning of a language model (`lightrft train`)."""

    run: str = ""
    """Run folder. Empty: runs/NAME-DATE-TIME."""
    name: str = "run"
    """Name of the run, used in the run folder and the logs."""
    seed: int = 0
    """Seed of every random choice."""
    steps: int = 100
    """Training steps: each draws answers and learns from them."""
    data: str = ""
    """Folder with the tasks' data sets (DATA/gsm8k/train.jsonl, ...). Empty: each task's hub data set."""
    trainer: str = "rl"
    """rl, or the import path of a subclass of RLTrainer."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        at_least(1, "", steps=self.steps)
        if self.algorithm.advantage in COMPARING and self.rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size={self.rollout.group_size}: algorithm.advantage={self.algorithm.advantage} compares answers to one "
                "prompt and needs at least 2. Set rollout.group_size=8, or algorithm.advantage=reinforce."
            )
        self._refuse_idle()
        if self.critic.warmup_steps >= self.steps:
            raise ValueError(
                f"critic.warmup_steps={self.critic.warmup_steps} but steps={self.steps}: the policy would never learn. "
                "Lower critic.warmup_steps."
            )
        if self.algorithm.group_filter == "mixed_outcomes" and self.rollout.group_size < 2:
            raise ValueError(
                "algorithm.group_filter=mixed_outcomes keeps groups in which rewards differ, and with rollout.group_size=1 there are none. "
                "Set rollout.group_size=8, or algorithm.group_filter=all."
            )
        self._check_models()
        self._check_reuse()
        self._check_overlap()
        unknown = sorted(self.rewards.scale.keys() - self.tasks.train.keys())
        if unknown:
            raise ValueError(
                f"rewards.scale names '{unknown[0]}', which is not among tasks.train: {', '.join(self.tasks.train) or 'none'}."
            )
        if self.algorithm.overlong_buffer > self.rollout.max_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer={self.algorithm.overlong_buffer} is more than rollout.max_tokens={self.rollout.max_tokens}, so "
                "that every answer would be punished for its length. Lower algorithm.overlong_buffer, e.g. to a fifth of it."
            )
        answers = self.rollout.prompts_per_step * self.rollout.group_size
        if self.update.num_minibatches > answers:
            raise ValueError(
                f"update.num_minibatches={self.update.num_minibatches} but a step has only {answers} answers (rollout.prompts_per_step="
                f"{self.rollout.prompts_per_step} x rollout.group_size={self.rollout.group_size}). Lower update.num_minibatches."
            )

    def _refuse_idle(self) -> None:
        """Sections, or settings in them, that belong to something that is off."""
        advantage = f"algorithm.advantage={self.algorithm.advantage}"
        if self.algorithm.advantage in WITHOUT_CRITIC:
            refuse_idle("critic", self.critic, because=advantage, cure="set algorithm.advantage=gae")
        if self.algorithm.advantage == "none":
            cure = "set algorithm.advantage=group_norm"
            refuse_idle("rewards", self.rewards, ["scale", "normalise"], because=advantage, cure=cure)
            refuse_idle("constraint", self.constraint, because=advantage, cure=cure)
        if self.algorithm.group_filter == "all":
            cure = "set algorithm.group_filter=mixed_outcomes"
            refuse_idle(
                "rollout", self.rollout, ["extra_groups"], because="algorithm.group_filter=all", cure=cure
            )
        for section, switch, cure in (
            ("constraint", "cost", "to a reward function, e.g. length"),
            ("teacher", "path", "to a model"),
            ("judge", "path", "to a model"),
            ("reward_model", "path", "to a model"),
            ("replay", "groups_per_step", "e.g. 4"),
        ):
            options = getattr(self, section)
            if not getattr(options, switch):
                because = f"{section}.{switch}={getattr(options, switch) or 'nothing'}"
                refuse_idle(section, options, because=because, cure=f"set {section}.{switch} {cure}")

        if self.judge.path == POLICY:
            refuse_idle(
                "judge",
                self.judge,
                ["revision", "chat_template", "engine"],
                because=f"judge.path={POLICY}",
                cure="set judge.path to a model of its own",
            )

    def _check_models(self) -> None:
        coefficient = self.algorithm.teacher_coefficient
        if coefficient and not self.teacher.path:
            raise ValueError(
                f"algorithm.teacher_coefficient={coefficient} needs a teacher. Set teacher.path to a model, e.g. a larger one "
                "of the same family."
            )
        if self.teacher.path and not coefficient:
            raise ValueError(
                f"teacher.path={self.teacher.path} has no effect with algorithm.teacher_coefficient=0. Set "
                "algorithm.teacher_coefficient, e.g. 1."
            )
        if self.tasks.rewards and "file" not in {**self.tasks.train, **self.tasks.evaluate}:
            raise ValueError(
                "tasks.rewards is the reward of task file, which is not among tasks.train or tasks.evaluate. Set rewards.functions."
            )
        if self.algorithm.reference_update_steps and self.model.lora.rank:
            raise ValueError(
                f"algorithm.reference_update_steps={self.algorithm.reference_update_steps} with model.lora.rank={self.model.lora.rank}: there the "
                "reference is the model without its adapters, which cannot follow. Set one of them to 0."
            )

    def _check_overlap(self) -> None:
        """The next step is drawn while rewards are computed elsewhere, and nothing else is asked meanwhile."""
        if self.rollout.overlap_rewards and not self.rewards.workers:
            raise ValueError(
                "rollout.overlap_rewards with rewards.workers=0: rewards in the main process would hold up the rollout. Set rewards.workers=1."
            )
        late = (
            "max_tokens_per_step"
            if self.rollout.max_tokens_per_step
            else "overlap_rewards"
            if self.rollout.overlap_rewards
            else ""
        )
        if late and self.algorithm.advantage == "greedy_baseline":
            raise ValueError(
                f"rollout.{late} with algorithm.advantage=greedy_baseline: the likeliest answer would come from other weights than those "
                f"it is compared with. Leave rollout.{late} out, or set algorithm.advantage=reinforce."
            )

    def _check_reuse(self) -> None:
        """Answers of older weights need a loss that knows their ratio."""
        if self.algorithm.loss != "policy_gradient":
            return
        for name, reused in (
            ("replay.groups_per_step", self.replay.groups_per_step > 0),
            ("rollout.extra_groups", self.rollout.extra_groups == "carry_over"),
            ("rollout.max_tokens_per_step", self.rollout.max_tokens_per_step > 0),
            ("rollout.overlap_rewards", self.rollout.overlap_rewards),
        ):
            if reused:
                raise ValueError(
                    f"{name} learns from answers of earlier weights, and algorithm.loss=policy_gradient takes all answers for new ones. "
                    "Set algorithm.loss=clipped."
                )


CONVERSATIONS = "lightrft.datasets.conversations:conversation"
"""The format of rows that hold whole conversations."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Loss on held-out conversations, in supervised fine-tuning: those of tasks.evaluate, or of tasks.train's evaluation split."""

    every_steps: int = 0
    """Measure it every so many steps; 0: only before and after."""
    before_and_after: bool = True
    """Measure it before the first and after the last step."""
    limit: int = 256
    """Most conversations per task; 0: all."""

    def __post_init__(self) -> None:
        at_least(0, "evaluate", every_steps=self.every_steps, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class SFTLogConfig:
    """What a run of supervised fine-tuning writes down besides metrics.jsonl."""

    progress: bool = True
    """Live progress in the terminal; false prints one line per step."""
    tensorboard: bool = True
    """Write TensorBoard events."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning of a language model (`lightrft sft`)."""

    run: str = ""
    """Run folder. Empty: runs/NAME-DATE-TIME."""
    name: str = "run"
    """Name of the run, used in the run folder and the logs."""
    seed: int = 0
    """Seed of every random choice."""
    steps: int = 0
    """Training steps, one update each; 0: as many as `epochs` need."""
    epochs: float = 1.0
    """Passes over the training conversations, all tasks together; the last step may begin another to be full."""
    batch_size: int = 16
    """Conversations per step, over all ranks."""
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which turns of the assistant to learn from: all of a conversation, or its last one only."""
    average: Literal["token", "sequence"] = "token"
    """token: all tokens weigh the same. sequence: all conversations do."""
    max_tokens: int = 1024
    """Most tokens of what follows the prompt: the first answer that is learned from, and the turns after it."""
    on_long_response: Literal["raise", "skip", "truncate"] = "skip"
    """More than max_tokens: stop, skip and count, or cut tokens from the end, which then has no end token."""
    data: str = ""
    """Folder with the tasks' data sets (DATA/gsm8k/train.jsonl, ...). Empty: each task's hub data set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=lambda: TaskConfig(format=CONVERSATIONS))
    media: MediaConfig = field(default_factory=MediaConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: SFTLogConfig = field(default_factory=SFTLogConfig)

    def __post_init__(self) -> None:
        at_least(0, "", steps=self.steps)
        at_least(1, "", batch_size=self.batch_size, max_tokens=self.max_tokens)
        if self.epochs <= 0:
            raise ValueError(f"epochs={self.epochs}: must be above 0.")
        if self.steps and self.epochs != 1.0:
            raise ValueError(
                f"epochs={self.epochs} has no effect with steps={self.steps}. Set steps=0, or leave epochs out."
            )
        because = "lightrft sft, which takes one update per step"
        refuse_idle(
            "update",
            self.update,
            ["epochs", "num_minibatches"],
            because=because,
            cure="set batch_size or epochs",
        )
        because = "lightrft sft, which measures the held-out loss"
        cure = "score the finished model with `lightrft evaluate`"
        refuse_idle("tasks", self.tasks, ["rewards"], because=because, cure=cure)


def refuse_idle(section: str, options: Any, names: Sequence[str] = (), *, because: str, cure: str) -> None:
    """Raises ValueError for the first of these options (of all, if none is named) that is set to no effect."""
    for f in fields(options):
        value = getattr(options, f.name)
        default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[operator]
        if value != default and (not names or f.name in names):
            told, back = (
                ("", "Leave it out") if is_dataclass(value) else (f"={value}", f"Set it to {default!r}")
            )
            raise ValueError(f"{section}.{f.name}{told} has no effect with {because}. {back}, or {cure}.")


def at_least(minimum: int, section: str, **options: int) -> None:
    """Raises ValueError for the first option below the minimum."""
    for name, value in options.items():
        if value < minimum:
            where = f"{section}.{name}" if section else name
            raise ValueError(f"{where}={value}: must be at least {minimum}.")
