"""Comparisons of pictures, or clips, that were drawn for a text, for models that draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightrft.config import TaskConfig
from lightrft.datasets.comparisons import Comparisons
from lightrft.datasets.prompts import Asked, Opener
from lightrft.datasets.sides import Shown, Side
from lightrft.media.parts import parts
from lightrft.media.sources import MediaError
from lightrft.types import Message, Prompt, Record

if TYPE_CHECKING:
    from lightrft.models.processor import Processor


CALLED = {"image": "picture", "video": "clip"}
"""What media of a kind are called."""


@dataclass(frozen=True)
class PictureComparisons(Comparisons):
    """Makes records into prompts whose target is a list of `Side`s with a picture, or a clip, each."""

    kind: str = field(kw_only=True)
    """What a response is: image or video."""

    def _sides(self, record: Record) -> list[Side]:
        if not any(message["role"] == "user" for message in record.messages):
            raise ValueError("nobody asks anything before the responses.")
        sides = []
        for place, one in enumerate(record.target):
            tokens, mask = self.layout(record.messages, one["messages"])
            medium = medium_of(one["messages"], f"response {place}", self.kind)
            sides.append(Side(tokens, self._grades(one["grades"]), mask, medium=medium, kind=self.kind))
        self._check_grades(sides)
        return sides


def medium_of(said: Sequence[Message], name: str, kind: str) -> Any:
    """The source of the picture (image), or the clip (video), that a response is. ValueError, naming the response, for one that is anything else."""
    if len(said) != 1 or said[0]["role"] != "assistant":
        raise ValueError(f"{name} is not one of the assistant to the prompt.")
    found = parts(said)
    if (
        [its for its, _ in found] != [kind]
        or isinstance(said[0]["content"], str)
        or len(said[0]["content"]) > 1
    ):
        raise ValueError(
            f"{name} is not one {CALLED[kind]}, which is what a pipeline that draws learns from: a part of type {kind}."
        )
    return found[0][1]


def drawn(asked: Sequence[Message], said: Sequence[Message]) -> tuple[list[int], list[bool]]:  # noqa: ARG001  # a Layout
    """A layout in which a picture is one entry; levels of noise are drawn for it later."""
    return [0], [True]


class PicturesOpener(Opener):
    """Reads the text and the pictures of responses when their turn has come; `state` makes what the model reads of one.

    None, counted and logged, where a picture cannot be read: for a comparison as a whole, never for one side alone.
    """

    def __init__(self, processor: Processor, config: TaskConfig, state: Callable[[Any], Any]) -> None:
        super().__init__(processor, config)
        self._state = state

    def __call__(self, asked: Asked) -> Prompt | None:
        """The prompt with the pictures of its responses read, or None if it is left out."""
        prompt = super().__call__(asked)
        if prompt is None:
            return None
        try:
            return replace(prompt, target=self._read(prompt.target))
        except MediaError as error:
            self.bad(str(error))
            return None

    def _read(self, target: Any) -> Any:
        """What a prompt's target is once its pictures are read."""
        if isinstance(target, Shown):
            return target._replace(medium=self._state(target.medium))
        return [side._replace(medium=self._state(side.medium)) for side in target]
