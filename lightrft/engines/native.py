"""Generation with the actor's own module: weights are shared, so syncing them costs nothing.

Which answers run when is scheduler.py's; what they attend to is paged_attention.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightrft.config import NativeEngineConfig, RolloutConfig
from lightrft.config.rollout import SAMPLING
from lightrft.engines.base import Engine, Progress
from lightrft.engines.cuda_graphs import captures
from lightrft.engines.kept import Kept
from lightrft.engines.own_weights import OwnWeights, load
from lightrft.engines.packed_linear import fast
from lightrft.engines.paged_kernel import check_kernel
from lightrft.engines.pages import Cache
from lightrft.engines.scheduler import Decode, SampledModel, Scheduler
from lightrft.models.attention import ATTENTION, mask_of
from lightrft.models.experts import routers_of
from lightrft.models.families import placeholders
from lightrft.models.lazy import is_empty
from lightrft.models.logprobs import causal_lm, text_config
from lightrft.models.processor import Processor
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Prompt, Sampling


class NativeEngine:
    """An Engine over a causal transformers model that was loaded with the `lightrft_packed` attention.

    What an answer says depends on the weights, its prompt, `sampling`, the prompt's place in the call and its own
    number; not on what else is generated, nor on `max_sequences`.
    """

    def __init__(
        self,
        module: nn.Module,
        stop_ids: frozenset[int],
        decode: Decode,
        config: NativeEngineConfig,
        *,
        tells_experts: bool = False,
    ) -> None:
        """`stop_ids` end an answer; `decode` turns tokens into text, for stop texts. ValueError for a model it cannot run.

        A empty module becomes the engine's own; any other is shared with whoever trains it. `tells_experts`: whether responses come with
        the experts that each token was sent to.
        """
        text = text_config(module)
        if text._attn_implementation != ATTENTION:
            raise ValueError(
                f"the native engine needs the model's attention to be {ATTENTION!r}, not {text._attn_implementation!r}. "
                f"Load the model with attn_implementation={ATTENTION!r}."
            )
        if mask_of(text) is not None:
            raise ValueError(
                "the native engine samples from left to right, and this is a masked diffusion language model. Set rollout.engine=unmask."
            )
        self.weight_version = 0
        weight = next(module.parameters())
        self.device = weight.device
        if config.attention_backend == "flash":
            check_kernel(self.device, weight.dtype, text)
        cache = Cache.for_kernel() if config.attention_backend == "flash" else Cache()
        self._module, self._config, self._cache = module, config, cache
        self._model = SampledModel(
            module,
            self.device,
            self._cache,
            config,
            stop_ids,
            decode,
            cap=getattr(text, "final_logit_softcapping", None),
            never=torch.tensor(placeholders(causal_lm(module).config), dtype=torch.int64, device=self.device),
            captures=captures(config.cuda_graphs, module, text),
            routers=routers_of(module) if tells_experts else None,
        )
        self._own = OwnWeights(self, module) if is_empty(module) else None
        self._kept: Kept | None = None
        self.read_tokens = 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """ValueError for an empty prompt. Media must have been read (Processor.open)."""
        _check(prompts, sampling)
        rollout = Scheduler(self._model, prompts, sampling, self._kept)

        def told() -> None:
            if progress is not None:
                progress(rollout.finished, rollout.tokens)

        self._run(rollout, told)
        return [[a.completion(self.weight_version) for a in answers] for answers in rollout.answers]

    def follow(self, prompt: Prompt, sampling: Sampling, told: Callable[[list[int]], object]) -> Completion:
        """One response; `told` gets its tokens so far after each of them. ValueError as from `generate`."""
        _check([prompt], sampling)
        rollout = Scheduler(self._model, [prompt], replace(sampling, n=1), self._kept, ahead=1)
        self._run(rollout, lambda: told(rollout.answers[0][0].tokens))
        return rollout.answers[0][0].completion(self.weight_version)

    def _run(self, rollout: Scheduler, told: Callable[[], object]) -> None:
        """Takes all steps of a rollout, and tells after each."""
        weights = fast(self._module) if self._config.pack_weights else nullcontext()
        with torch.no_grad(), _evaluating(self._module), weights:
            try:
                while rollout.step():
                    told()
            except BaseException:  # a layer may have been given room and the next not
                self._forget()
                self._cache.offload()
                raise
            finally:
                self.read_tokens += rollout.read_tokens
                if self._kept is None:
                    self._cache.clear()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, a later call reads of a response that goes on only what is new (engines/base.py: Keeping)."""
        self._kept = Kept(self._cache)
        try:
            yield
        finally:
            self._kept = None
            self._cache.clear()

    def _forget(self) -> None:
        """Keeps no response that was sampled so far."""
        if self._kept is not None:
            self._kept = Kept(self._cache)
            self._cache.clear()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """A tensor that is the module's own costs nothing."""
        self._forget()
        load(self._module, self._own, weights)

    @property
    def shares_weights(self) -> bool:
        """Whether it samples with the actor's own weights, as it does where its module came with them."""
        return self._own is None

    def parts(self) -> dict[str, Resident]:
        """The cache, and the weights unless they belong to whoever trains them."""
        return {"cache": self._cache} | ({} if self._own is None else {"weights": self._own})


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, nothing of the module is in training mode; afterwards each part is again in its own."""
    training = [m for m in module.modules() if m.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _check(prompts: Sequence[Prompt], sampling: Sampling) -> None:
    if sampling.n < 1 or sampling.max_tokens < 1:
        raise ValueError(f"n={sampling.n}, max_tokens={sampling.max_tokens}: both must be at least 1.")
    if (
        min(sampling.temperature, sampling.first_token_temperature) < 0
        or min(sampling.top_k, sampling.first_token_top_k) < 0
        or not 0 < sampling.top_p <= 1
        or not 0 <= sampling.min_p <= 1
    ):
        raise ValueError(
            f"{sampling}: need temperature, first_token_temperature, top_k and first_token_top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1."
        )
    for prompt in prompts:
        if not prompt.token_ids:
            raise ValueError(f"prompt {prompt.id!r} has no tokens; there is nothing to respond to.")


def native_engine(module: nn.Module, processor: Processor, config: RolloutConfig) -> Engine:
    """Samples with the module itself: new weights are there without being moved, unless it is empty and waits for them."""
    return NativeEngine(
        causal_lm(module),
        processor.stop_ids,
        processor.text,
        config.native,
        tells_experts=config.routing_replay == SAMPLING,
    )
