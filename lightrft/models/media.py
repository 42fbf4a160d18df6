"""Messages with pictures, clips and sounds, through a model's own transformers processor."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightrft.config import MediaConfig
from lightrft.media.parts import KINDS, Clip, Limits, Media, MediaError, parts, read_media
from lightrft.models.families import (
    has_position_rows,
    placeholders,
    position_rows,
    sees_both_ways,
    stored_media,
)
from lightrft.models.logprobs import backbone
from lightrft.models.template import written
from lightrft.types import Message

SPEECH_RATE = 16_000
"""Samples per second of a family whose processor names no rate."""


def limits_of(options: MediaConfig) -> Limits:
    """What these settings let be read."""
    return Limits(tuple(options.urls), options.max_megabytes, options.fetch_seconds, options.max_megapixels)


@dataclass(frozen=True)
class Encoded:
    """A question as the model reads it."""

    token_ids: list[int]
    positions: Tensor | None
    media: dict[str, Tensor]


class MediaEncoder:
    """A transformers processor for one model: chat template, and media to tokens and tensors."""

    def __init__(self, processor: Any, shapes: Any, options: MediaConfig) -> None:
        """`shapes`: the model on the meta device (models.describe.without_weights); no weight of it is read."""
        self.processor, self._shapes, self._options = processor, shapes, options
        self._body = backbone(shapes)
        self._takes = inspect.signature(type(shapes).forward).parameters

    @property
    def kinds(self) -> set[str]:
        """What the processor says it `reads`, or has a part for. Another kind it would swallow without a word."""
        if hasattr(self.processor, "reads"):
            return set(self.processor.reads)
        return {kind for kind, parts in _READ_BY.items() if any(hasattr(self.processor, p) for p in parts)}

    @property
    def sees_both_ways(self) -> bool:
        """Whether the model lets all tokens of a picture see each other."""
        return sees_both_ways(self._shapes.config)

    @property
    def placeholders(self) -> set[int]:
        """Tokens that stand for media."""
        return set(placeholders(self._shapes.config))

    def rendered(
        self,
        messages: Sequence[Message],
        *,
        answer_next: bool = True,
        chat_template: str | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        """The conversation as text, a mark in place of each medium; `chat_template`: instead of the processor's."""
        parts = [_as_parts(m) for m in messages]
        return written(
            self.processor, parts, answer_next=answer_next, chat_template=chat_template, tools=tools
        )

    def tokens(self, text: str) -> list[int]:
        """Rendered text as tokens, media unread."""
        return list(self.processor.tokenizer(text, **self._special(text))["input_ids"])

    def read(self, messages: Sequence[Message]) -> Media:
        """The media as the model's processor takes them. MediaError for one that cannot be read."""
        o = self._options
        return read_media(
            messages,
            max_pixels=o.max_pixels,
            fps=o.fps,
            max_frames=o.max_frames,
            max_seconds=o.max_seconds,
            rate=self.rate,
            limits=limits_of(o),
        )

    def encode(self, messages: Sequence[Message], text: str) -> Encoded:
        """Reads the media and lays everything out for the model; `text`: the conversation, `rendered`. MediaError for a medium that
        cannot be read."""
        media = self.read(messages)
        try:
            found = self.processor(
                text=[text], return_tensors="pt", **self._special(text), **_arguments(media, self.rate)
            )
        except (
            Exception
        ) as error:  # processors raise all kinds where a medium is too small or a mark stands alone
            raise MediaError(
                f"the model's processor refuses its media: {type(error).__name__}: {error}"
            ) from error
        token_ids = found["input_ids"][0].tolist()
        self._check_seen(token_ids, messages)
        rows = position_rows(self._body, token_ids, found) if has_position_rows(self._body) else None
        read = {
            name: value
            for name, value in found.items()
            if isinstance(value, Tensor) and name in self._takes and name not in _OF_TEXT
        }
        return Encoded(token_ids, rows, stored_media(self._shapes.config, read))

    def marks(self) -> dict[str, tuple[str, int]]:
        """Kind -> the text that stands for a medium, and its token, where the processor names one."""
        found: dict[str, tuple[str, int]] = {}
        for kind in KINDS:
            text = getattr(self.processor, f"{kind}_token", None)
            if isinstance(text, str) and text:
                found[kind] = text, int(self.processor.tokenizer.convert_tokens_to_ids(text))
        return found

    def check_texts(self, messages: Sequence[Message]) -> None:
        """ValueError if a text holds what the model would take for a medium that is not there."""
        for message in messages:
            content = message["content"]
            texts = (
                [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
            )
            for kind, (mark, _) in self.marks().items():
                if any(mark in text for text in texts):
                    raise ValueError(
                        f"a text holds {mark!r}, which the model takes for its own mark of {kind}. Write it otherwise."
                    )

    def without_marks(self, text: str) -> str:
        """A text in which nothing is taken for a medium: marks are broken by a space of no width."""
        for mark, _ in self.marks().values():
            text = text.replace(mark, f"{mark[0]}\u200b{mark[1:]}")
        return text

    def _check_seen(self, token_ids: Sequence[int], messages: Sequence[Message]) -> None:
        """MediaError for media of a kind that gave fewer tokens than there are of them: too small or too short to be seen.

        A processor may lay a clip out as pictures (InternVL, SmolVLM): the model fills no token of clips then, and only all
        kinds together are counted."""
        filled = placeholders(self._shapes.config)
        kinds = [kind for kind, _ in parts(messages)]
        own = {kind: token for kind, (_, token) in self.marks().items() if token in filled}
        unseen = {kind for kind, token in own.items() if token_ids.count(token) < kinds.count(kind)}
        if sum(token_ids.count(token) for token in filled) < len(kinds):
            unseen |= set(kinds)
        if unseen:
            raise MediaError(
                f"its media of the kind {' and '.join(sorted(unseen))} are too short or too small: the model makes no token of them."
            )

    def text_positions(self, token_ids: Sequence[int]) -> Tensor | None:
        """Position rows of a question without media, for models that have several."""
        return position_rows(self._body, token_ids, {}) if has_position_rows(self._body) else None

    @property
    def rate(self) -> int:
        """Samples per second of sounds."""
        found = (getattr(self.processor, name, None) for name in _READ_BY["audio"])
        reader = next((part for part in found if part is not None), None)
        return int(getattr(reader, "sampling_rate", None) or SPEECH_RATE)

    def _special(self, text: str) -> dict[str, bool]:
        """A template that writes the first token itself must not get it twice."""
        first = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if first is not None and text.startswith(first) else {}


_READ_BY = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
"""Parts of a transformers processor that read a kind of media."""
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def _arguments(media: Media, rate: int) -> dict[str, Any]:
    """What a processor is called with, for the media there are. Sampling of frames is done already."""
    given: dict[str, Any] = {}
    if media.images:
        given["images"] = [media.images]
    if media.videos:
        given["videos"] = [[clip.frames for clip in media.videos]]
        given["videos_kwargs"] = {
            "do_sample_frames": False,
            "video_metadata": [[frames_taken(clip) for clip in media.videos]],
        }
    if media.audios:
        given["audio"], given["sampling_rate"] = media.audios, rate
    return given


def frames_taken(clip: Clip) -> dict[str, Any]:
    """What transformers' video processors are told of a clip whose frames have been chosen already."""
    count, height, width, _ = clip.frames.shape
    return {
        "total_num_frames": count,
        "fps": clip.fps,
        "duration": clip.duration,
        "frames_indices": list(range(count)),
        "height": height,
        "width": width,
    }


def _as_parts(message: Message) -> dict[str, Any]:
    """Content as a list of parts, which is what templates of multimodal models expect; media only as marks."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = [part if part["type"] == "text" else {"type": part["type"]} for part in content]
    return {"role": message["role"], "content": parts}
