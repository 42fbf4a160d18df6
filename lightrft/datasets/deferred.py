"""Many records: their prompts are tokenised when they are drawn, and none of them is other than if all had been tokenised at the start."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightrft.config import TaskConfig
from lightrft.datasets.prompts import Asked, Counts, fitted, is_new, kept_columns, nonempty, prepare, tell
from lightrft.datasets.sources import BadRecords
from lightrft.datasets.text_records import TextRecords
from lightrft.types import Message, Record

if TYPE_CHECKING:
    from lightrft.models.processor import Processor

log = logging.getLogger("lightrft")

AT_ONCE = 20_000
"""Most records of a task that are tokenised at the start, so that whatever is wrong with any of them shows there."""
LONGEST = 200
"""Prompts with the most bytes that are tokenised at the start too, to know how long prompts are."""


def prepared(
    records: Sequence[Record],
    processor: Processor,
    config: TaskConfig,
    columns: Collection[str] | None = (),
) -> tuple[Sequence[Asked], Counts]:
    """`prepare` for up to AT_ONCE records, `defer` for more."""
    if len(records) <= AT_ONCE or not processor.can_defer:
        return prepare(records, processor, config, columns)
    if isinstance(records, TextRecords) and processor.media is None:
        return defer_texts(records, processor, config, columns)
    return defer(records, processor, config, columns)


def defer(
    records: Iterable[Record],
    processor: Processor,
    config: TaskConfig,
    columns: Collection[str] | None = (),
) -> tuple[list[Record], Counts]:
    """The records that `prepare` would make prompts of, in their order; `Opener` does when they are drawn. And how many were skipped.

    A token stands for at least one byte, so a prompt of no more bytes than tasks.max_prompt_tokens is not too long; the others, and
    the first conversation of each form, are tokenised now. What a template or tokenizer refuses for what a text says, and not for the
    form of its conversation, shows when it is drawn. Raises ValueError as `prepare` does.
    """
    kept, counts = deferred(records, processor, config, columns)
    tell(counts, config)
    return kept, counts


def deferred(
    records: Iterable[Record],
    processor: Processor,
    config: TaskConfig,
    columns: Collection[str] | None = (),
) -> tuple[list[Record], Counts]:
    """`defer` without a word of what was skipped, and without an error where nothing is left."""
    kept: list[Record] = []
    counts, bad, seen = Counts(), BadRecords(config.on_bad_record), set[str]()
    around: dict[Form, int] = {}
    bounds: list[tuple[int, int]] = []
    for record in records:
        if not is_new(record, seen, bad) or not _is_sound(record, processor, bad):
            continue
        form, size = _measured(record.messages)
        bound = size + around.get(form, config.max_prompt_tokens)
        if form in around and size and bound <= config.max_prompt_tokens:
            counts.deferred += 1
            bounds.append((bound, len(kept)))
        else:
            prompt = nonempty(record, processor, config, counts, bad)
            if prompt is None:
                continue
            if form not in around:
                around[form] = _around(record.messages, processor)
            counts.longest = max(counts.longest, len(prompt.token_ids))
            if fitted(prompt, config, counts) is None:
                continue
        fields = kept_columns(record, columns) if columns is None or columns else {}
        kept.append(Record(record.id, record.messages, record.target, record.source, fields))
    for place in sorted((place for _, place in nlargest(LONGEST, bounds)), reverse=True):
        prompt = nonempty(kept[place], processor, config, counts, bad)
        counts.deferred -= 1
        if prompt is None:
            del kept[place]
        else:
            counts.longest = max(counts.longest, len(prompt.token_ids))
    counts.kept, counts.broken = len(kept), bad.skipped
    return kept, counts


def defer_texts(
    records: TextRecords, processor: Processor, config: TaskConfig, columns: Collection[str] | None = ()
) -> tuple[TextRecords, Counts]:
    """`defer` for questions that all have one form and names of their own, for a model without media: sizes are taken of whole columns."""
    counts, bad = Counts(), BadRecords(config.on_bad_record)
    stay = np.zeros(len(records), bool)

    def tokenise(place: int) -> Record | None:
        """The record, if it makes a prompt; whether one that is not too long is in `stay`."""
        prompt = nonempty(records[place], processor, config, counts, bad)
        if prompt is None:
            return None
        counts.longest = max(counts.longest, len(prompt.token_ids))
        stay[place] = fitted(prompt, config, counts) is not None
        return records[place]

    tried = ((place, tokenise(place)) for place in range(len(records)))
    first, record = next(((place, one) for place, one in tried if one is not None), (len(records), None))
    around = _around(record.messages, processor) if record is not None else 0
    bounds = records.sizes(_most) + around
    behind = np.arange(len(records)) > first
    for place in np.flatnonzero(behind & (bounds > config.max_prompt_tokens)):
        tokenise(int(place))
    late = np.flatnonzero(behind & (bounds <= config.max_prompt_tokens))
    stay[late] = True
    longest = late[np.argsort(bounds[late], kind="stable")[-LONGEST:]]
    for place in sorted(longest.tolist(), reverse=True):
        if tokenise(place) is None:
            stay[place] = False
    counts.deferred = len(late) - len(longest)
    counts.kept, counts.broken = int(stay.sum()), bad.skipped
    tell(counts, config)
    kept = records if stay.all() else records.where(stay)
    return kept.with_fields(columns), counts


Form = tuple[Any, ...]
"""Roles of a conversation, and the kinds of parts of its messages."""


def _is_sound(record: Record, processor: Processor, bad: BadRecords) -> bool:
    try:
        processor.check(record)
    except ValueError as error:
        bad(str(error) if record.id in str(error) else f"{record.id}: {error}")
        return False
    return True


def _around(messages: Sequence[Message], processor: Processor) -> int:
    """Most tokens that the chat template puts around the texts of a conversation of this form."""
    bare = [
        Message(
            role=m["role"],
            content="x" if isinstance(m["content"], str) else [_bare(part) for part in m["content"]],
        )
        for m in messages
    ]
    return _most(processor.rendered(bare)) - _measured(bare)[1]


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": "x"} if part["type"] == "text" else part


def _measured(messages: Sequence[Message]) -> tuple[Form, int]:
    """The form of a conversation, and the most tokens that its texts can have."""
    form: list[Any] = []
    size = 0
    for message in messages:
        content = message["content"]
        form.append(message["role"])
        if isinstance(content, str):
            size += _most(content)
            continue
        form.append(tuple(part["type"] for part in content))
        size += sum(_most(part["text"]) for part in content if part["type"] == "text")
    return tuple(form), size


def _most(text: str) -> int:
    """Most tokens that a text can have: its bytes, in whatever normal form a tokenizer brings it before; some make three of a blank."""
    blanks = 2 * text.count(" ")
    if text.isascii():
        return len(text) + blanks
    forms = [text, *(unicodedata.normalize(name, text) for name in NORMAL)]
    return max(len(form.encode()) for form in forms) + blanks


NORMAL: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
