"""LMDeploy's PyTorch engine beside the trainer (https://lmdeploy.readthedocs.io). Not run here: it needs an accelerator.

Written against the API of LMDeploy 0.18.0. Its TurboMind engine computes in 16 bits only and is not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightrft.config import RolloutConfig
from lightrft.engines.base import NONE, EngineDiedError, EngineError, Progress
from lightrft.engines.buckets import buckets
from lightrft.engines.external import (
    CURE,
    EngineRequest,
    JointSleeper,
    SleepingPart,
    WeightNames,
    check_kinds,
    ends,
    engine_requests,
    folder_without_weights,
    refuse,
    same_tokens,
)
from lightrft.models.families import placeholders
from lightrft.models.logprobs import causal_lm
from lightrft.models.processor import Processor
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Finish, Prompt, Sampling
from lightrft.utils.imports import require

T = TypeVar("T")


class LmdeployEngine:
    """An Engine, for texts and pictures. Each process has one of its own, on its own device.

    Its log-probs are those of the whole distribution, so draws from a part of it are refused, and so are stop texts, of which it
    knows single tokens only.
    """

    def __init__(self, module: nn.Module, processor: Processor, config: RolloutConfig) -> None:
        """`module`: for its configuration, type and device. ValueError for what LMDeploy cannot do here."""
        refuse(config, "top_k", "top_p", "min_p")
        if config.stop:
            raise ValueError(
                f"rollout.stop={config.stop}: LMDeploy ends a response at tokens only. Leave it out, or {CURE}."
            )
        weight = next(module.parameters())
        if weight.device.type == "cpu":
            raise ValueError(f"rollout.engine=lmdeploy needs an accelerator. Set strategy.device, or {CURE}.")
        self.weight_version = NONE
        self._names, self._stop_ids = WeightNames.of(module), processor.stop_ids
        self._reader, self._never = processor.media, placeholders(causal_lm(module).config)
        self._bucket, self._device = config.lmdeploy.bucket_mib * 2**20, weight.device
        self._nbytes = sum(p.numel() * p.element_size() for p in causal_lm(module).parameters())
        self._pipeline = _start(module, processor, config)
        self._held = JointSleeper(self._sleep, lambda tag: self._pipeline.async_engine.wakeup([tag]))
        for part in self.parts().values():
            part.offload()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Answers to each prompt, asked all at once; as in Engine."""
        check_kinds("lmdeploy", prompts, self._reader, self._device)
        questions = [
            (prompt, one, question(one))
            for prompt, one in zip(prompts, engine_requests(prompts, sampling, self._reader), strict=True)
        ]
        finished = [0, 0]

        async def one_of(
            prompt: Prompt, one: EngineRequest, told: dict[str, Any], sibling: int
        ) -> Completion:
            answer = await self._answer(prompt, one, told, sibling, sampling)
            finished[0], finished[1] = finished[0] + 1, finished[1] + len(answer.token_ids)
            if progress is not None:
                progress(*finished)
            return answer

        async def everything() -> list[list[Completion]]:
            groups = [[one_of(*parts, k) for k in range(parts[1].n)] for parts in questions]
            return [list(group) for group in await asyncio.gather(*(asyncio.gather(*g) for g in groups))]

        return self._run(everything())

    async def _answer(
        self, prompt: Prompt, one: EngineRequest, told: dict[str, Any], sibling: int, sampling: Sampling
    ) -> Completion:
        engine, seed = self._pipeline.async_engine, one.seed + sibling
        request = await engine.preprocess(
            **told,
            session_id=self._pipeline.session_mgr.get(),
            gen_config=self._options(one, seed, sampling),
        )
        same_tokens(prompt, one, request.inputs["input_ids"])
        tokens: list[int] = []
        logprobs: list[float] = []
        finish: Finish = "length"
        async for out in engine.generate(request, stream_response=False):
            if out.finish_reason in ("error", "abort"):
                raise EngineError(f"LMDeploy gave up on a prompt: {out.response}")
            new = list(out.token_ids or [])
            tokens += new
            logprobs += [row[token] for token, row in zip(new, out.logprobs or [], strict=True)]
            finish = "stop" if out.finish_reason == "stop" else "length"
        return Completion(tokens, logprobs, finish, self.weight_version, seed)

    def _options(self, one: EngineRequest, seed: int, sampling: Sampling) -> Any:
        return require("lmdeploy", "lmdeploy").GenerationConfig(
            max_new_tokens=one.max_tokens,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or 1.0,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            random_seed=seed,
            ignore_eos=sampling.ignore_eos,
            stop_token_ids=ends(sampling, self._stop_ids),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            bad_token_ids=self._never or None,
            logprobs=1,
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._pipeline.internal_thread.loop).result()
        except (RuntimeError, OSError) as error:
            raise EngineDiedError(f"LMDeploy failed: {error}", self._restart) from error

    def _restart(self) -> None:
        raise EngineError(
            "LMDeploy's engine cannot be started again in the same process: go on with lightrft train --resume RUN."
        )

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Gives LMDeploy the weights bucket by bucket, under the names of a checkpoint."""
        serialize: Any = require("lmdeploy.utils", "lmdeploy")
        protocol: Any = require("lmdeploy.serve.openai.protocol", "lmdeploy")
        engine = self._pipeline.async_engine

        def give(part: dict[str, Tensor], *, finished: bool) -> None:
            text = serialize.serialize_state_dict(part)
            engine.engine.update_params(
                protocol.UpdateParamsRequest(serialized_named_tensors=text, finished=finished)
            )

        for bucket in buckets(self._names.for_checkpoint(weights), self._bucket):
            give({name: t.detach().to(self._device) for name, t in bucket.items()}, finished=False)
        give({}, finished=True)
        engine.complete_weights_update()

    def parts(self) -> dict[str, Resident]:
        """The engine's weights and its cache of keys and values, as residents."""
        return {
            "weights": SleepingPart(self._held, "weights", self._nbytes),
            "cache": SleepingPart(self._held, "kv_cache", 0),
        }

    def _sleep(self) -> None:
        self.weight_version = NONE
        self._run(self._pipeline.async_engine.sleep(2))


def question(one: EngineRequest) -> dict[str, Any]:
    """What LMDeploy is asked: tokens, in which pictures have a mark each that it puts their own in the place of."""
    if one.media is None:
        return {"messages": None, "input_ids": one.token_ids}
    pictures = [{"type": "image_data", "image_data": {"data": image}} for image in one.media.images]
    return {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": one.unexpanded_token_ids}, *pictures]}
        ]
    }


def _start(module: nn.Module, processor: Processor, config: RolloutConfig) -> Any:
    lmdeploy = require("lmdeploy", "lmdeploy", CURE)
    options, weight = config.lmdeploy, next(module.parameters())
    backend = lmdeploy.PytorchEngineConfig(
        dtype=str(weight.dtype).removeprefix("torch."),
        device_type=weight.device.type,
        session_len=options.session_len or None,
        max_batch_size=options.max_batch_size,
        cache_max_entry_count=options.cache_max_entry_count,
        enable_prefix_caching=True,
        empty_init=True,
    )
    with folder_without_weights(module, processor) as folder:
        return lmdeploy.pipeline(str(folder), backend_config=backend, log_level="ERROR")
