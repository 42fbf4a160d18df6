"""Preferences between pictures, clips or sounds that were made for one text, as published data sets write them: one table, a row for each.

`tasks.format=NAME` chooses a row. The file lies in the root folder of its data set, below which the media lie. Field names are those that
the data handlers of LightRFT (https://github.com/opendilab/LightRFT, lightrft/datasets) read, but for `imagereward`, whose are those of
ImageReward's own training code (https://github.com/THUDM/ImageReward, rank_pair_dataset.py). No data set was at hand to be read:
a release may name its columns otherwise, and is then refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightrft.config import TaskConfig
from lightrft.datasets.formats import (
    FORMATS,
    UNREAD_OF_ROW,
    Example,
    Format,
    field,
    led,
    refuse_unread,
    text_field,
)
from lightrft.datasets.preferences import grade, response
from lightrft.datasets.sources import Row
from lightrft.media.sources import URLS
from lightrft.types import Message

Sources = Callable[[Row], Sequence[Any]]
"""A row -> what is compared: files, addresses, or {"bytes": ..., "path": ...}."""
Grades = Callable[[Row], Mapping[str, Sequence[float]]]
"""A row -> for each output a number for each of these, more being better; NaN: not compared. The output without a name is the first."""


@dataclass(frozen=True, kw_only=True)
class MediaPreferences:
    """How the rows of one data set are read: a format for `lightrft reward` and `lightrft judge`."""

    about: str
    """Which data set, and where it is told of."""
    kind: Literal["image", "video", "audio"]
    prompt: str
    """Field with the text that all were made for."""
    compared: Sources
    preferred: Grades
    criteria: str = ""
    """Field with what they are judged by in this row, said after the prompt; empty: none."""
    given: str = ""
    """Field with the picture that they were made from, shown before the prompt; empty: none."""

    def __call__(self, row: Row, _config: TaskConfig) -> Example:
        """A prompt, and each medium with its grades. ValueError for a field that is not there, or says nothing that is known."""
        refuse_unread(row, UNREAD_OF_ROW, "the row")
        said = text_field(row, self.prompt)
        if self.criteria:
            said = f"{said}\n\nJudged by: {text_field(row, self.criteria)}"
        content: Any = said
        if self.given:
            content = [{"type": "image", "image": field(row, self.given)}, {"type": "text", "text": said}]
        sources, grades = self.compared(row), self.preferred(row)
        for name, column in grades.items():
            if len(column) != len(sources):
                raise ValueError(
                    f"{len(sources)} of the kind {self.kind} have {len(column)} grades{f' for {name}' if name else ''}."
                )
        responses = [
            response(
                [Message(role="assistant", content=[{"type": self.kind, self.kind: source}])],
                {n: c[place] for n, c in grades.items()},
            )
            for place, source in enumerate(sources)
        ]
        return Example(led([Message(role="user", content=content)], row), responses)


def columns(*names: str, below: str = "") -> Sources:
    """One medium in each of these fields; a file's name is below the folder `below` of the data set."""

    def read(row: Row) -> list[Any]:
        return [_placed(field(row, name), below) for name in names]

    return read


def listed(name: str) -> Sources:
    """The media in a field that is a list of them."""

    def read(row: Row) -> list[Any]:
        found = field(row, name)
        if not isinstance(found, list) or len(found) < 2:
            raise ValueError(f"field '{name}' must be a list of two or more, not {found!r:.80}")
        return found

    return read


def first(_row: Row) -> Mapping[str, Sequence[float]]:
    """The first of two is preferred."""
    return {"": [1.0, 0.0]}


def ranks(name: str) -> Grades:
    """A list of ranks, 1 being the best; equal ranks are equally good."""

    def read(row: Row) -> Mapping[str, Sequence[float]]:
        found = field(row, name)
        if not isinstance(found, list):
            raise ValueError(f"field '{name}' must be a list of ranks, not {found!r:.80}")
        return {"": [-grade(rank, name) for rank in found]}

    return read


def labels(by_output: Mapping[str, str], one: str, other: str, tied: Sequence[str]) -> Grades:
    """Fields by output that say which of two is preferred: `one`, `other`, or one of `tied`, which prefers none; empty: not compared."""

    def read(row: Row) -> Mapping[str, Sequence[float]]:
        return {output: _labelled(row.get(name), name) for output, name in by_output.items()}

    def _labelled(value: Any, name: str) -> list[float]:
        if value is None or value == "" or value != value:
            return [math.nan, math.nan]
        known = {one: [1.0, 0.0], other: [0.0, 1.0], **{word: [0.0, 0.0] for word in tied}}
        if value not in known:
            raise ValueError(f"field '{name}' is {value!r:.80}; it must be one of {', '.join(known)}.")
        return known[value]

    return read


def scores(by_output: Mapping[str, tuple[str, str]]) -> Grades:
    """Fields by output with a number for each of two."""

    def read(row: Row) -> Mapping[str, Sequence[float]]:
        return {output: [grade(field(row, n), n) for n in names] for output, names in by_output.items()}

    return read


def ratings(name: str) -> Callable[[Row], dict[str, float]]:
    """A field that is a table: model -> ratings of what it made, a list of numbers; the mean of each."""

    def read(row: Row) -> dict[str, float]:
        found = field(row, name)
        if not isinstance(found, dict) or not all(isinstance(v, list) and v for v in found.values()):
            raise ValueError(f"field '{name}' must give each model a list of ratings, not {found!r:.80}")
        return {model: sum(grade(r, name) for r in each) / len(each) for model, each in found.items()}

    return read


def _placed(source: Any, below: str) -> Any:
    plain = isinstance(source, str) and not source.startswith((*URLS, "/"))
    return f"{below}/{source}" if below and plain else source


_IMAGE_RATINGS, _VIDEO_RATINGS = ratings("HumanRatings"), ratings("models")


def _rated_columns(row: Row) -> list[Any]:
    """A picture in the field of each model that is rated; models without a picture are left out."""
    return [row[model] for model in _IMAGE_RATINGS(row) if row.get(model) is not None]


def _rated_images(row: Row) -> Mapping[str, Sequence[float]]:
    return {"": [mean for model, mean in _IMAGE_RATINGS(row).items() if row.get(model) is not None]}


def _rated_files(row: Row) -> list[Any]:
    """MODEL/ID.mp4 of each model that is rated."""
    return [f"{model}/{text_field(row, 'id')}.mp4" for model in _VIDEO_RATINGS(row)]


def _rated_videos(row: Row) -> Mapping[str, Sequence[float]]:
    return {"": list(_VIDEO_RATINGS(row).values())}


def _numbered(row: Row) -> list[Any]:
    """Clips by number: of two with one text the even one won."""
    found = []
    for name in ("video1", "video2"):
        number = field(row, name)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"field '{name}' must be the number of a clip, not {number!r:.80}")
        found.append(f"{'losevideos' if number % 2 else 'winvideos'}/{number // 2:06d}.mp4")
    return found


def _rapidata(word: str) -> tuple[str, str]:
    return f"weighted_results1_{word}", f"weighted_results2_{word}"


_RAPIDATA = scores(
    {
        "preference": _rapidata("Preference"),
        "coherence": _rapidata("Coherence"),
        "alignment": _rapidata("Alignment"),
    }
)
_OMNI = labels({"": "criteria_preference"}, "response1", "response2", ("tie",))
_OMNI_FILES = columns("response1_path", "response2_path", below="media_data")
_VIDEOGEN = {"overall": "Overall", "visual_quality": "VQ", "motion_quality": "MQ", "text_alignment": "TA"}

MEDIA_PREFERENCES: Mapping[str, Format] = {
    "hpdv3": MediaPreferences(
        about="HPDv3, the first path being preferred (Ma et al. 2025, https://huggingface.co/datasets/MizzenAI/HPDv3)",
        kind="image", prompt="prompt", compared=columns("path1", "path2"), preferred=first,
    ),
    "imagereward": MediaPreferences(
        about="ImageReward's rankings (Xu et al. 2023, https://arxiv.org/abs/2304.05977): files in `generations`, their ranks in `ranking`",
        kind="image", prompt="prompt", compared=listed("generations"), preferred=ranks("ranking"),
    ),
    "omnireward_t2i": MediaPreferences(
        about="OmniRewardBench, text to picture, by the criteria of the row (https://huggingface.co/papers/2510.23451)",
        kind="image", prompt="prompt", criteria="criteria", compared=_OMNI_FILES, preferred=_OMNI,
    ),
    "omnireward_t2v": MediaPreferences(
        about="OmniRewardBench, text to clip",
        kind="video", prompt="prompt", criteria="criteria",
        compared=columns("response1", "response2", below="media_data"), preferred=_OMNI,
    ),
    "omnireward_t2a": MediaPreferences(
        about="OmniRewardBench, text to sound",
        kind="audio", prompt="prompt", criteria="criteria", compared=_OMNI_FILES, preferred=_OMNI,
    ),
    "rapidata_t2v": MediaPreferences(
        about="Rapidata's text-2-video-human-preferences (https://huggingface.co/Rapidata/datasets): three weighted scores a clip",
        kind="video", prompt="prompt", compared=columns("file_name1", "file_name2", below="videos"), preferred=_RAPIDATA,
    ),
    "rapidata_i2v": MediaPreferences(
        about="Rapidata's image-2-video-human-preferences, made from the picture in `prompt_asset`",
        kind="video", prompt="prompt", given="prompt_asset",
        compared=columns("file_name1", "file_name2", below="videos"), preferred=_RAPIDATA,
    ),
    "genai_bench": MediaPreferences(
        about="GenAI-Bench (Li et al. 2024, https://arxiv.org/abs/2406.13743): a field with a picture for each model, by mean rating",
        kind="image", prompt="Prompt", compared=_rated_columns, preferred=_rated_images,
    ),
    "genai_bench_video": MediaPreferences(
        about="GenAI-Bench's clips, each entry of genai_video.json a row with its key as `id`: MODEL/ID.mp4, by mean rating",
        kind="video", prompt="prompt", compared=_rated_files, preferred=_rated_videos,
    ),
    "videodpo": MediaPreferences(
        about="VideoDPO's pair.json (Liu et al. 2024, https://arxiv.org/abs/2412.14167), `video1` being preferred",
        kind="video", prompt="frame_caption", compared=_numbered, preferred=first,
    ),
    "videogen_rewardbench": MediaPreferences(
        about="VideoGen-RewardBench (Liu et al. 2025, https://arxiv.org/abs/2501.13918): A, B or same, overall and by three aspects",
        kind="video", prompt="prompt", compared=columns("path_A", "path_B"), preferred=labels(_VIDEOGEN, "A", "B", ("same",)),
    ),
    "audio_alpaca": MediaPreferences(
        about="Audio-Alpaca (https://huggingface.co/datasets/declare-lab/audio-alpaca): sounds as bytes",
        kind="audio", prompt="prompt", compared=columns("chosen", "rejected"), preferred=first,
    ),
}  # fmt: skip
"""Name for tasks.format -> how the rows of that data set are read."""

ROW_FORMATS: Mapping[str, Format] = {**FORMATS, **MEDIA_PREFERENCES}
"""All that tasks.format may name."""
