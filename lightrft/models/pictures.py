"""Diffusion pipelines as policies: an entry of a response is a step that noise entered, and what is made is a picture."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import Config, DenoiseConfig
from lightrft.config.algorithm import EXACT
from lightrft.config.checks import refuse_idle
from lightrft.models.demands import check_settings
from lightrft.models.flows import divergence, entropy
from lightrft.models.logprobs import LogProbs
from lightrft.models.pipelines import FILE_BYTES, FlowSource, Pipeline
from lightrft.models.schedule import Schedule, likelihood, per
from lightrft.models.words import dummy_answer
from lightrft.types import Batch, Message, Prompt, Record, Sampling, Steps, Trajectory

REMEMBERED = 256
"""Prompts whose conditions are kept, the last used ones."""
DRAWN = "rollout.denoise"
"""Section of the settings of what is drawn."""


@dataclass
class PictureProcessor:
    """Texts to conditions of the network, by the frozen text encoders of its pipeline."""

    pipeline: Pipeline
    config: DenoiseConfig
    shape: tuple[int, ...]
    """Channels, rows and columns of a state, with frames before the rows where clips are drawn."""
    width: int
    """Positions the network reads for a step."""
    section: str = DRAWN
    """Section of the settings that `config` is of, as messages name it."""
    day: datetime | None = None
    media = None
    can_defer = False
    """Whether prompts may be read when they are drawn: a text that is too long for the encoder is refused at the start."""
    stop_ids: frozenset[int] = frozenset()
    _known: OrderedDict[str | None, dict[str, Tensor]] = field(default_factory=OrderedDict)

    @cached_property
    def _reader(self) -> str:
        """The tokenizer of the encoder that reads the longest texts."""
        names = (self.pipeline.family.long, "tokenizer_2", "tokenizer")
        return next(n for n in names if any(self.pipeline.index.get(n) or ()))

    @cached_property
    def tokenizer(self) -> Any:
        """What counts the tokens of a prompt."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.pipeline.folder, subfolder=self._reader)

    @property
    def _longest(self) -> int:
        """Most tokens of a prompt."""
        most: int = min(self.tokenizer.model_max_length, 10**6)
        family = self.pipeline.family
        return min(most, self.config.max_text_tokens - family.around) if self._reader == family.long else most

    @property
    def vocab_size(self) -> int:
        """Tokens there are."""
        return len(self.tokenizer)

    def prompt(self, record: Record) -> Prompt:
        """The message as a prompt. ValueError for one longer than the text encoder reads, of which it would see only a part."""
        text = said(record.messages)
        tokens = list(self.tokenizer(text)["input_ids"])
        if len(tokens) > self._longest:
            raise ValueError(
                f"{record.id}: the prompt has {len(tokens)} tokens, and the text encoder reads {self._longest}. Shorten it, or raise "
                f"{self.section}.max_text_tokens where the encoder can read more."
            )
        return Prompt(record.id, tokens, record.messages, record.target, record.source, width=self.width)

    def open(self, prompt: Prompt) -> Prompt:
        """The prompt with its conditions, which are made once for a text."""
        return prompt if prompt.media else replace(prompt, media=self._conditions(said(prompt.messages)))

    def untold(self, prompt: Prompt) -> Prompt:
        """The prompt with the conditions of no text, as guidance has them."""
        return replace(prompt, media=self._conditions(None))

    @torch.no_grad()
    def _conditions(self, text: str | None) -> dict[str, Tensor]:
        if text not in self._known:
            self._known[text] = self.pipeline.asked(text, self.config)
        self._known.move_to_end(text)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return self._known[text]

    def blank(self) -> Prompt:
        """A prompt to be computed and not learned from."""
        empty = Prompt("blank", [0], [Message(role="user", content="")], None, "", width=self.width)
        return self.open(empty)

    def stopping(self, sampling: Sampling) -> Sampling:
        """The sampling as it is."""
        return sampling

    def text(self, token_ids: Sequence[int]) -> str:  # noqa: ARG002  # as Processor has it
        """Nothing: what was made is a picture."""
        return ""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Steps by their numbers, for viewers."""
        return [f"step {place} " for place in token_ids]


@dataclass(frozen=True)
class Pictures:
    """A diffusion pipeline; see PolicyKind (models/kinds.py)."""

    config: Config
    pipeline: Pipeline
    processor: PictureProcessor

    @classmethod
    def of(cls, config: Config) -> Pictures:
        """The pipeline of model.path. ValueError if it cannot learn, or not with these settings; no weights are read."""
        pipeline = Pipeline(config.model)
        check_settings(config)
        pipeline.check()
        check_noise(pipeline, config.rollout.denoise)
        check_text(pipeline, config.rollout.denoise)
        FlowSource(config.model).check_adapters()
        options = config.rollout.denoise
        shape, width = state_shape(pipeline, options)
        processor = PictureProcessor(pipeline, options, shape, width)
        check_steps(processor)
        return cls(config, pipeline, processor)

    @property
    def makes(self) -> frozenset[str]:
        """Pictures, and clips where the pipeline draws them."""
        return frozenset({"image", "clip"} if self.pipeline.frames else {"image"})

    def source(self, *, learns: bool = True) -> FlowSource:
        """The network."""
        return FlowSource(self.config.model, learns=learns)

    @cached_property
    def schedule(self) -> Schedule:
        """The steps of training."""
        return schedule(self.processor, self.config.rollout.denoise.steps)

    def layout(self, answers: Sequence[Trajectory], share_prompts: bool) -> Steps:  # noqa: ARG002  # conditions are always shared
        """A row for each step; the conditions of each prompt once."""
        options = self.config.rollout.denoise
        for t in answers:
            if t.states is not None and t.states.shape[1] != options.kept:
                raise ValueError(
                    f"rollout.denoise.likelihood={options.likelihood} with rollout.denoise.keep_means={str(options.keep_means).lower()}: they need {options.kept} states of each step, and a "
                    f"response from before they were changed keeps {t.states.shape[1]}. Set them to what they were, or begin a new run."
                )
        return step_layout(answers, self.processor.width)

    def logprobs(self, module: nn.Module, batch: Batch, config: Config) -> LogProbs:
        """Log-probs of the steps, each as it was drawn, as rollout.denoise.likelihood has them."""
        inputs = batch.inputs
        assert isinstance(inputs, Steps)
        conditions = {name: value[inputs.prompts] for name, value in inputs.media.items()}
        before, after = inputs.states[:, 0], inputs.states[:, 1]
        step = self.schedule.noisy(module, before, inputs.places, conditions)
        options = config.rollout.denoise
        scale = per(options, before[0].numel())
        gap = None if inputs.reference is None else divergence(step, inputs.reference) * scale
        keeps = config.algorithm.kl == EXACT and not torch.is_grad_enabled()
        means = step.mean if keeps else None
        drawn = inputs.states[:, 2] if options.kept == 3 else None
        values = likelihood(options, after, step, drawn)
        moved = divergence(step, drawn) * scale if drawn is not None and options.keep_means else None
        weights = self.schedule.weights.to(values)[inputs.places]
        return LogProbs(
            values, entropy(step) * scale, divergence=gap, means=means, weights=weights, moved=moved
        )

    def blank(self) -> Trajectory:
        """One step from nothing to nothing."""
        options = self.config.rollout.denoise
        return blank_step(self.processor, options.first, options.kept)

    @property
    def beside(self) -> int:
        """Bytes of all parts but the network's weights."""
        return self.pipeline.beside

    def write(
        self,
        module: nn.Module,  # noqa: ARG002  # the folder tells the shape
        weights: Iterable[tuple[str, Tensor]],
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        """A folder that DiffusionPipeline.from_pretrained loads."""
        self.pipeline.write(weights, folder, file_bytes=file_bytes)


def step_layout(answers: Sequence[Trajectory], width: int) -> Steps:
    """A row for each entry of responses with states, `width` positions each; the conditions of each prompt once."""
    rows: dict[int, int] = {}
    prompts: list[Prompt] = []
    for t in answers:
        if id(t.prompt) not in rows:
            rows[id(t.prompt)] = len(prompts)
            prompts.append(t.prompt)
    means = [t.reference for t in answers if t.reference is not None]
    return Steps(
        states=torch.cat([t.states for t in answers if t.states is not None]),
        places=torch.tensor([place for t in answers for place in t.token_ids]),
        prompts=torch.tensor([rows[id(t.prompt)] for t in answers for _ in t.token_ids]),
        lengths=tuple(len(t) for t in answers),
        width=width,
        media={name: torch.cat([p.media[name] for p in prompts]) for name in prompts[0].media},
        reference=torch.cat(means) if len(means) == len(answers) else None,
    )


def blank_step(processor: PictureProcessor, place: int, kept: int) -> Trajectory:
    """A response of one step from nothing to nothing, with so many states."""
    t = dummy_answer(processor.blank())
    t.token_ids = [place]
    t.states = torch.zeros(1, kept, *processor.shape)
    t.reference = torch.zeros(1, *processor.shape)
    return t


def said(messages: Sequence[Message]) -> str:
    """The text of the message that says what is to be drawn. ValueError for one that holds more than text, and for more messages than one: nothing
    would read the others."""
    if len(messages) != 1:
        raise ValueError(
            f"the prompt has {len(messages)} messages ({', '.join(m['role'] for m in messages)}), and the pipeline of model.path reads one text. Write all "
            "that is to be drawn into one message of the user, without a field 'system'."
        )
    content = messages[0]["content"]
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise ValueError("the prompt holds media, and the pipeline of model.path reads text alone.")
    return "".join(part["text"] for part in content)


def check_noise(pipeline: Pipeline, options: DenoiseConfig) -> None:
    """ValueError for noise that the pipeline's scheduler does not step with."""
    if options.noise not in pipeline.ladder.noises:
        raise ValueError(
            f"rollout.denoise.noise={options.noise}: the scheduler of model.path={pipeline.config.path} is a {pipeline.index['scheduler'][1]}, "
            f"which steps with {', '.join(pipeline.ladder.noises)}. Set rollout.denoise.noise={pipeline.ladder.noises[0]}."
        )


def schedule(processor: PictureProcessor, steps: int) -> Schedule:
    """Steps of the processor's pipeline, so many of them."""
    positions = processor.width - processor.config.max_text_tokens
    return Schedule(processor.pipeline, processor.config, steps, positions)


def check_steps(processor: PictureProcessor) -> None:
    """ValueError for more steps than the pipeline's scheduler has."""
    for option in ("steps", "evaluation_steps"):
        if steps := getattr(processor.config, option):
            check_number(processor, f"rollout.denoise.{option}", steps)


def check_number(processor: PictureProcessor, setting: str, steps: int) -> None:
    """ValueError, naming the setting, for a number of steps that the pipeline's scheduler has not."""
    pipeline = processor.pipeline
    try:
        _ = schedule(processor, steps).levels
    except (ValueError, IndexError, ImportError) as error:
        known = pipeline.scheduler.config
        most = known.num_train_timesteps - known.get("steps_offset", 0)
        cure = f"Set it to at most {most}" if steps > most else "Save the pipeline with other settings of it"
        raise ValueError(
            f"{setting}={steps}: the {pipeline.index['scheduler'][1]} of model.path={pipeline.config.path} cannot take them ({error}). {cure}."
        ) from error


def check_text(pipeline: Pipeline, options: DenoiseConfig, section: str = DRAWN) -> None:
    """ValueError, naming the `section` of these options, for a length of texts where no text encoder is told one."""
    if not pipeline.family.long:
        cure = "take a pipeline with a long text encoder, such as Stable Diffusion 3"
        because = f"model.path={pipeline.config.path}, whose text encoders read a length of their own"
        refuse_idle(section, options, ["max_text_tokens"], because=because, cure=cure)


def state_shape(
    pipeline: Pipeline, options: DenoiseConfig, section: str = DRAWN
) -> tuple[tuple[int, ...], int]:
    """The shape of a latent, and the positions a step reads. ValueError, naming the `section` of these options, for a size that cannot be cut into
    patches or frames."""
    family, made_for = pipeline.family, pipeline.family.sides(pipeline.shape)
    patch, sides = family.patch(pipeline.shape), []
    for name, plain in zip(("height", "width"), made_for, strict=True):
        pixels, unit = getattr(options, name), pipeline.scale * patch
        if pixels % unit:
            raise ValueError(
                f"{section}.{name}={pixels}: {pipeline.config.path} draws multiples of {unit} pixels. Set it to "
                f"{max(1, round(pixels / unit)) * unit}."
            )
        sides.append(pixels // pipeline.scale or plain)
    frames = _frames(pipeline, options, section)
    positions = math.prod(frames) * (sides[0] // patch) * (sides[1] // patch)
    return (family.channels(pipeline.shape), *frames, *sides), positions + options.max_text_tokens


def _frames(pipeline: Pipeline, options: DenoiseConfig, section: str) -> tuple[int, ...]:
    """How many frames a latent has, where it has some. ValueError for a clip that the pipeline cannot draw."""
    told, unit = f"{section}.frames={options.frames}: {pipeline.config.path} draws", pipeline.frames
    if not unit:
        if options.frames > 1:
            raise ValueError(f"{told} pictures, not clips. Set {section}.frames=1.")
        return ()
    if (options.frames - 1) % unit:
        raise ValueError(
            f"{told} one frame and multiples of {unit} after it. Set it to {round((options.frames - 1) / unit) * unit + 1}."
        )
    return ((options.frames - 1) // unit + 1,)
