"""Masked diffusion language models as policies: an entry of a response is a token, which a denoising step revealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightrft.config import Config, ModelConfig, UnmaskConfig
from lightrft.models.attention import mask_of
from lightrft.models.canvases import Canvases, Reading
from lightrft.models.describe import text_shape
from lightrft.models.load import load_processor
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.masked_demands import check_settings
from lightrft.models.processor import Processor
from lightrft.models.words import Words, dummy_answer
from lightrft.types import Batch, Prompt, Record, Trajectory


class MaskedProcessor(Processor):
    """A processor whose prompts say how much is read for a token, and whose responses end at their first end token."""

    reading: Reading
    size: int
    """Tokens of a canvas."""

    @classmethod
    def of(cls, processor: Processor, reading: Reading, size: int) -> MaskedProcessor:
        """A plain one, with how a masked model reads."""
        made = cls(processor.tokenizer, processor.stop_ids, processor.vocab_size)
        made.reading, made.size = reading, size
        return made

    def _wide(self, prompt: Prompt) -> Prompt:
        return replace(prompt, width=self.reading.width(len(prompt.token_ids), self.size))

    def prompt(self, record: Record) -> Prompt:
        """Processor.prompt."""
        return self._wide(super().prompt(record))

    def blank(self) -> Prompt:
        """Processor.blank."""
        return self._wide(super().blank())

    def text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Decoded text up to the first end token; with `special` all of it."""
        ends = (place for place, token in enumerate(token_ids) if token in self.stop_ids)
        end = None if special else next(ends, None)
        return super().text(token_ids[:end], special=special)


@dataclass(frozen=True)
class MaskedWords(Words):
    """A masked diffusion language model; see PolicyKind (models/kinds.py)."""

    processor: MaskedProcessor

    @classmethod
    def of(cls, config: Config) -> MaskedWords:
        """The masked model of model.path. ValueError for settings that it cannot obey; no weights are read."""
        check_settings(config)
        size = max(config.rollout.max_tokens, config.evaluate.max_tokens)
        reading = reading_of(config.model, config.rollout.unmask)
        return cls(config, MaskedProcessor.of(load_processor(config.model), reading, size))

    def layout(self, answers: Sequence[Trajectory], share_prompts: bool) -> Canvases:  # noqa: ARG002  # nothing is shared
        """Rows of prompt and canvas, see models/canvases.py."""
        return self.processor.reading.layout(answers)

    def logprobs(self, module: nn.Module, batch: Batch, config: Config) -> LogProbs:
        """Log-probs of the tokens as rollout.unmask.likelihood means them; 0 of those that are not learned from, or masked in no draw."""
        return canvas_logprobs(
            module, batch, temperature=config.rollout.temperature, max_logits=config.update.logits_per_chunk
        )

    def blank(self) -> Trajectory:
        """One token in answer to one token."""
        t = dummy_answer(self.processor.blank())
        t.states = torch.tensor([[0, 1]])
        return t


def reading_of(config: ModelConfig, options: UnmaskConfig) -> Reading:
    """How the model of model.path reads. ValueError for layers that see only a part of a text."""
    shape = text_shape(config)
    mask = mask_of(shape)
    assert mask is not None
    if "sliding_attention" in (getattr(shape, "layer_types", None) or ()):
        raise ValueError(
            f"model.path={config.path}: a masked diffusion language model with layers of sliding attention, which is not computed both ways "
            "here. Take one whose layers see all of a text."
        )
    return Reading(options, mask)


def canvas_logprobs(module: nn.Module, batch: Batch, *, temperature: float, max_logits: int) -> LogProbs:
    """(T,) log-probs and entropies of all tokens from those of the predictions; entropies are means over the predictions of a token."""
    inputs = batch.inputs
    assert isinstance(inputs, Canvases)
    places, shares = inputs.tokens, inputs.shares
    assert places is not None
    assert shares is not None
    found = logprobs(module, batch, temperature=temperature, max_logits=max_logits)
    count = len(batch.segments)

    def gathered(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, places, values)

    often = gathered(torch.ones_like(found.values)).clamp(min=1)
    return LogProbs(gathered(found.values * shares.to(found.values.dtype)), gathered(found.entropy) / often)
