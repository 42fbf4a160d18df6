"""Continuous batching of the native engine: which answers run when, and one token more for each.

One pass of the model takes the newest token of every running answer and, behind them in the same row, whole prompts
that enter. A prompt is read once for all its answers. See paged_attention.py for what they attend to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightrft.config import NativeEngineConfig
from lightrft.engines.answers import Answer, Question
from lightrft.engines.cuda_graphs import AHEAD, AHEAD_OF_OTHERS, GraphRunner
from lightrft.engines.kept import Kept, give_back
from lightrft.engines.paged_attention import Step
from lightrft.engines.paged_suffix import Suffix
from lightrft.engines.pages import Cache, Stretch
from lightrft.engines.sampling import (
    FEWEST_CANDIDATES,
    candidates_after,
    draw_telling,
    draw_unasked,
    sharpened_first,
    stream,
    uniforms,
)
from lightrft.models.experts import Routers, Routing
from lightrft.models.families import forward_media, joined, seen_both_ways
from lightrft.models.logprobs import backbone, output_head
from lightrft.models.products import multiplies_widely, wide_product
from lightrft.types import Finish, Prompt, Sampling
from lightrft.utils.device import can_record, sent

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class SampledModel:
    """The model that answers are drawn from, with what is known of it before the first."""

    module: nn.Module
    device: torch.device
    cache: Cache
    config: NativeEngineConfig
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    decode: Decode
    """Turns tokens into text, for stop texts."""
    cap: float | None
    """The bound that logits are bent to keep within, if the model has one."""
    never: Tensor
    """(M,) tokens that are never drawn, on the device: placeholders of media."""
    captures: bool
    """Whether passes are recorded on devices that can."""
    routers: Routers | None = None
    """The routers of the model, where the experts that they choose are to be told."""


class Scheduler:
    """The answers of one call of `generate`: waiting, running or done."""

    def __init__(
        self,
        model: SampledModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        kept: Kept | None = None,
        ahead: int = AHEAD,
    ) -> None:
        """`kept`: where answers are kept for a later call, and those of earlier ones are. `ahead`: most tokens of an answer in one step."""
        self._model, self._sampling, self._cache, self._kept = model, sampling, model.cache, kept
        self._device, self._ahead = model.device, ahead
        self._backbone, self._head = backbone(model.module), output_head(model.module)
        self._stop_ids = frozenset() if sampling.ignore_eos else model.stop_ids | set(sampling.stop_token_ids)
        self._stop = () if sampling.ignore_eos else sampling.stop
        found = [Question.of(place, p, sampling, self._cache, kept) for place, p in enumerate(prompts)]
        if kept is not None:
            kept.clear()  # what does not go on now never does
        # Those that are in the cache go first, so that they need not leave it.
        self._questions = deque(sorted(found, key=lambda question: question.own is None))
        self._running: list[Answer] = []
        self._recorder = (
            GraphRunner(self._backbone, self._cache, self._device)
            if model.captures and can_record(self._device)
            else None
        )
        self._candidates, self._unsure = FEWEST_CANDIDATES, 0
        self.answers: list[list[Answer]] = [[] for _ in prompts]
        self.finished = 0
        self.tokens = 0
        self.read_tokens = 0
        """Tokens that passes of the model have read."""

    def step(self) -> bool:
        """A token more for every running answer, or several, and a first one for those that enter. False when all are done."""
        entering = self._admit()
        if not entering and self._draws_ahead():
            return self._draw_ahead()
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

    def _draws_ahead(self) -> bool:
        """Whether passes are recorded that need no number from the host but those known beforehand."""
        if (
            self._unsure
        ):  # some candidates did not suffice: once in the plain way, which asks for more of them
            self._unsure = 0
            return False
        ready = self._recorder is not None and not self._cache.answers.is_empty and self._ahead > 1
        ready = ready and self._candidates > 0  # else they would suffice for too few answers
        ready = ready and not self._sampling.support  # which is fetched with each token
        return ready and bool(self._running) and all(len(a.question.begin) == 1 for a in self._running)

    def _draw_ahead(self) -> bool:
        """Several tokens for every running answer, fetched together: the device waits for the host once for all.

        An answer takes those before the first for which the candidates did not suffice; from there on it is drawn again.
        """
        assert self._recorder is not None
        answers = self._running
        ahead = min(self._ahead, AHEAD_OF_OTHERS) if self._questions else self._ahead
        count = min(ahead, *(a.most - len(a.tokens) for a in answers))
        keys = sent([a.stream for a in answers], self._device)
        counters = sent([len(a.tokens) for a in answers], self._device)
        newest: Sequence[int] | Tensor = [a.tokens[-1] for a in answers]
        drawn = []
        for place in range(count):
            for answer in answers:
                answer.own.extend(1)
            positions = [a.question.begin[0] + a.own.length - 1 for a in answers]
            hidden = self._recorder.hidden([(a.question.read, a.own) for a in answers], newest, positions)
            assert hidden is not None
            uniform = uniforms(keys, counters + place)
            newest, logprobs, unsure = draw_unasked(
                self._logits(hidden), uniform, self._sampling, self._candidates
            )
            drawn.append(torch.stack([newest.double(), logprobs.double(), unsure.double()], 1))
        for answer, found in zip(answers, torch.stack(drawn, 1).tolist(), strict=True):
            taken = self._take_sure(answer, found)
            answer.own.shrink(count - taken)
            self.read_tokens += taken
        if self._unsure:
            self._candidates = candidates_after(self._candidates, self._unsure, len(answers))
        self._settle(answers)
        return True

    def _take_sure(self, answer: Answer, drawn: Sequence[Sequence[float]]) -> int:
        """Gives an answer its next tokens, each (token, log-prob, whether unsure), up to its last or the first unsure one; how many."""
        for taken, (token, logprob, unsure) in enumerate(drawn):
            if unsure:
                self._unsure += 1
                return taken
            if self._take(answer, token, logprob):
                return taken + 1
        return len(drawn)

    def _admit(self) -> list[Answer]:
        """Answers that fit: as many as there is room for, reading at most `prefill_tokens` of new prompts (or one)."""
        room, budget = (
            self._model.config.max_sequences - len(self._running),
            self._model.config.prefill_tokens,
        )
        entering: list[Answer] = []
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
        if self._kept is not None:
            self._kept.shrink(room - len(entering))
        return entering

    def _begin(self, question: Question, number: int) -> Answer:
        prompt, continuation = question.prompt.token_ids, question.prompt.continuation
        own = question.own or Stretch(self._cache.answers, len(prompt))
        if continuation is None:
            answer = Answer(question, self._stream(question, number), own, self._sampling.max_tokens, [])
        else:
            tokens = prompt[len(prompt) - continuation.tokens :]
            most = continuation.tokens + continuation.max_tokens
            answer = Answer(question, continuation.stream, own, most, list(tokens), since=continuation.since)
        self.answers[question.place].append(answer)
        return answer

    def _stream(self, question: Question, number: int) -> int:
        place = self._sampling.first_index + question.place * self._sampling.index_stride
        return stream(self._sampling.seed, place, number)

    def _forward(self, fresh: Sequence[Question]) -> Tensor:
        """(N, H) of the running answers' newest tokens and the fresh prompts; gives each of those its hidden state."""
        for answer in self._running:
            answer.own.extend(1)
        whole, parts = [q for q in fresh if q.own is None], [q for q in fresh if q.own is not None]
        counts = {question: len(question) for question in [*whole, *parts]}
        for question, count in counts.items():
            (question.read if question.own is None else question.own).extend(count)
        self.read_tokens += len(self._running) + sum(counts.values())
        if self._recorder is not None and not fresh and self._running:
            repeated = self._repeated(self._recorder)
            if repeated is not None:
                return repeated
        read = [t for q in whole for t in q.prompt.token_ids]
        more = [t for q in parts for t in q.prompt.token_ids[-counts[q] :]]
        tokens = [*(a.tokens[-1] for a in self._running), *read, *more]
        if not tokens:
            return torch.empty(0, self._head.in_features, device=self._device, dtype=self._head.weight.dtype)
        media = {
            name: [q.prompt.media[name] for q in whole if name in q.prompt.media]
            for name in {n for q in whole for n in q.prompt.media}
        }
        layout = Step(
            [(a.question.read, a.own) for a in self._running],
            [q.read for q in whole],
            self._device,
            seen_both_ways(self._backbone.config, read) if media else (),
            [Suffix(q.read, q.own, counts[q]) for q in parts if q.own is not None],
        )
        routing = None if self._model.routers is None else Routing(keeps=True)
        out = self._backbone(
            input_ids=sent([tokens], self._device),
            position_ids=self._positions(counts),
            use_cache=False,
            layout=layout,
            **({} if routing is None else {"routing": routing}),
            **forward_media(self._backbone, {name: joined(values) for name, values in media.items()}),
        )
        hidden: Tensor = out.last_hidden_state[0]
        end = len(self._running)
        for question, count in counts.items():
            end += count
            question.hidden = hidden[end - 1 : end].clone()
        if routing is not None:
            self._note_experts(routing, counts)
        return hidden

    def _note_experts(self, routing: Routing, counts: Mapping[Question, int]) -> None:
        """Gives answers and questions the experts of the tokens that this pass has read of them."""
        assert self._model.routers is not None
        told = routing.all_chosen().to(self._model.routers.compact).cpu()
        for answer, row in zip(self._running, told, strict=False):
            answer.experts.append(row)
        for question, rows in zip(counts, told[len(self._running) :].split([*counts.values()]), strict=True):
            question.experts = rows

    def _repeated(self, recorder: GraphRunner) -> Tensor | None:
        """The running answers' newest tokens by a recording; None where there is none for them: positions of several rows."""
        if any(len(a.question.begin) > 1 for a in self._running):
            return None
        return recorder.hidden(
            [(a.question.read, a.own) for a in self._running],
            [a.tokens[-1] for a in self._running],
            [a.question.begin[0] + a.own.length - 1 for a in self._running],
        )

    def _positions(self, counts: Mapping[Question, int]) -> Tensor:
        """(1, N), or (R, 1, N) for a model with several rows."""
        newest = [[p + a.own.length - 1 for p in a.question.begin] for a in self._running]
        running = [torch.tensor(newest).T] if newest else []
        read = [question.positions(count) for question, count in counts.items()]
        rows = torch.cat([*running, *read], 1).to(self._device)
        return rows if len(rows) == 1 else rows[:, None]

    def _append(self, answers: Sequence[Answer], hidden: Tensor, which: list[int]) -> None:
        """Draws a token for each answer from the row of `hidden` that predicts it, and lets the finished go."""
        logits, first = self._logits(hidden), list[int]()
        if self._sampling.temperature and (
            self._sampling.first_token_temperature or self._sampling.first_token_top_k
        ):
            first = sorted({row for a, row in zip(answers, which, strict=True) if not a.tokens})
            logits[first] = sharpened_first(logits[first], self._sampling)
        keys = sent([a.stream for a in answers], self._device)
        counters = sent([len(a.tokens) for a in answers], self._device)
        rows = None if which == list(range(len(logits))) else sent(which, self._device)
        tokens, logprobs, left = draw_telling(logits, rows, uniforms(keys, counters), self._sampling, first)
        if self._sampling.support:
            for answer, row in zip(answers, which, strict=True):
                answer.support.add(left[row])
        # Fetched together: a device is waited for once for each token.
        found = torch.stack([tokens.double(), logprobs.double()]).tolist()
        for answer, token, logprob in zip(answers, *found, strict=True):
            self._take(answer, token, logprob)
        self._settle(answers)

    def _take(self, answer: Answer, token: float, logprob: float) -> bool:
        """Gives an answer its next token; whether that is its last."""
        answer.tokens.append(int(token))
        answer.logprobs.append(logprob)
        answer.finish = self._finish(answer)
        self.tokens += 1
        return answer.finish is not None

    def _settle(self, answers: Sequence[Answer]) -> None:
        """Lets the finished go."""
        self._running = [a for a in answers if a.finish is None]
        self._free([a for a in answers if a.finish is not None])

    def _logits(self, hidden: Tensor) -> Tensor:
        """(N, V) in float32, or float64, as tokens are drawn from; where the device can, never rounded to bfloat16: those the trainer finds."""
        head = self._head
        if multiplies_widely(hidden, head.weight):
            logits = wide_product(hidden, head.weight.t())
            logits = logits if head.bias is None else logits.add_(head.bias)
        else:
            found: Tensor = head(hidden)
            logits = found if found.dtype == torch.float64 else found.float()
        if self._model.cap is not None:
            logits = self._model.cap * torch.tanh(logits / self._model.cap)
        return logits.index_fill_(1, self._model.never, -math.inf) if len(self._model.never) else logits

    def _finish(self, answer: Answer) -> Finish | None:
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
        text = self._model.decode(tokens[-count:])
        while len(text) < needed and count < len(tokens):
            count *= 2
            text = self._model.decode(tokens[-count:])
        return any(stop in text for stop in self._stop)

    def _free(self, done: Sequence[Answer]) -> None:
        self.finished += len(done)
        if self._kept is None:
            give_back(self._cache, [(answer.question.read, answer.own) for answer in done])
            return
        for answer in done:
            self._kept.put(answer.stream, answer.to_keep())
