"""The numbers that each setting may have: one table, read wherever a section of settings is made.

Every number of every section stands here, also in lists and tables of numbers, and all must be finite: a NaN compares as neither too
small nor too large, and would only show as a model that does not learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, number: float) -> bool:
        if not math.isfinite(number):
            return False
        above = number > self.low if self.without_low else number >= self.low
        below = number < self.high if self.without_high else number <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.without_low else 'at least'} {self.low}" if self.low > -math.inf else ""
        high = f"{'below' if self.without_high else 'at most'} {self.high}" if self.high < math.inf else ""
        return " and ".join(filter(None, (low, high))) or "a finite number"


ANY = Range()
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, without_low=True)
COUNT = Range(1)
"""At least one of something."""
SHARE = Range(0, 1)
SOME = Range(0, 1, without_low=True)
"""A share that is not nothing."""
SEED = Range(0, 2**32 - 1)
"""What all generators take, numpy's oldest included."""

RANGES: dict[str, dict[str, Range]] = {
    "": {"seed": SEED, "steps": COUNT},
    "sft": {
        "seed": SEED,
        "steps": NOT_NEGATIVE,
        "epochs": POSITIVE,
        "batch_size": COUNT,
        "max_tokens": COUNT,
    },
    "reward": {
        "seed": SEED,
        "steps": NOT_NEGATIVE,
        "epochs": POSITIVE,
        "batch_size": COUNT,
        "options": ANY,
        "max_tokens": COUNT,
    },
    "remote": {"batch": COUNT, "requests": COUNT, "timeout_seconds": POSITIVE, "retries": NOT_NEGATIVE},
    "dpo": {
        "seed": SEED,
        "steps": NOT_NEGATIVE,
        "epochs": POSITIVE,
        "batch_size": COUNT,
        "options": ANY,
        "sft_coefficient": NOT_NEGATIVE,
        "max_tokens": COUNT,
    },
    "model": {"checkpoint_every": COUNT},
    "model.lora": {"rank": NOT_NEGATIVE, "alpha": COUNT, "dropout": Range(0, 1, without_high=True)},
    "media": {
        "max_pixels": NOT_NEGATIVE,
        "fps": POSITIVE,
        "max_frames": COUNT,
        "max_seconds": NOT_NEGATIVE,
        "max_megapixels": POSITIVE,
        "max_megabytes": POSITIVE,
        "fetch_seconds": POSITIVE,
    },
    "tasks": {
        "train": POSITIVE,
        "evaluate": POSITIVE,
        "rewards": ANY,
        "max_prompt_tokens": COUNT,
        "train_limit": NOT_NEGATIVE,
        "stream_block": NOT_NEGATIVE,
    },
    "rollout": {
        "prompts_per_step": COUNT,
        "group_size": COUNT,
        "max_tokens": COUNT,
        "temperature": POSITIVE,
        "first_token_temperature": NOT_NEGATIVE,
        "first_token_top_k": NOT_NEGATIVE,
        "top_k": NOT_NEGATIVE,
        "top_p": SOME,
        "min_p": Range(0, 1, without_high=True),
        "max_sampling_rounds": COUNT,
        "rest_passes": NOT_NEGATIVE,
        "priority_floor": Range(0.01, 1),  # below, passes that draw nothing take longer than sampling
        "max_tokens_per_step": NOT_NEGATIVE,
        "max_staleness": Range(0, 1),
        "max_engine_restarts": NOT_NEGATIVE,
    },
    "environment": {
        "max_turns": COUNT,
        "turn_tokens": NOT_NEGATIVE,
        "reply_tokens": COUNT,
        "timeout_seconds": POSITIVE,
        "calls_seconds": NOT_NEGATIVE,
        "retries": NOT_NEGATIVE,
        "workers": NOT_NEGATIVE,
        "memory_gb": NOT_NEGATIVE,
    },
    "rollout.native": {"max_sequences": COUNT, "prefill_tokens": COUNT},
    "rollout.denoise": {
        "steps": Range(2),
        "evaluation_steps": NOT_NEGATIVE,
        "first": NOT_NEGATIVE,
        "until": NOT_NEGATIVE,
        "window": NOT_NEGATIVE,
        "move_every": COUNT,
        "level": POSITIVE,
        "guidance": Range(1),
        "height": NOT_NEGATIVE,
        "width": NOT_NEGATIVE,
        "frames": COUNT,
        "max_text_tokens": COUNT,
        "max_sequences": COUNT,
    },
    "masked": {"draws": COUNT, "canvas": NOT_NEGATIVE},
    "pictures": {
        "levels": COUNT,
        "frames": COUNT,
        "fps": POSITIVE,
        "height": NOT_NEGATIVE,
        "width": NOT_NEGATIVE,
        "max_text_tokens": COUNT,
        "text_dropout": Range(0, 1, without_high=True),
        "guidance": Range(1),
        "sampled_steps": NOT_NEGATIVE,
    },
    "rollout.unmask": {
        "tokens_per_step": COUNT,
        "block": NOT_NEGATIVE,
        "threshold": SOME,
        "prompt_mask": Range(0, 1, without_high=True),
        "draws": COUNT,
        "max_sequences": COUNT,
    },
    "rollout.vllm": {
        "max_num_seqs": COUNT,
        "max_model_len": NOT_NEGATIVE,
        "tensor_parallel_size": COUNT,
        "gpu_memory_utilization": SOME,
        "cache_gib": POSITIVE,
        "sleep_level": Range(1, 2),
    },
    "rollout.server": {
        "wait_seconds": POSITIVE,
        "timeout_seconds": POSITIVE,
        "retries": NOT_NEGATIVE,
        "requests": COUNT,
        "bucket_mib": COUNT,
    },
    "rollout.sglang": {
        "max_running_requests": COUNT,
        "context_length": NOT_NEGATIVE,
        "mem_fraction_static": SOME,
        "max_total_tokens": COUNT,
        "bucket_mib": COUNT,
        "start_seconds": POSITIVE,
    },
    "rollout.lmdeploy": {
        "max_batch_size": COUNT,
        "session_len": NOT_NEGATIVE,
        "cache_max_entry_count": SOME,
        "bucket_mib": COUNT,
    },
    "replay": {"groups_per_step": NOT_NEGATIVE, "max_age": COUNT},
    "algorithm": {
        "gamma": SHARE,
        "gae_lambda": SHARE,
        "value_samples": COUNT,
        "value_beta": POSITIVE,
        "advantage_clip": NOT_NEGATIVE,
        "clip": NOT_NEGATIVE,
        "high_entropy_fraction": SOME,
        "kl_coefficient": NOT_NEGATIVE,
        "kl_target": NOT_NEGATIVE,
        "kl_gain": POSITIVE,
        "entropy_target": NOT_NEGATIVE,
        "entropy_step": POSITIVE,
        "reference_update_steps": NOT_NEGATIVE,
        "reference_update_rate": SOME,
        "teacher_coefficient": NOT_NEGATIVE,
        "entropy_coefficient": ANY,
        "router_aux_coefficient": Range(-1),
        "reward_clip": NOT_NEGATIVE,
        "overlong_buffer": NOT_NEGATIVE,
        "overlong_penalty": NOT_NEGATIVE,
        "mismatch_limit": Range(1, without_low=True),
        "mismatch_floor": Range(0, 1, without_high=True),
        "off_policy_mask_limit": NOT_NEGATIVE,
        "options": ANY,
    },
    "rewards": {
        "functions": ANY,
        "timeout_seconds": POSITIVE,
        "workers": NOT_NEGATIVE,
        "memory_gb": NOT_NEGATIVE,
        "scale": NOT_NEGATIVE,
    },
    "sandbox": {
        "cpu_seconds": COUNT,
        "wall_seconds": POSITIVE,
        "memory_mib": Range(64),
        "output_kib": COUNT,
        "disk_mib": COUNT,
        "processes": NOT_NEGATIVE,
        "machine_processes": COUNT,
    },
    "constraint": {
        "limit": ANY,
        "multiplier": NOT_NEGATIVE,
        "learning_rate": NOT_NEGATIVE,
        "max_multiplier": NOT_NEGATIVE,
    },
    "judge": {
        "rivals": COUNT,
        "max_length": NOT_NEGATIVE,
        "max_score": POSITIVE,
        "samples": COUNT,
        "temperature": NOT_NEGATIVE,
        "max_tokens": COUNT,
    },
    "reward_model": {
        "max_length": NOT_NEGATIVE,
        "tokens_per_micro_batch": COUNT,
    },
    "optimizer": {
        "learning_rate": NOT_NEGATIVE,
        "options": ANY,
        "cycles": COUNT,
        "power": POSITIVE,
        "decay_steps": NOT_NEGATIVE,
        "betas": Range(0, 1, without_high=True),
        "eps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "max_grad_norm": NOT_NEGATIVE,
        "warmup_steps": NOT_NEGATIVE,
        "final_fraction": SHARE,
        "max_bad_steps": COUNT,
    },
    "critic": {"value_clip": NOT_NEGATIVE, "warmup_steps": NOT_NEGATIVE},
    "update": {
        "epochs": COUNT,
        "num_minibatches": COUNT,
        "tokens_per_micro_batch": COUNT,
        "logits_per_chunk": NOT_NEGATIVE,
    },
    "strategy": {
        "threads": NOT_NEGATIVE,
        "timeout_seconds": POSITIVE,
        "peak_teraflops": NOT_NEGATIVE,
        "sequence_parallel": COUNT,
    },
    "strategy.fsdp": {"replicas": COUNT},
    "strategy.deepspeed": {
        "bucket_mib": COUNT,
        "param_persistence_threshold": NOT_NEGATIVE,
        "max_live_parameters": NOT_NEGATIVE,
    },
    "checkpoint": {"every_steps": NOT_NEGATIVE, "keep_last": COUNT},
    "evaluate": {
        "every_steps": NOT_NEGATIVE,
        "limit": NOT_NEGATIVE,
        "samples": COUNT,
        "temperature": NOT_NEGATIVE,
        "top_p": SOME,
        "max_tokens": NOT_NEGATIVE,
        "pass_k": COUNT,
        "majority_k": COUNT,
    },
    "log": {
        "sample_groups": NOT_NEGATIVE,
        "trajectories_every_steps": NOT_NEGATIVE,
        "media_mib": NOT_NEGATIVE,
        "held_out_prompts": NOT_NEGATIVE,
        "sampled_tokens": NOT_NEGATIVE,
        "capture_steps": COUNT,
        "capture_spikes": NOT_NEGATIVE,
    },
}
"""Section -> setting -> what it may be; of a list or a table, what each number in it may be. The settings of `lightrft sft`,
`lightrft reward` and `lightrft dpo` outside their sections stand under sft, reward and dpo."""
WITHOUT_SECTION = ("", "sft", "reward", "dpo")
"""Names in RANGES of settings that stand outside any section."""
RANGES["critic.optimizer"] = RANGES["optimizer"]


def check_ranges(section: str, options: Any) -> None:
    """Raises ValueError for the first number of a section's settings that is out of range, naming setting, value and range."""
    ranges = RANGES[section]
    for f in fields(options):
        value = getattr(options, f.name)
        for place, number in numbers(value):
            if number not in ranges[f.name]:
                where = f.name if section in WITHOUT_SECTION else f"{section}.{f.name}"
                found = f"{number:g}" if isinstance(value, float) else value
                raise ValueError(f"{where}={found}: {place}must be {ranges[f.name]}.")


def numbers(value: Any) -> Iterator[tuple[str, float]]:
    """(which one it is, number) of a setting: itself, or those in a list or a table; nothing of a text or a section."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield "", value
    elif isinstance(value, list):
        yield from (("each ", x) for x in value if isinstance(x, (int, float)))
    elif isinstance(value, dict):
        yield from ((f"{name} ", x) for name, x in value.items() if isinstance(x, (int, float)))
