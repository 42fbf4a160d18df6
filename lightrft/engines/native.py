"""Generation with the actor's own module: weights are shared, so syncing them costs nothing.

One pass of the model takes the newest token of every running answer and, behind them in the same row, whole prompts
that enter (continuous batching). A prompt is read once for all its answers. See cache.py for what they attend to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightrft.config import NativeEngineConfig, RolloutConfig
from lightrft.engines.base import NONE, Engine, Progress
from lightrft.engines.cache import Cache, Step, Stretch
from lightrft.engines.cuda_graphs import GraphRunner, captures
from lightrft.engines.packed_linear import fast
from lightrft.engines.sampling import draw, stream, uniforms
from lightrft.models.attention import ATTENTION
from lightrft.models.families import forward_media, joined, placeholders, seen_both_ways
from lightrft.models.lazy import empty, is_empty
from lightrft.models.logprobs import backbone, causal_lm, output_head, text_config
from lightrft.models.lora import plain_parameters, plain_state
from lightrft.models.processor import Processor
from lightrft.models.products import multiplies_widely, wide_product
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Finish, Prompt, Sampling
from lightrft.utils.device import can_record, sent

Decode = Callable[[Sequence[int]], str]


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
    ) -> None:
        """`stop_ids` end an answer; `decode` turns tokens into text, for stop texts. ValueError for a model it cannot run.

        A empty module becomes the engine's own; any other is shared with whoever trains it.
        """
        text = text_config(module)
        if text._attn_implementation != ATTENTION:
            raise ValueError(
                f"the native engine needs the model's attention to be {ATTENTION!r}, not {text._attn_implementation!r}. "
                f"Load the model with attn_implementation={ATTENTION!r}."
            )
        if config.max_sequences < 1 or config.prefill_tokens < 1:
            raise ValueError(
                f"rollout.native.max_sequences={config.max_sequences}, prefill_tokens={config.prefill_tokens}: "
                "both must be at least 1."
            )
        self._captures = captures(config.cuda_graphs, module, text)
        self.weight_version = 0
        self.device = next(module.parameters()).device
        self._module, self._stop_ids, self._decode, self._config = module, stop_ids, decode, config
        self._cap: float | None = getattr(text, "final_logit_softcapping", None)
        self._never = placeholders(causal_lm(module).config)
        self._cache = Cache()
        self._own = OwnWeights(self) if is_empty(module) else None

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """ValueError for an empty prompt. Media must have been read (Processor.open)."""
        _check(prompts, sampling)
        rollout = _Rollout(self, prompts, sampling)
        weights = fast(self._module) if self._config.pack_weights else nullcontext()
        with torch.no_grad(), _evaluating(self._module), weights:
            try:
                while rollout.step():
                    if progress is not None:
                        progress(rollout.finished, rollout.tokens)
            except BaseException:  # a layer may have been given room and the next not
                self._cache.offload()
                raise
            finally:
                self._cache.clear()
        return [[a.completion(self.weight_version) for a in answers] for answers in rollout.answers]

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """A tensor that is the module's own costs nothing."""
        if self._own is not None:
            self._own.take(weights)
            return
        own = plain_state(self._module)
        for name, tensor in weights:
            if name not in own:
                raise ValueError(f"the model has no weight named {name!r}.")
            if own[name].data_ptr() != tensor.data_ptr():
                own[name].copy_(tensor)

    @property
    def shares_weights(self) -> bool:
        return self._own is None

    def parts(self) -> dict[str, Resident]:
        """The cache, and the weights unless they belong to whoever trains them."""
        return {"cache": self._cache} | ({} if self._own is None else {"weights": self._own})


class OwnWeights:
    """The weights of a module that was empty when the engine got it, as a resident: given at each sync, dropped after use.

    They are never moved to host memory: who offloads them has them elsewhere.
    """

    def __init__(self, engine: NativeEngine) -> None:
        self._engine, self._module = engine, engine._module
        engine.weight_version = NONE

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Holds these. ValueError for a name the module does not have, or if one is left out; of tied ones one name will do."""
        parameters, buffers = plain_parameters(self._module), dict(self._module.named_buffers())
        lacking = {parameter: name for name, parameter in parameters.items()}
        for name, tensor in weights:
            if name in buffers:
                buffers[name].copy_(tensor)
            elif name in parameters:
                lacking.pop(parameters[name], None)
                # A clone, should the sender change its own in place.
                parameters[name].data = tensor.to(self._engine.device, parameters[name].dtype, copy=True)
            else:
                raise ValueError(f"the model has no weight named {name!r}.")
        if lacking:
            raise ValueError(f"no weight named {min(lacking.values())!r} was given.")

    def onload(self) -> None:
        """Nothing is there before `take`."""

    def offload(self) -> None:
        empty(self._module)
        self._engine.weight_version = NONE

    def nbytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._module.parameters())


@dataclass(eq=False, slots=True)
class _Question:
    """A prompt on its way: waiting, then read, until its last answer is done."""

    place: int
    prompt: Prompt
    waiting: list[int]
    """Numbers of the answers that have not entered, last first."""
    read: Stretch
    hidden: Tensor | None = None
    """(1, H), what predicts the first token of every answer."""
    running: int = 0
    begin: list[int] = field(init=False)
    """Position of an answer's first token in each row; see trainer/batching.py."""

    def __post_init__(self) -> None:
        rows = self.prompt.positions
        self.begin = [len(self)] if rows is None else (rows[:, -1] + 1).tolist()

    def __len__(self) -> int:
        return len(self.prompt.token_ids)

    def positions(self) -> Tensor:
        """(R, P) or (1, P)."""
        rows = self.prompt.positions
        return torch.arange(len(self))[None] if rows is None else rows


@dataclass(eq=False, slots=True)
class _Answer:
    question: _Question
    stream: int
    own: Stretch
    most: int
    """Tokens it may have in all."""
    tokens: list[int]
    """Those of earlier calls among them."""
    logprobs: list[float] = field(default_factory=list)
    """Of the new ones."""
    finish: Finish | None = None
    since: int = 0
    """Place of the first token in which a stop text counts."""

    def completion(self, version: int) -> Completion:
        """The tokens sampled in this call; those of earlier calls are left out."""
        new = self.tokens[len(self.tokens) - len(self.logprobs) :]
        return Completion(new, self.logprobs, self.finish or "length", version, self.stream)


class _Rollout:
    """The state of one call of `generate`."""

    def __init__(self, engine: NativeEngine, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self._engine, self._sampling, self._cache = engine, sampling, engine._cache
        self._device = engine.device
        self._backbone, self._head = backbone(engine._module), output_head(engine._module)
        self._stop_ids = (
            frozenset() if sampling.ignore_eos else engine._stop_ids | set(sampling.stop_token_ids)
        )
        self._stop = () if sampling.ignore_eos else sampling.stop
        self._questions = deque(
            _Question(place, prompt, _numbers(prompt, sampling), Stretch(self._cache.prompts, 0))
            for place, prompt in enumerate(prompts)
        )
        self._running: list[_Answer] = []
        self._recorder = (
            GraphRunner(self._backbone, self._cache, self._device)
            if engine._captures and can_record(self._device)
            else None
        )
        self.answers: list[list[_Answer]] = [[] for _ in prompts]
        self.finished = 0
        self.tokens = 0

    def step(self) -> bool:
        """One token more for every running answer, and a first one for those that enter. False when all are done."""
        entering = self._admit()
        fresh = list({a.question: None for a in entering if a.question.hidden is None})
        if not entering and not self._running:
            return False
        hidden = self._forward(fresh)
        answers = self._running + entering
        questions = list({a.question: None for a in entering})
        rows = [hidden[: len(self._running)], *(q.hidden for q in questions if q.hidden is not None)]
        row_of = {question: len(self._running) + i for i, question in enumerate(questions)}
        which = [*range(len(self._running)), *(row_of[a.question] for a in entering)]
        self._append(answers, torch.cat(rows), which)
        for question in questions:
            question.hidden = question.hidden if question.waiting else None
        return True

    def _admit(self) -> list[_Answer]:
        """Answers that fit: as many as there is room for, reading at most `prefill_tokens` of new prompts (or one)."""
        room, budget = (
            self._engine._config.max_sequences - len(self._running),
            self._engine._config.prefill_tokens,
        )
        entering: list[_Answer] = []
        while room > len(entering) and self._questions:
            question = self._questions[0]
            if question.hidden is None:
                budget -= len(question)
                if budget < 0 and entering:
                    break
            while question.waiting and room > len(entering):
                entering.append(self._begin(question, question.waiting.pop()))
            if not question.waiting:
                self._questions.popleft()
        return entering

    def _begin(self, question: _Question, number: int) -> _Answer:
        own, continuation = Stretch(self._cache.answers, len(question)), question.prompt.continuation
        if continuation is None:
            answer = _Answer(question, self._stream(question, number), own, self._sampling.max_tokens, [])
        else:
            tokens = question.prompt.token_ids[len(question) - continuation.tokens :]
            most = continuation.tokens + continuation.max_tokens
            answer = _Answer(question, continuation.stream, own, most, list(tokens), since=continuation.since)
        self.answers[question.place].append(answer)
        question.running += 1
        return answer

    def _stream(self, question: _Question, number: int) -> int:
        place = self._sampling.first_index + question.place * self._sampling.index_stride
        return stream(self._sampling.seed, place, number)

    def _forward(self, fresh: Sequence[_Question]) -> Tensor:
        """(N, H) of the running answers' newest tokens and the fresh prompts; gives each of those its hidden state."""
        for answer in self._running:
            answer.own.extend(1)
        for question in fresh:
            question.read.extend(len(question))
        if self._recorder is not None and not fresh and self._running:
            repeated = self._repeated(self._recorder)
            if repeated is not None:
                return repeated
        read = [t for q in fresh for t in q.prompt.token_ids]
        tokens = [a.tokens[-1] for a in self._running] + read
        if not tokens:
            return torch.empty(0, self._head.in_features, device=self._device, dtype=self._head.weight.dtype)
        media = {
            name: [q.prompt.media[name] for q in fresh if name in q.prompt.media] for name in _names(fresh)
        }
        layout = Step(
            [(a.question.read, a.own) for a in self._running],
            [q.read for q in fresh],
            self._device,
            seen_both_ways(self._backbone.config, read) if media else (),
        )
        out = self._backbone(
            input_ids=sent([tokens], self._device),
            position_ids=self._positions(fresh),
            use_cache=False,
            layout=layout,
            **forward_media(self._backbone, {name: joined(values) for name, values in media.items()}),
        )
        hidden: Tensor = out.last_hidden_state[0]
        end = len(self._running)
        for question in fresh:
            end += len(question)
            question.hidden = hidden[end - 1 : end].clone()
        return hidden

    def _repeated(self, recorder: GraphRunner) -> Tensor | None:
        """The running answers' newest tokens by a recording; None where there is none for them: positions of several rows."""
        if any(len(a.question.begin) > 1 for a in self._running):
            return None
        return recorder.hidden(
            [(a.question.read, a.own) for a in self._running],
            [a.tokens[-1] for a in self._running],
            [a.question.begin[0] + a.own.length - 1 for a in self._running],
        )

    def _positions(self, fresh: Sequence[_Question]) -> Tensor:
        """(1, N), or (R, 1, N) for a model with several rows."""
        newest = [[p + a.own.length - 1 for p in a.question.begin] for a in self._running]
        running = [torch.tensor(newest).T] if newest else []
        rows = torch.cat([*running, *(question.positions() for question in fresh)], 1).to(self._device)
        return rows if len(rows) == 1 else rows[:, None]

    def _append(self, answers: Sequence[_Answer], hidden: Tensor, which: list[int]) -> None:
        """Draws a token for each answer from the row of `hidden` that predicts it, and lets the finished go."""
        logits = self._logits(hidden)
        if self._engine._cap is not None:
            logits = self._engine._cap * torch.tanh(logits / self._engine._cap)
        if self._engine._never:
            logits[:, self._engine._never] = -math.inf
        if self._sampling.temperature and (
            self._sampling.first_token_temperature or self._sampling.first_token_top_k
        ):
            first = sorted({row for a, row in zip(answers, which, strict=True) if not a.tokens})
            logits[first] = _sharpened_first(logits[first], self._sampling)
        keys = sent([a.stream for a in answers], self._device)
        counters = sent([len(a.tokens) for a in answers], self._device)
        rows = None if which == list(range(len(logits))) else sent(which, self._device)
        tokens, logprobs = draw(logits, rows, uniforms(keys, counters), self._sampling)
        # Fetched together: a device is waited for once for each token.
        found = torch.stack([tokens.double(), logprobs.double()]).tolist()
        for answer, token, logprob in zip(answers, map(int, found[0]), found[1], strict=True):
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            answer.finish = self._finish(answer)
        self.tokens += len(answers)
        self._running = [a for a in answers if a.finish is None]
        self._free([a for a in answers if a.finish is not None])

    def _logits(self, hidden: Tensor) -> Tensor:
        """(N, V) in float32, or float64; where the device can, never rounded to bfloat16: those the trainer finds."""
        head = self._head
        if not multiplies_widely(hidden, head.weight):
            logits: Tensor = head(hidden)
            return logits if logits.dtype == torch.float64 else logits.float()
        logits = wide_product(hidden, head.weight.t())
        return logits if head.bias is None else logits.add_(head.bias)

    def _finish(self, answer: _Answer) -> Finish | None:
        tokens = answer.tokens
        if tokens[-1] in self._stop_ids or (self._stop and self._ends_with_stop(tokens[answer.since :])):
            return "stop"
        return "length" if len(tokens) >= answer.most else None

    def _ends_with_stop(self, tokens: Sequence[int]) -> bool:
        """Whether a stop text lies in the end of the answer; earlier it would have ended it earlier.

        Only a tail is decoded, long enough for the longest stop text and a few characters that its cut may mangle.
        """
        needed = max(map(len, self._stop)) + 8
        count = needed
        text = self._engine._decode(tokens[-count:])
        while len(text) < needed and count < len(tokens):
            count *= 2
            text = self._engine._decode(tokens[-count:])
        return any(stop in text for stop in self._stop)

    def _free(self, done: Sequence[_Answer]) -> None:
        for answer in done:
            answer.question.running -= 1
        self.finished += len(done)
        self._cache.answers.give_back(page for a in done for page in a.own.pages)
        over = {a.question: None for a in done if not a.question.running and not a.question.waiting}
        self._cache.prompts.give_back(page for question in over for page in question.read.pages)


def _numbers(prompt: Prompt, sampling: Sampling) -> list[int]:
    """Indices of the samples still to generate for a prompt, in reverse order."""
    return list(range(sampling.n if prompt.continuation is None else 1))[::-1]


def _names(fresh: Sequence[_Question]) -> set[str]:
    return {name for question in fresh for name in question.prompt.media}


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


def _sharpened_first(logits: Tensor, sampling: Sampling) -> Tensor:
    """Rows that predict first tokens; `draw` divides all rows by the common temperature."""
    if sampling.first_token_temperature:
        logits = logits * (sampling.temperature / sampling.first_token_temperature)
    if 0 < sampling.first_token_top_k < logits.shape[-1]:
        least = logits.topk(sampling.first_token_top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits


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
            raise ValueError(f"prompt {prompt.id!r} has no tokens; there is nothing to answer.")


def native_engine(module: nn.Module, processor: Processor, config: RolloutConfig) -> Engine:
    """Samples with the module itself: new weights are there without being moved, unless it is empty and waits for them."""
    return NativeEngine(causal_lm(module), processor.stop_ids, processor.text, config.native)
