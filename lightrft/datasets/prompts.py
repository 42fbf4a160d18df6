"""Records to prompts: through the chat template, with a policy for those that are too long."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from lightrft.config import TaskConfig
from lightrft.datasets.sources import BadRecords
from lightrft.media.parts import MediaError
from lightrft.types import Prompt, Record

if TYPE_CHECKING:
    from lightrft.models.processor import Processor

log = logging.getLogger("lightrft")

Asked = Prompt | Record
"""What is asked: already in the model's tokens, or still to be."""


@dataclass(slots=True)
class Counts:
    """What became of the records."""

    kept: int = 0
    too_long: int = 0
    """Skipped, being over tasks.max_prompt_tokens."""
    truncated: int = 0
    """Kept, after tokens were cut from the left."""
    empty: int = 0
    """Skipped, having no text or no tokens."""
    broken: int = 0
    """Skipped: two of one name, or refused by the chat template, the tokenizer or the model."""
    longest: int = 0
    """Tokens of the longest prompt, before any cut, of those that were tokenised."""
    deferred: int = 0
    """Kept, to be tokenised when they are drawn."""


def prepare(
    records: Iterable[Record],
    processor: Processor,
    config: TaskConfig,
    columns: Collection[str] | None = (),
) -> tuple[list[Prompt], Counts]:
    """Prompts in the records' order, and how many were skipped or cut. `columns`: fields of the row that they keep; None: all.

    An empty prompt is treated like a bad record (tasks.on_bad_record), a long one by tasks.on_long_prompt. Raises
    ValueError where these say so, and when nothing is left.
    """
    prompts, counts = tokenised(records, processor, config, columns)
    tell(counts, config)
    return prompts, counts


def tokenised(
    records: Iterable[Record],
    processor: Processor,
    config: TaskConfig,
    columns: Collection[str] | None = (),
) -> tuple[list[Prompt], Counts]:
    """`prepare` without a word of what was skipped, and without an error where nothing is left."""
    prompts: list[Prompt] = []
    counts, bad, seen = Counts(), BadRecords(config.on_bad_record), set[str]()
    for record in records:
        if not is_new(record, seen, bad):
            continue
        prompt = nonempty(record, processor, config, counts, bad)
        if prompt is not None:
            counts.longest = max(counts.longest, len(prompt.token_ids))
            prompt = fitted(prompt, config, counts)
        if prompt is not None:
            kept = kept_columns(record, columns)
            prompts.append(replace(prompt, columns=kept) if kept else prompt)
    counts.kept, counts.broken = len(prompts), bad.skipped
    return prompts, counts


def kept_columns(record: Record, columns: Collection[str] | None) -> dict[str, Any]:
    """The fields of the row that are kept: those named, or with None all."""
    return {name: one for name, one in record.columns.items() if columns is None or name in columns}


def tell(counts: Counts, config: TaskConfig) -> None:
    """Logs what was skipped or cut. ValueError if nothing is left."""
    tell_skipped(counts, config)
    if not counts.kept:
        raise ValueError(
            f"no prompt is left: {counts.too_long} over tasks.max_prompt_tokens={config.max_prompt_tokens} (the longest has "
            f"{counts.longest}), {counts.empty} empty. Raise tasks.max_prompt_tokens, or set tasks.on_long_prompt=truncate_left."
        )


def tell_skipped(counts: Counts, config: TaskConfig) -> None:
    """Logs what was skipped or cut."""
    if counts.too_long or counts.truncated or counts.empty:
        log.warning(
            "prompts: %d kept, %d of them truncated on the left; skipped %d over %d tokens and %d empty ones",
            counts.kept, counts.truncated, counts.too_long, config.max_prompt_tokens, counts.empty,
        )  # fmt: skip


class Opener:
    """Tokenises a record that was deferred, and reads the media of a question, when its turn has come, so that no more are in memory than a step needs.

    None for a question whose media cannot be read or that the chat template refuses (tasks.on_bad_record), or that is too long
    with its media (tasks.on_long_prompt), counted and logged; ValueError where these say so.
    """

    def __init__(self, processor: Processor, config: TaskConfig) -> None:
        self.processor, self.config = processor, config
        self.bad, self.counts = BadRecords(config.on_bad_record), Counts()

    def written(self, asked: Asked) -> Prompt | None:
        """The prompt in the model's tokens, its media not read yet; None if it is left out."""
        if isinstance(asked, Prompt):
            return asked
        prompt = nonempty(asked, self.processor, self.config, self.counts, self.bad)
        if prompt is None:
            return None
        fitting = fitted(prompt, self.config, self.counts)
        return fitting if fitting is None else replace(fitting, columns=asked.columns)

    def tokens(self, asked: Asked) -> list[int]:
        """(P,) tokens of the prompt, its media not read; none if it is left out."""
        prompt = self.written(asked)
        return [] if prompt is None else prompt.token_ids

    def __call__(self, asked: Asked) -> Prompt | None:
        """The prompt with its media read, or None if it is left out."""
        prompt = self.written(asked)
        if prompt is None:
            return None
        try:
            opened = self.processor.open(prompt)
        except MediaError as error:
            self.bad(str(error))
            return None
        if opened is prompt:
            return prompt
        fitting = fitted(opened, self.config, self.counts)
        if fitting is None:
            log.warning(
                "skipped %s: %d tokens with its media, tasks.max_prompt_tokens=%d",
                prompt.id, len(opened.token_ids), self.config.max_prompt_tokens,
            )  # fmt: skip
        return fitting


def is_new(record: Record, seen: set[str], bad: BadRecords) -> bool:
    """Whether no record before had this id; it is then among those seen. Another one of the same id goes to `bad`."""
    if record.id in seen:
        bad(
            f"{record.id}: another record has this id; their responses would be taken for responses to one prompt."
        )
        return False
    seen.add(record.id)
    return True


def nonempty(
    record: Record, processor: Processor, config: TaskConfig, counts: Counts, bad: BadRecords
) -> Prompt | None:
    """The record in the model's tokens; None if it has none, or cannot be written, as tasks.on_bad_record says."""
    if any(message["content"] for message in record.messages):
        try:
            prompt = processor.prompt(record)
        except Exception as error:  # whatever a template or tokenizer makes of one row is that row's fault
            bad(refused(record.id, error))
            return None
        beyond = max(prompt.token_ids, default=0)
        if beyond >= processor.vocab_size:
            piece = processor.pieces([beyond])[0]
            bad(
                f"{record.id}: token {beyond}, {piece!r}, is beyond the model's table of {processor.vocab_size}."
            )
            return None
        if prompt.token_ids:
            return prompt
    if config.on_bad_record == "raise":
        raise ValueError(
            f"{record.id}: the prompt is empty. Fix the row, or set tasks.on_bad_record=skip to skip such rows (skips are counted)."
        )
    counts.empty += 1
    return None


def refused(name: str, error: Exception) -> str:
    """What is wrong with a record, in one line that names it."""
    if isinstance(error, TemplateError):
        return f"{name}: the chat template refuses it: {error}"
    if isinstance(error, ValueError) and name in str(error):
        return str(error)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{name}: {kind}{error}"


def fitted(prompt: Prompt, config: TaskConfig, counts: Counts) -> Prompt | None:
    """The prompt, cut if need be; None if it is too long, counted. ValueError where tasks.on_long_prompt says so."""
    length, most = len(prompt.token_ids), config.max_prompt_tokens
    if length <= most:
        return prompt
    if config.on_long_prompt == "raise":
        raise ValueError(
            f"{prompt.id}: the prompt has {length} tokens, tasks.max_prompt_tokens={most}. Raise that, or set "
            "tasks.on_long_prompt to skip or truncate_left."
        )
    if config.on_long_prompt == "skip":
        counts.too_long += 1
        return None
    if prompt.media or prompt.positions is not None:
        raise ValueError(
            f"{prompt.id}: a prompt with images or sounds cannot be truncated without breaking them. Set tasks.on_long_prompt=skip."
        )
    counts.truncated += 1
    return replace(prompt, token_ids=prompt.token_ids[-most:])
