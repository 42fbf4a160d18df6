"""vLLM in this very process, beside the trainer; its weights are given at each sync (https://docs.vllm.ai).

Written for vLLM 0.32. On a CPU vLLM packs weights into a layout of oneDNN's that no new weights reach, so that is switched off (for
experts see vllm_weights.py); and its sleep mode frees memory of accelerators alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft.config import RolloutConfig, VllmConfig
from lightrft.config.rollout import SAMPLING
from lightrft.engines.base import NONE, EngineDiedError, EngineError, Progress
from lightrft.engines.external import (
    CURE,
    NEVER,
    EngineRequest,
    JointSleeper,
    SleepingPart,
    WeightNames,
    ends,
    engine_requests,
    folder_without_weights,
    refuse,
    refuse_other_values,
    refuse_unknown,
    same_tokens,
    starting,
)
from lightrft.engines.vllm_weights import check_taken, pack_again
from lightrft.models.experts import Routers, of_layers, routers_of
from lightrft.models.families import placeholders
from lightrft.models.logprobs import causal_lm
from lightrft.models.media import frames_taken
from lightrft.models.processor import Processor
from lightrft.parallel.world import World
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Finish, Prompt, Sampling
from lightrft.utils.imports import require
from lightrft.utils.paths import with_home

ON_CPU = {"enable_chunked_prefill": False}
"""Arguments that vLLM needs on a CPU."""
WHY_ON_CPU = "for of an answer with a seed whose prompt was read in part, vLLM takes the draw back in a way that a CPU does not know"


class VllmEngine:
    """An Engine. Each process has one of its own, or `rollout.vllm.tensor_parallel_size` neighbours have one together.

    What an answer says depends on the weights, its prompt, `sampling`, and the prompt's place; vLLM's sums may differ in the
    last digits with what else is generated.
    """

    def __init__(self, module: nn.Module, processor: Processor, config: RolloutConfig) -> None:
        """`module`: for its configuration, type and device. ValueError for what vLLM cannot do here."""
        refuse(config)
        weight = next(module.parameters())
        self.weight_version = NONE
        self._names = WeightNames.of(module)
        self._stop_ids, self._on_cpu = processor.stop_ids, weight.device.type == "cpu"
        self._reader, self._never = processor.media, placeholders(causal_lm(module).config)
        self._nbytes = sum(p.numel() * p.element_size() for p in causal_lm(module).parameters())
        self._cache_nbytes = int(config.vllm.cache_gib * 2**30) if self._on_cpu else 0
        self._level = config.vllm.sleep_level
        self._routers = told_routers(config, module, on_cpu=self._on_cpu)
        check_shared(config.vllm.tensor_parallel_size, causal_lm(module).config)
        self._group = _group(config.vllm.tensor_parallel_size)
        # Asked before vLLM makes a group of its own in this process.
        self._start = partial(_start, module, processor, config, joined=dist.is_initialized())
        self._llm = self._start()
        self._held = JointSleeper(self._let_go, lambda tag: self._llm.wake_up(tags=[tag]))
        for part in self.parts().values():
            part.offload()
        self.weight_version = NONE

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """ValueError for an empty prompt."""
        if self._held.asleep:  # vLLM would wait for ever
            raise EngineError(
                f"vLLM is asked while it sleeps ({', '.join(sorted(self._held.asleep))}): onload its parts first."
            )
        mine = engine_requests(prompts, sampling, self._reader)
        start, everything = self._with_others(mine)
        questions = [self._question(one) for one in everything]
        options = [self._options(one, sampling) for one in everything]
        try:
            found = self._llm.generate(questions, options, use_tqdm=False)[start : start + len(mine)]
        except (
            RuntimeError,
            AssertionError,
            OSError,
        ) as error:  # what a broken engine raises; a wrong request is a ValueError
            raise EngineDiedError(f"vLLM failed: {type(error).__name__}: {error}", self._restart) from error
        if progress is not None:
            tokens = sum(len(out.token_ids) for request in found for out in request.outputs)
            progress(sum(one.n for one in mine), tokens)
        for prompt, one, request in zip(prompts, mine, found, strict=True):
            same_tokens(prompt, one, request.prompt_token_ids)
        return [
            [self._completion(out, one) for out in request.outputs]
            for one, request in zip(mine, found, strict=True)
        ]

    def _question(self, one: EngineRequest) -> dict[str, Any]:
        if one.media is None:
            return {"prompt_token_ids": one.token_ids}
        assert self._reader is not None
        read = {
            "image": one.media.images,
            "video": [(clip.frames, frames_taken(clip)) for clip in one.media.videos],
            "audio": [(sound, self._reader.rate) for sound in one.media.audios],
        }
        return {
            "prompt_token_ids": one.unexpanded_token_ids,
            "multi_modal_data": {kind: media for kind, media in read.items() if media},
        }

    def any(self, here: bool) -> bool:
        """Whether one of the processes of this engine says so: all of them must ask it equally often."""
        if self._group is None:
            return here
        found = [False] * self._group.size()
        dist.all_gather_object(found, here, group=self._group)
        return max(found)

    def _with_others(self, mine: list[EngineRequest]) -> tuple[int, list[EngineRequest]]:
        """What all processes of one engine ask, and where this process's part begins: each must hand in all of it."""
        if self._group is None:
            return 0, mine
        parts: list[list[EngineRequest]] = [[] for _ in range(self._group.size())]
        dist.all_gather_object(parts, mine, group=self._group)
        before = parts[: self._group.rank()]
        return sum(map(len, before)), [request for part in parts for request in part]

    def _restart(self) -> None:
        """Another engine in place of one that is broken, on the device and waiting for weights."""
        del self._llm
        self.weight_version = NONE
        self._llm = self._start()
        self._held.anew()

    def _options(self, one: EngineRequest, sampling: Sampling) -> Any:
        """vLLM's own settings for one prompt. It counts siblings on from the seed it is given."""
        vllm = require("vllm", "vllm")
        return vllm.SamplingParams(
            n=one.n,
            max_tokens=one.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=one.seed,
            logprobs=0,
            ignore_eos=True,  # what ends an answer is told below: vLLM would take only one end token from the tokenizer
            stop_token_ids=ends(sampling, self._stop_ids),
            stop=None if sampling.ignore_eos else list(sampling.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            logit_bias=dict.fromkeys(self._never, NEVER) or None,
        )

    def _completion(self, out: Any, one: EngineRequest) -> Completion:
        tokens = list(out.token_ids)
        chosen = [step[token].logprob for step, token in zip(out.logprobs, tokens, strict=True)]
        finish: Finish = "stop" if out.finish_reason == "stop" else "length"
        told = out.routed_experts if self._routers is not None else None
        experts = None if self._routers is None or told is None else of_layers(told, self._routers)
        return Completion(tokens, chosen, finish, self.weight_version, one.seed + out.index, experts=experts)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """One tensor is there at a time."""

        def take(model: Any) -> None:
            check_taken(model, model.load_weights(self._names.for_checkpoint(weights)))
            if self._on_cpu:
                pack_again(model)

        self._llm.apply_model(take)
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()  # of pictures that come again it would keep what the old weights saw

    def parts(self) -> dict[str, Resident]:
        """The engine's weights and its cache of keys and values, as residents."""
        return {
            "weights": SleepingPart(self._held, "weights", self._nbytes),
            "cache": SleepingPart(self._held, "kv_cache", self._cache_nbytes),
        }

    def _let_go(self) -> None:
        self._llm.sleep(level=self._level)
        if self._level == 2:
            self.weight_version = NONE


def told_routers(config: RolloutConfig, module: nn.Module, *, on_cpu: bool) -> Routers | None:
    """The routers whose choices vLLM is to tell, if rollout.routing_replay asks for that. ValueError on a CPU, where vLLM does not tell."""
    if config.routing_replay != SAMPLING:
        return None
    if on_cpu:
        raise ValueError(
            f"rollout.routing_replay={SAMPLING} with rollout.engine=vllm on a CPU: vLLM tells which experts it chose on accelerators alone. Set "
            "rollout.routing_replay=old, or rollout.engine=native."
        )
    return routers_of(causal_lm(module))


def check_shared(processes: int, shape: Any) -> None:
    """ValueError if so many processes cannot share out a model of this config."""
    heads = shape.get_text_config().num_attention_heads
    if heads % processes:
        raise ValueError(
            f"rollout.vllm.tensor_parallel_size={processes} does not divide the model's {heads} attention heads. Set it to a divisor, or 1."
        )


def _group(processes: int) -> Any:
    """The process group of those that share one engine with this process; None where it has one alone."""
    if processes == 1:
        return None
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size % processes:
        raise ValueError(
            f"rollout.vllm.tensor_parallel_size={processes}: {size} processes cannot be shared out in groups of {processes}. Start a "
            "multiple of it (--gpus), or set it to 1."
        )
    group, _ = dist.new_subgroups(processes)
    World.current().limit(group)
    return group


def known_arguments(options: VllmConfig, *, on_cpu: bool = False) -> dict[str, Any]:
    """`rollout.vllm.options` as this vLLM takes them. ValueError for one that it does not know, or that would break ON_CPU."""
    setting, further = "rollout.vllm.options", options.further(with_home)
    if on_cpu:
        refuse_other_values(setting, further, ON_CPU, WHY_ON_CPU)
    arguments: Any = require("vllm.engine.arg_utils", "vllm", CURE).EngineArgs
    refuse_unknown(setting, further, [f.name for f in fields(arguments)], "vLLM")
    return further


def _start(module: nn.Module, processor: Processor, config: RolloutConfig, *, joined: bool) -> Any:
    options, weight = config.vllm, next(module.parameters())
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer computes in the same process
    on_cpu = weight.device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", f"{max(1, round(options.cache_gib))}")
    vllm = require("vllm", "vllm", CURE)
    further = known_arguments(options, on_cpu=on_cpu)
    more: dict[str, Any] = {}
    if on_cpu:
        # It says each time that sleep frees nothing.
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
        operators: Any = require("vllm._custom_ops", "vllm")
        operators._supports_onednn = False
        more |= ON_CPU
    else:
        more |= {"gpu_memory_utilization": options.gpu_memory_utilization, "enable_sleep_mode": True}
    if joined:
        more |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": options.tensor_parallel_size,
        }
    if options.max_model_len:
        more["max_model_len"] = options.max_model_len
    if config.routing_replay == SAMPLING:
        more["enable_return_routed_experts"] = True
    if processor.media is not None:  # else load_format=dummy would draw at random what pictures are scaled by
        more["mm_device_do_normalize"] = False
    with (
        folder_without_weights(module, processor) as folder,
        starting("vLLM", "rollout.vllm.options", further),
    ):
        llm = vllm.LLM(
            model=str(folder),
            load_format="dummy",
            dtype=str(weight.dtype).removeprefix("torch."),
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            enforce_eager=options.enforce_eager,
            max_num_seqs=options.max_num_seqs,
            **{"disable_log_stats": True, **more, **further},
        )
    if joined:  # at its end it would take down torch's process group, which is the run's
        llm.llm_engine.engine_core._finalizer.detach()
    return llm
