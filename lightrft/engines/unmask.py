"""Reveals responses of masked diffusion language models with the actor's own weights: some tokens of a canvas of masks in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightrft.config import RolloutConfig, UnmaskConfig
from lightrft.engines.base import Engine, Progress
from lightrft.engines.own_weights import OwnWeights, load
from lightrft.engines.sampling import draw, stream, uniforms
from lightrft.models.canvases import Canvases, Reading
from lightrft.models.lazy import is_empty
from lightrft.models.logprobs import all_logits, predicting_states
from lightrft.models.masked import MaskedProcessor, canvas_logprobs
from lightrft.models.processor import Processor
from lightrft.models.sequence import Share
from lightrft.strategy.memory import Resident
from lightrft.types import Batch, Completion, Prompt, Sampling, Trajectory

PATH = "path"
"""The likelihood that the sampler itself knows."""
ORDERING = 1 << 40
"""Where the random numbers of order=random begin in a response's stream, behind those of its tokens."""
Score = Callable[[Tensor], Tensor]
"""Logits of masked tokens, (M, V) -> what is revealed first has most of it, (M,)."""


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(-1).amax(-1)


def _margin(logits: Tensor) -> Tensor:
    best = logits.softmax(-1).topk(2, -1).values
    return best[:, 0] - best[:, 1]


def _certainty(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return (logp.exp() * logp).sum(-1)


SCORES: dict[str, Score] = {"confidence": _confidence, "entropy": _certainty, "margin": _margin}
"""Orders that follow from what the model predicts in a state, before anything is drawn."""


@dataclass
class Canvas:
    """Responses that are being revealed: B of them, C tokens each."""

    prompts: list[Prompt]
    keys: Tensor
    """(B,) int64 streams."""
    tokens: Tensor
    """(B, C) int64"""
    steps: Tensor
    """(B, C) int64, the step that revealed a token; -1: none yet."""
    logps: Tensor
    """(B, C) float64"""
    ends: Tensor
    """(B,) int64, where the present block ends."""
    lengths: Tensor
    """(B,) int64, of a finished response; 0 before that."""
    step: int = 0


class Unmasker:
    """An Engine over a masked diffusion language model.

    What a response says depends on the weights, the prompt, `sampling`, the prompt's place in the call and the response's own number; not
    on what else is sampled, nor on `max_sequences`. The canvas has `sampling.max_tokens` tokens, and a response ends with the block in which
    an end token came. At temperature 0 the likeliest token is taken.
    """

    def __init__(self, module: nn.Module, processor: MaskedProcessor, config: UnmaskConfig) -> None:
        self.weight_version, self.config = 0, config
        self.device = next(module.parameters()).device
        self._module, self._reading, self._stops = (
            module,
            Reading(config, processor.reading.mask),
            processor.stop_ids,
        )
        self._own = OwnWeights(self, module) if is_empty(module) else None

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Engine.generate. ValueError for a prompt without tokens, or one that is to go on."""
        for prompt in prompts:
            if not prompt.token_ids:
                raise ValueError(f"prompt {prompt.id!r} has no tokens; there is nothing to respond to.")
            if prompt.continuation is not None:
                raise ValueError(
                    "a response is revealed in one go: there is none to go on with. Set rollout.max_tokens_per_step=0."
                )
        n = sampling.n
        asked = [(prompt, place, k) for place, prompt in enumerate(prompts) for k in range(n)]
        found: list[Completion] = []
        for start in range(0, len(asked), self.config.max_sequences):
            part = asked[start : start + self.config.max_sequences]
            keys = [
                stream(sampling.seed, sampling.first_index + place * sampling.index_stride, k)
                for _, place, k in part
            ]
            before = (len(found), sum(len(c.token_ids) for c in found))

            def told(finished: int, tokens: int, before: tuple[int, int] = before) -> None:
                if progress is not None:
                    progress(before[0] + finished, before[1] + tokens)

            found += self._revealed([prompt for prompt, _, _ in part], keys, sampling, told)
        return [found[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _revealed(
        self, prompts: list[Prompt], keys: Sequence[int], sampling: Sampling, told: Progress
    ) -> list[Completion]:
        """One response to each prompt, from the streams `keys`."""
        shape = (len(prompts), sampling.max_tokens)
        first = min(self.config.block or sampling.max_tokens, sampling.max_tokens)
        canvas = Canvas(
            prompts=prompts,
            keys=torch.tensor(keys),
            tokens=torch.full(shape, self._reading.mask),
            steps=torch.full(shape, -1),
            logps=torch.zeros(shape, dtype=torch.float64),
            ends=torch.full(shape[:1], first),
            lengths=torch.zeros(shape[0], dtype=torch.int64),
        )
        while not bool(canvas.lengths.all()):
            self._step(canvas, sampling)
            self._finish_blocks(canvas, sampling)
            told(int((canvas.lengths > 0).sum()), int((canvas.steps >= 0).sum()))
        return self._completions(canvas, sampling)

    def _step(self, canvas: Canvas, sampling: Sampling) -> None:
        """One denoising step of all responses that are not finished."""
        places = torch.arange(canvas.tokens.shape[1])
        running = (canvas.lengths == 0)[:, None]
        open_now = running & (canvas.steps < 0) & (places < canvas.ends[:, None])
        rows, columns = open_now.nonzero(as_tuple=True)
        logits = self._logits(canvas, rows, columns)
        uniform = uniforms(canvas.keys[rows], canvas.step * canvas.tokens.shape[1] + columns)
        drawn = (
            draw(logits.clone(), None, uniform.to(logits.device), sampling)
            if self.config.order == "sampled"
            else None
        )
        chosen = self._chosen(canvas, logits, None if drawn is None else drawn[0], rows, columns)
        here = chosen.to(logits.device)
        tokens, logps = (
            draw(logits[here], None, uniform[chosen].to(logits.device), sampling)
            if drawn is None
            else (x[here] for x in drawn)
        )
        at = rows[chosen], columns[chosen]
        canvas.tokens[at], canvas.logps[at] = tokens.cpu(), logps.double().cpu()
        canvas.steps[at] = canvas.step
        canvas.step += 1

    def _logits(self, canvas: Canvas, rows: Tensor, columns: Tensor) -> Tensor:
        """(M, V) of the masked tokens at these places, as the trainer reads them."""
        size, inputs = canvas.tokens.shape[1], list[list[int]]()
        starts = torch.zeros(len(canvas.prompts), dtype=torch.int64)
        read = 0
        for row in rows.unique().tolist():
            prompt = canvas.prompts[row].token_ids
            seen = self._reading.seen(int(canvas.ends[row]) - 1, size)
            starts[row] = read + len(prompt)
            inputs.append(prompt + canvas.tokens[row, :seen].tolist())
            read += len(inputs[-1])
        ends = torch.tensor([len(row) for row in inputs]).cumsum(0).tolist()
        predict = (starts[rows] + columns - int(self.config.predicts == "next")).to(self.device)
        laid = Canvases(
            token_ids=torch.tensor([x for row in inputs for x in row]).to(self.device),
            positions=torch.cat([torch.arange(len(row)) for row in inputs]).to(self.device),
            prompt_spans=tuple((end - len(row), end) for row, end in zip(inputs, ends, strict=True)),
            response_spans=(),
            targets=predict,
            predict=predict,
        )
        return all_logits(self._module, predicting_states(self._module, laid, Share.of(laid)))

    def _chosen(
        self, canvas: Canvas, logits: Tensor, drawn: Tensor | None, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """(M,) bool: which of the masked tokens are revealed now."""
        order = self.config.order
        if drawn is not None:
            score = logits.softmax(-1).gather(1, drawn[:, None])[:, 0].cpu().double()
        elif order == "left":
            score = -columns.double()
        elif order == "random":
            score = uniforms(canvas.keys[rows], ORDERING + columns)
        else:
            score = SCORES[order](logits).cpu().double()
        table = torch.full(canvas.tokens.shape, -torch.inf, dtype=torch.float64)
        table[rows, columns] = score
        ranked = table.argsort(dim=1, descending=True, stable=True)  # of equal ones the first comes first
        ranks = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(ranked.shape[1]).expand_as(ranked))
        now = ranks[rows, columns] < self.config.tokens_per_step
        return now | (score > self.config.threshold) if self.config.threshold < 1 else now

    def _finish_blocks(self, canvas: Canvas, sampling: Sampling) -> None:
        """Begins the next block where the present one is revealed, or finishes the response."""
        size = canvas.tokens.shape[1]
        places = torch.arange(size)
        stops = torch.tensor(sorted({*self._stops, *sampling.stop_token_ids}))
        ended = torch.isin(canvas.tokens, stops).any(1) & (not sampling.ignore_eos)
        done = ((canvas.steps >= 0) | (places >= canvas.ends[:, None])).all(1) & (canvas.lengths == 0)
        last = done & (ended | (canvas.ends == size))
        canvas.lengths = torch.where(last, canvas.ends, canvas.lengths)
        further = (canvas.ends + (self.config.block or size)).clamp(max=size)
        canvas.ends = torch.where(done & ~last, further, canvas.ends)

    def _completions(self, canvas: Canvas, sampling: Sampling) -> list[Completion]:
        stops, size = {*self._stops, *sampling.stop_token_ids}, canvas.tokens.shape[1]
        found = []
        for row, length in enumerate(canvas.lengths.tolist()):
            tokens: list[int] = canvas.tokens[row, :length].tolist()
            found.append(
                Completion(
                    token_ids=tokens,
                    logprobs=canvas.logps[row, :length].tolist(),
                    finish="stop" if stops.intersection(tokens) else "length",
                    weight_version=self.weight_version,
                    stream=int(canvas.keys[row]),
                    states=torch.stack([canvas.steps[row, :length], torch.full((length,), size)], 1),
                )
            )
        return found if self.config.likelihood == PATH else self._scored(canvas.prompts, found, sampling)

    def _scored(
        self, prompts: Sequence[Prompt], found: Sequence[Completion], sampling: Sampling
    ) -> list[Completion]:
        """The responses with their log-probs by the likelihood that is learned with, under the weights that sampled them."""
        answers = [
            Trajectory(
                p, 0, c.token_ids, [True] * len(c.token_ids), [], c.finish, stream=c.stream, states=c.states
            )
            for p, c in zip(prompts, found, strict=True)
        ]
        lengths = [len(t) for t in answers]
        nothing, entries = torch.zeros(0), torch.zeros(sum(lengths), dtype=torch.int64, device=self.device)
        batch = Batch(
            segments=entries, groups=nothing, mask=nothing, scores=nothing, weights=nothing, behavior=nothing,
            inputs=self._reading.layout(answers).on(self.device),
        )  # fmt: skip
        told = canvas_logprobs(self._module, batch, temperature=sampling.temperature or 1.0, max_logits=0)
        parts = told.values.double().cpu().split(lengths)
        return [replace(c, logprobs=own.tolist()) for c, own in zip(found, parts, strict=True)]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Engine.load_weights; a tensor that is the module's own costs nothing."""
        load(self._module, self._own, weights)

    @property
    def shares_weights(self) -> bool:
        """Whether it samples with the actor's own weights."""
        return self._own is None

    def parts(self) -> dict[str, Resident]:
        """The weights, unless they belong to whoever trains them."""
        return {} if self._own is None else {"weights": self._own}


def unmasker(module: nn.Module, processor: Processor, config: RolloutConfig) -> Engine:
    """Samples with the module itself. ValueError for a model that is no masked diffusion language model."""
    if not isinstance(processor, MaskedProcessor):
        raise ValueError(
            f"rollout.engine={config.engine} reveals masked tokens, and model.path is no masked diffusion language model (its config.json has no "
            '"is_causal": false with a mask_token_id). Set rollout.engine=native.'
        )
    return Unmasker(module, processor, config.unmask)
