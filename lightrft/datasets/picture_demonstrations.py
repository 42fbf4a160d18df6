"""Pictures, or clips, that were made for a text, for models that learn to draw them: rows are conversations in which the assistant answers with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightrft.config import SFTConfig
from lightrft.datasets.conversations import whole
from lightrft.datasets.picture_pairs import CALLED, medium_of
from lightrft.datasets.prompts import prepare
from lightrft.datasets.sides import Shown
from lightrft.datasets.sources import BadRecords
from lightrft.types import Prompt, Record

if TYPE_CHECKING:
    from lightrft.models.processor import Processor


@dataclass(frozen=True)
class PictureDemonstrations:
    """Makes records into prompts whose target is `Shown`."""

    processor: Processor
    config: SFTConfig
    kind: str
    """What a response is: image or video."""

    def prompts(
        self, records: Iterable[Record], gold: Callable[[Record], str], *, held_out: bool
    ) -> tuple[list[Prompt], int]:
        """In the records' order, and how many were skipped as broken. ValueError where the settings say so, and if none is left."""
        bad, asked = BadRecords(self.config.tasks.on_bad_record), list[Record]()
        for record in records:
            try:
                asked.append(_asked(record, gold, held_out, self.kind))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                bad(str(error) if record.id in str(error) else f"{record.id}: {error}")
        if not asked:
            name, kind = CALLED[self.kind], self.kind
            file = {"image": "a.png", "video": "a.mp4"}[kind]
            raise ValueError(
                f"no {name} is left: {bad.skipped} rows are broken. A row has a text and the {name} that is to be drawn for it, such as "
                f'{{"prompt": "a red cube", "response": [{{"role": "assistant", "content": [{{"type": "{kind}", "{kind}": "{file}"}}]}}]}}.'
            )
        return prepare(asked, self.processor, self.config.tasks)[0], bad.skipped


def _asked(record: Record, gold: Callable[[Record], str], held_out: bool, kind: str) -> Record:
    """The record with its picture, or its clip, as target. ValueError for a response that is anything else."""
    talk = whole(record, gold)
    first = next(place for place, turn in enumerate(talk) if turn["role"] == "assistant")
    medium = medium_of(talk[first:], "the response", kind)
    return replace(record, messages=talk[:first], target=Shown(medium, held_out, kind))
