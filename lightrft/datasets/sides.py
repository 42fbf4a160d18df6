"""The responses of a comparison as a model reads them; those that are pictures, clips or sounds are each a prompt of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightrft.config import TaskConfig
from lightrft.datasets.media import as_parts, shown
from lightrft.datasets.prompts import Asked, Opener
from lightrft.media.parts import has_media, parts
from lightrft.media.sources import Made, MediaError, label
from lightrft.types import Message, Prompt, Record

if TYPE_CHECKING:
    from lightrft.models.processor import Processor

UntilScore = Callable[[Sequence[int]], Sequence[int]]
"""Finds in a conversation the tokens up to the one at which its score is read (models/reward.py)."""


class Side(NamedTuple):
    """One of several responses to a prompt; a list of them is the target of the prompts that `Comparisons` makes."""

    token_ids: list[int]
    """What follows the prompt: until the score is read, or until the response ends."""
    grades: dict[str, float]
    """By output; NaN or absent: not graded."""
    mask: list[bool]
    """True where the score is read, or on what the assistant says."""
    prompt: Prompt | None = None
    """All that the model reads of a response that is, or is compared with, a picture, a clip or a sound, but for the one token that
    `token_ids` has, at which the score is read. None: the prompt that all responses share."""
    medium: Any = None
    """The picture, or clip, that is the response of a model that draws: its source or, once it is read, the state of it."""
    kind: str = "image"
    """What `medium` is: image or video."""


class Shown(NamedTuple):
    """The picture, or clip, that a model which draws is to draw: the target of the prompts of `PictureDemonstrations`."""

    medium: Any
    """The source or, once it is read, the state of what is to be drawn."""
    held_out: bool
    """Whether it is measured on and not learned from."""
    kind: str = "image"
    """What `medium` is: image or video."""


def any_media(target: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the responses that a record compares holds a picture, a clip or a sound."""
    return any(has_media(one["messages"]) for one in target)


def own_prompt(processor: Processor, record: Record, said: Sequence[Message], place: int) -> Prompt:
    """The prompt that shows one response to a model that scores it; its media are read by `SidesOpener`, and then its last token
    becomes the response. ValueError for media that the model does not read."""
    whole = Record(f"{record.id}#{place}", shown(record.messages, said), None, record.source)
    return processor.prompt(whole)


def answered_in_media(prompt: Prompt) -> list[list[dict[str, Any]]]:
    """The content of each response that is, or is compared with, a picture, a clip or a sound; empty where all are tokens alone."""
    if isinstance(prompt.target, Shown):
        return [[_part(prompt.target)]]
    found = []
    for side in prompt.target if isinstance(prompt.target, list) else ():
        if side.prompt is not None:  # `shown` puts it behind what was asked
            found.append(
                as_parts(side.prompt.messages[-1]["content"])[len(as_parts(prompt.messages[-1]["content"])) :]
            )
        elif side.medium is not None:
            found.append([_part(side)])
    return found


def _part(given: Shown | Side) -> dict[str, Any]:
    return {"type": given.kind, given.kind: given.medium}


class SidesOpener(Opener):
    """Reads the media of a comparison when its turn has come: those of the prompt, or of each response that has its own.

    None, counted and logged, for a comparison of which a medium cannot be read or whose prompt is too long with them: never
    for one side alone.
    """

    def __init__(self, processor: Processor, config: TaskConfig, until: UntilScore) -> None:
        super().__init__(processor, config)
        self._until = until

    def __call__(self, asked: Asked) -> Prompt | None:
        """The comparison with its media read, or None if it is left out."""
        prompt = self.written(asked)
        if prompt is None:
            return None
        sides: Sequence[Side] = prompt.target
        if all(side.prompt is None for side in sides):
            return super().__call__(prompt)
        opened = []
        for side in sides:
            assert side.prompt is not None
            found = super().__call__(side.prompt)
            if found is None:
                return None
            try:
                opened.append(self._split(side, found))
            except MediaError as error:
                self.bad(str(error))
                return None
        return replace(prompt, target=opened)

    def _split(self, side: Side, prompt: Prompt) -> Side:
        """All tokens up to the score as prompt, but for the last one. MediaError if what a template puts behind a medium is no text."""
        tokens, rows = list(self._until(prompt.token_ids)), prompt.positions
        most = len(tokens) - 1
        if rows is not None and not (rows[:, most] == rows[:, most - 1] + 1).all():
            raise MediaError(
                f"{prompt.id}: the chat template ends with a medium, and no token after it could hold the score. Set model.chat_template "
                "to one that ends with text."
            )
        before = replace(prompt, token_ids=tokens[:most], positions=None if rows is None else rows[:, :most])
        return side._replace(token_ids=tokens[most:], prompt=before)


def told_apart(prompt: Asked) -> Iterator[Any]:
    """What two comparisons have in common if one gives the other away: the prompt with its media or, where responses are media, one of
    these with what was asked."""
    assert isinstance(prompt, Prompt)  # comparisons are tokenised at the start
    sides: Sequence[Side] = prompt.target
    own = [side.prompt for side in sides if side.prompt is not None]
    for one in own or [prompt]:
        yield read_of(one)


def read_of(prompt: Prompt) -> Any:
    """What a model reads of a prompt, to be compared with others: its tokens, and of media their names, or what bytes hold."""
    return tuple(prompt.token_ids), tuple(named(source) for _, source in parts(prompt.messages))


def named(source: Any) -> Any:
    """What a medium is known by, to be compared with others: its name, or what bytes hold."""
    if isinstance(source, list | tuple):
        return tuple(named(frame) for frame in source)
    if isinstance(source, Mapping) and source.get("bytes") is not None:
        source = source["bytes"]
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    return label(source) if isinstance(source, Mapping | str | Path | Made) else id(source)
