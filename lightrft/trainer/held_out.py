"""Held-out responses for people to look at: some prompts of each task with what the model makes of them, whenever it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lightrft.config import SFTLogConfig
from lightrft.datasets.conversations import Answer
from lightrft.datasets.sides import answered_in_media
from lightrft.media.parts import readable
from lightrft.models.processor import Processor
from lightrft.runs.media import base_name
from lightrft.runs.trajectories import EXACT
from lightrft.strategy.memory import Phase
from lightrft.trainer.rollout import rollout
from lightrft.trainer.sampler import Sampler
from lightrft.types import Message, Prompt, Sampling, Trajectory

if TYPE_CHECKING:
    from lightrft.trainer.offline import OfflineTrainer


@dataclass(frozen=True)
class HeldOutSamples:
    """Saves the first held-out prompts of each task as a step's responses are: those of the data, marked `given`, with what the objective
    tells of them and, where there is a sampler, the model's own greedy one beside each."""

    log: SFTLogConfig
    processor: Processor
    sampler: Sampler | None = None
    max_tokens: int = 0
    """Most tokens of the model's own response."""

    def save(self, trainer: OfflineTrainer, step: int) -> None:
        """Writes the responses of this rank's share of the prompts; called by all ranks."""
        found, first = list[Trajectory](), 0
        for one in trainer.held_out:
            prompts = one.prompts[: self.log.held_out_prompts]
            for some in trainer.some(prompts):
                with trainer.memory_plan(Phase.SCORE):
                    opened = trainer.open(some)
                    given = self._given(trainer, prompts, opened)
                own = [] if self.sampler is None else self._own(self.sampler, prompts, opened)
                both = _beside(own, given)
                for t in both:
                    t.group += first  # measured under its place in the task, and saved under one among all
                found += both
            first += len(prompts)
        for t in found:
            t.use, t.weight_version = "held_out", trainer.model.version
        trainer.journal.save(step, found, self.processor, self.log)

    @torch.no_grad()
    def _given(
        self, trainer: OfflineTrainer, prompts: Sequence[Prompt], opened: Sequence[tuple[int, Prompt]]
    ) -> list[Trajectory]:
        """The responses of the data to opened prompts, in their order, each group numbered by its place among `prompts`."""
        answers = [t for n, p in opened for t in trainer.objective.responses(p, n)]
        if trainer.referee is not None:
            trainer.referee.fill(answers)
        for part, batch, counts in trainer.batching.rounds(answers):
            told = trainer.objective.look(trainer.model, batch)
            if counts:
                trainer.objective.tell(part, told)
        closed = {n: replace(prompts[n], target=None) for n, _ in opened}
        media = {n: iter(answered_in_media(prompts[n])) for n, _ in opened}
        for t in answers:
            t.origin, t.states, t.prompt = "given", None, closed[t.group]
            content = next(media[t.group], None)
            if content is None:
                t.answer = self.processor.text(t.token_ids)
            else:
                t.answer, said = readable(content, base_name), Message(role="assistant", content=content)
                t.prompt = replace(t.prompt, messages=[*t.prompt.messages, said])
        return answers

    def _own(
        self, sampler: Sampler, prompts: Sequence[Prompt], opened: Sequence[tuple[int, Prompt]]
    ) -> list[Trajectory]:
        """The model's greedy responses to opened prompts, and whether each is the first turn of the data to the token: no number where that
        turn is longer than a response may be, or is itself cut off."""
        sampling = Sampling(n=1, max_tokens=self.max_tokens, temperature=0.0, seed=0)

        def draw() -> list[list[Trajectory]]:
            asked = [prompt for _, prompt in opened]
            return rollout(sampler.engine, asked, sampling, self.processor) if asked else []

        found = []
        for (place, _), (t,) in zip(opened, sampler(draw), strict=True):
            t.group, t.prompt = place, replace(prompts[place], target=None)
            if isinstance(wanted := prompts[place].target, Answer):
                self._compare(t, wanted)
            found.append(t)
        return found

    def _compare(self, t: Trajectory, wanted: Answer) -> None:
        """Tells whether a response is the first turn of the data, where it could be."""
        turn = wanted.mask.index(False) if False in wanted.mask else len(wanted.mask)
        cut = turn == len(wanted.mask) and wanted.finish == "length"
        if turn <= self.max_tokens and not cut:
            t.reward = float(t.token_ids == wanted.token_ids[:turn])
            t.parts = {EXACT: t.reward}


def _beside(own: Sequence[Trajectory], given: Sequence[Trajectory]) -> list[Trajectory]:
    """The responses by group, the model's own before those of the data; what was said there is the target of both."""
    said = {t.group: t.answer for t in given}
    for t in [*own, *given] if own else ():
        t.prompt = replace(t.prompt, target=said[t.group])
    return sorted([*own, *given], key=lambda t: t.group)
