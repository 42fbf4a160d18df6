"""SGLang beside the trainer: its scheduler is a process of its own, its weights are given at each sync (https://docs.sglang.io).

Written for SGLang 0.5.23. It is driven from a thread: in the main one it would take over the signals that end a run, and kill the
run when its scheduler dies.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import multiprocessing
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightrft.config import RolloutConfig, SglangConfig
from lightrft.config.rollout import SAMPLING
from lightrft.engines.base import NONE, EngineDiedError, EngineError, Progress
from lightrft.engines.buckets import buckets
from lightrft.engines.external import (
    CURE,
    NEVER,
    EngineRequest,
    SleepingPart,
    WeightNames,
    check_kinds,
    ends,
    engine_requests,
    folder_without_weights,
    refuse,
    refuse_other_values,
    refuse_unknown,
)
from lightrft.engines.sampling import stream, uniforms
from lightrft.models.experts import Routers, of_layers, routers_of
from lightrft.models.families import placeholders
from lightrft.models.logprobs import causal_lm
from lightrft.models.processor import Processor
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Finish, Prompt, Sampling
from lightrft.utils.imports import require
from lightrft.utils.paths import with_home

T = TypeVar("T")
GLANCE_SECONDS = 0.5


class SglangEngine:
    """An Engine. Each process has one of its own. Media reach it as the trainer's processor has read them.

    Its log-probs are those of the whole distribution, so draws from a part of it are refused.
    """

    def __init__(self, module: nn.Module, processor: Processor, config: RolloutConfig) -> None:
        """`module`: for its configuration, type and device. ValueError for what SGLang cannot do here."""
        refuse(config, "top_k", "top_p", "min_p")
        weight = next(module.parameters())
        self.weight_version = NONE
        self._names, self._stop_ids = WeightNames.of(module), processor.stop_ids
        self._never = placeholders(causal_lm(module).config)
        self._check = partial(check_kinds, "sglang", reader=processor.media, device=weight.device)
        self._bucket, self._start_seconds = config.sglang.bucket_mib * 2**20, config.sglang.start_seconds
        self._routers = routers_of(causal_lm(module)) if config.routing_replay == SAMPLING else None
        self._sleeps = weight.device.type != "cpu"
        self._nbytes = sum(p.numel() * p.element_size() for p in causal_lm(module).parameters())
        self._asleep: set[str] = set()
        needed = _needed(weight.device, processor)
        further = known_arguments(config.sglang, needed)
        self._make = lambda: _start(module, processor, config, needed | further)
        self._begin()
        self.sleep("weights")
        self.sleep("kv_cache")

    def _begin(self) -> None:
        self._died = threading.Event()
        _heed(self._died)
        self._thread = _Caller()
        self._engine = self._started()
        self._died.clear()  # word of an engine before this one may have come meanwhile

    def _started(self) -> Any:
        """The engine. EngineError if it does not start, or takes too long; of its processes none is left then."""
        others = multiprocessing.active_children()
        future = self._thread.submit(self._make)
        try:
            return future.result(timeout=self._start_seconds)
        except NotYet:
            if future.done():
                return future.result()
            why = (
                f"within rollout.sglang.start_seconds={self._start_seconds:g}. Raise it, or see what its processes "
                "have printed above."
            )
        except Exception as error:
            why = f"({error}). Why, its processes have printed above."
        for child in multiprocessing.active_children():
            if child not in others and child.pid is not None:
                _kill(child.pid)
        raise EngineError(f"SGLang did not start {why}")

    def _there(self, call: Callable[[], T], progress: Progress | None = None) -> T:
        """The result of a call in the engine's thread. EngineDiedError if the scheduler dies meanwhile."""
        future: Future[T] = self._thread.submit(call)
        while True:
            try:
                return future.result(timeout=GLANCE_SECONDS)
            except NotYet:
                if self._died.is_set():
                    raise EngineDiedError(
                        "SGLang's scheduler died; why, it has printed above.", self._restart
                    ) from None
                if progress is not None:
                    progress(0, 0)

    def _restart(self) -> None:
        """Another engine in place of one that is broken, on the device and waiting for weights."""
        children = self._engine.get_all_child_pids()
        for child in children:
            _kill(child)
        self.weight_version = NONE
        self._asleep.clear()
        self._begin()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Answers to each prompt, drawn in one call of SGLang; as in Engine."""
        self._check(prompts)
        questions = engine_requests(prompts, sampling)
        tokens = [one.token_ids for one in questions for _ in range(one.n)]
        options = [self._options(one, k, sampling) for one in questions for k in range(one.n)]
        media = [_read(prompt) for prompt, one in zip(prompts, questions, strict=True) for _ in range(one.n)]
        if not tokens:
            return []
        call = partial(
            self._engine.generate,
            input_ids=tokens,
            sampling_params=options,
            image_data=media if any(media) else None,
            return_logprob=True,
            return_routed_experts=self._routers is not None,
        )
        found = iter(self._there(call, progress))
        groups = [[self._completion(next(found), one.seed + k) for k in range(one.n)] for one in questions]
        if progress is not None:
            answers = [answer for group in groups for answer in group]
            progress(len(answers), sum(len(answer.token_ids) for answer in answers))
        return groups

    def _options(self, one: EngineRequest, sibling: int, sampling: Sampling) -> dict[str, Any]:
        return {
            "max_new_tokens": one.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "sampling_seed": one.seed + sibling,
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": ends(sampling, self._stop_ids),
            "stop": None if sampling.ignore_eos else list(sampling.stop),
            "no_stop_trim": True,
            "skip_special_tokens": False,
            "logit_bias": {str(token): NEVER for token in self._never} or None,
        }

    def _completion(self, out: dict[str, Any], seed: int) -> Completion:
        kind = out["meta_info"]["finish_reason"]["type"]
        finish: Finish = "stop" if kind == "stop" else "length"
        chosen = out["meta_info"]["output_token_logprobs"]
        tokens = [token for _, token, _ in chosen]
        logprobs = [logprob for logprob, _, _ in chosen]
        told = out["meta_info"].get("routed_experts")
        experts = None if self._routers is None or told is None else _experts(told, self._routers)
        return Completion(tokens, logprobs, finish, self.weight_version, seed, experts=experts)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Outside begin and end SGLang takes no weights, and only says so in what it gives back."""
        self._must(lambda: self._engine.begin_weight_update())
        try:
            for bucket in buckets(self._names.for_checkpoint(weights), self._bucket):
                pairs = [(name, tensor.contiguous()) for name, tensor in bucket.items()]
                self._must(partial(self._engine.update_weights_from_tensor, pairs, flush_cache=False))
        finally:
            self._must(lambda: self._engine.end_weight_update())
            self._there(lambda: self._engine.flush_cache())

    def _must(self, call: Callable[[], Any]) -> None:
        success, message = self._there(call)[:2]
        if not success:
            raise EngineError(f"SGLang did not take the new weights: {message}")

    def parts(self) -> dict[str, Resident]:
        """The engine's weights and its cache of keys and values, as residents."""
        return {
            "weights": SleepingPart(self, "weights", self._nbytes),
            "cache": SleepingPart(self, "kv_cache", 0),
        }

    def sleep(self, tag: str) -> None:
        """Gives weights or cache back; SGLang wants to be idle then, and is."""
        if tag == "weights":
            self.weight_version = NONE
        if self._sleeps and tag not in self._asleep:
            self._there(lambda: self._engine.release_memory_occupation(tags=[tag]))
        self._asleep.add(tag)

    def wake(self, tag: str) -> None:
        """Takes room for them."""
        if self._sleeps and tag in self._asleep:
            self._there(lambda: self._engine.resume_memory_occupation(tags=[tag]))
        self._asleep.discard(tag)


def _experts(told: str, routers: Routers) -> Tensor:
    """(n, M, K) from what SGLang tells of all decoder layers: int32, in base64."""
    numbers = torch.frombuffer(bytearray(base64.b64decode(told)), dtype=torch.int32)
    return of_layers(numbers.view(-1, routers.num_layers, routers.per_token), routers)


def _read(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt's pictures and clips in one piece, with its places where they have several axes."""
    if not prompt.media:
        return []
    read: dict[str, Any] = {"format": "processor_output", **prompt.media}
    if prompt.positions is not None:
        axes = prompt.positions[1:]
        read |= {"mrope_positions": axes, "mrope_position_delta": axes.max() + 1 - axes.shape[1]}
    return [read]


class _Caller:
    """A thread that makes calls, one after the other. One that never comes back does not hold up the end of the program."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="sglang").start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queues a call; the future holds its result, or what it raised."""
        future: Future[T] = Future()
        self._calls.put((call, future))
        return future

    def _serve(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def seeded_draw(logprobs: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """(N, 1) a token for each row of (N, V), fixed by the row's seed and position: the largest of log p + Gumbel noise."""
    pairs = zip(seeds.tolist(), positions.tolist(), strict=True)
    keys = torch.tensor([stream(seed, position, 0) for seed, position in pairs])
    noise = uniforms(keys[:, None], torch.arange(logprobs.shape[1]))
    return (logprobs.double() - (-noise.log()).log()).argmax(1, keepdim=True)


def schedule(*args: Any, **options: Any) -> Any:
    """The scheduler's process, which with its cache forgets what old weights saw in pictures: SGLang keeps that."""
    scheduler: Any = require("sglang.srt.managers.scheduler", "sglang")
    seen: Any = require("sglang.srt.managers.mm_schedule", "sglang")
    flush = scheduler.Scheduler.flush_cache

    def flush_all(self: Any, *args: Any, **options: Any) -> Any:
        if seen.embedding_cache is not None:
            seen.embedding_cache.clear()
        return flush(self, *args, **options)

    scheduler.Scheduler.flush_cache = flush_all
    return scheduler.run_scheduler_process(*args, **options)


def schedule_on_cpu(*args: Any, **options: Any) -> Any:
    """SGLang's scheduler on a CPU, where two of its kernels are missing: those by which a GPU computes alike in every batch, and the
    noise that a seed gives."""
    kernels: Any = require("sglang.srt.batch_invariant_ops", "sglang")
    kernels.enable_batch_invariant_mode = lambda: None
    sampler: Any = require("sglang.srt.layers.sampler", "sglang")
    sampler.multinomial_with_seed = seeded_draw
    return schedule(*args, **options)


def known_arguments(options: SglangConfig, needed: Mapping[str, Any]) -> dict[str, Any]:
    """`rollout.sglang.options` as this SGLang takes them. ValueError for one that it does not know, or with another value than what is
    `needed` here."""
    setting, further = "rollout.sglang.options", options.further(with_home)
    refuse_other_values(
        setting,
        further,
        needed,
        "without which SGLang does not draw by seeds, or not see, as training does here",
    )
    if further:
        arguments: Any = require("sglang.srt.server_args", "sglang", CURE).ServerArgs
        refuse_unknown(setting, further, list(inspect.signature(arguments).parameters), "SGLang")
    return further


def _needed(device: torch.device, processor: Processor) -> dict[str, Any]:
    """Arguments that a user may name but not change: on a CPU, and for models whose pictures see both ways."""
    if device.type == "cpu":
        return {
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "disable_overlap_schedule": True,
        }
    if processor.media is not None and processor.media.sees_both_ways:
        return {"attention_backend": "triton"}  # the one that takes a mask of the model's own
    return {}


def _start(module: nn.Module, processor: Processor, config: RolloutConfig, given: Mapping[str, Any]) -> Any:
    """SGLang's engine. `given`: arguments over our own."""
    options, weight = config.sglang, next(module.parameters())
    kind: Any = require("sglang.srt.entrypoints.engine", "sglang", CURE).Engine
    scheduler = schedule_on_cpu if weight.device.type == "cpu" else schedule
    kind = type("Engine", (kind,), {"run_scheduler_process_func": staticmethod(scheduler)})
    more: dict[str, Any] = {"nccl_port": free_port()}
    if weight.device.type == "cpu":
        choices: Any = require("sglang.srt.arg_groups.choices", "sglang")
        if (
            "torch_native" not in choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES
        ):  # without it no draw has a seed
            choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")
        more |= {"device": "cpu", "max_total_tokens": options.max_total_tokens}
    else:
        more |= {
            "base_gpu_id": weight.device.index or 0,
            "enable_memory_saver": True,
        }
    if config.routing_replay == SAMPLING:
        more["enable_return_routed_experts"] = True
    if options.context_length:
        more["context_length"] = options.context_length
    with folder_without_weights(module, processor) as folder:
        return kind(
            model_path=str(folder),
            load_format="dummy",
            dtype=str(weight.dtype).removeprefix("torch."),
            max_running_requests=options.max_running_requests,
            mem_fraction_static=options.mem_fraction_static,
            enable_deterministic_inference=True,
            **{"grammar_backend": "none", "log_level": "error", **more, **given},
        )


def free_port(ports: Sequence[int] = range(22000, 30000)) -> int:
    """A port of this machine that nothing listens at. EngineError if there is none.

    SGLang draws one by `random`. Other libraries seed that, so that processes that start together would draw the same, which is
    bound only later. These ports lie below those that the system gives away meanwhile.
    """
    drawn = random.SystemRandom()
    for port in drawn.sample(ports, len(ports)):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            return port
    raise EngineError(
        f"no port from {ports[0]} to {ports[-1]} is free for SGLang. Set rollout.sglang.options.nccl_port."
    )


def _heed(died: threading.Event) -> None:
    """SGLang's processes tell of their death by SIGQUIT, which would end this process too."""

    def note(_number: int, _frame: FrameType | None) -> None:
        died.set()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGQUIT, note)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
