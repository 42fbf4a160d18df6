"""Held-out prompts with what a model said before and after, side by side in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightrft.utils.shown import shown

SHORT = 40
"""Characters up to which all of a sample's texts stand in one line."""
TIMES = ("before", "after")


def side_by_side(samples: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Samples as `runs.summary.samples` gives them: short ones as lines of one table, of others a table each."""
    if not samples:
        return Text()
    texts = [str(sample[name]) for sample in samples for name in ("question", "target", *TIMES)]
    is_short = all(len(text) <= SHORT and "\n" not in text.strip() for text in texts)
    told: list[RenderableType] = [Text("prompts that gained the most, of those held out", "dim")]
    told += [_lines(samples)] if is_short else [_table(sample) for sample in samples]
    if any("\ufffd" in text for text in texts):
        told.append(Text("\ufffd: bytes that are no text", "dim"))
    return Group(*told)


def _lines(samples: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for heading in ("prompt", "reference", "before", "reward", "after", "reward"):
        number = heading == "reward"
        table.add_column(
            heading,
            ratio=None if number else 1,
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for sample in samples:
        said = [cell for name in TIMES for cell in (_said(sample[name]), _reward(sample[f"{name}_reward"]))]
        table.add_row(Text(shown(sample["question"]).strip(), "italic"), Text(shown(sample["target"])), *said)
    return table


def _table(sample: Mapping[str, Any]) -> Table:
    title = shown(shorten(str(sample["question"])))
    if sample["target"] not in ("", None):
        title += f"\nreference answer: {shown(shorten(str(sample['target'])))}"
    table = Table(
        title=Text(title), title_style="italic", title_justify="left", box=box.SIMPLE_HEAD, expand=True
    )
    for name in TIMES:
        table.add_column(
            Text(f"{name}  (reward {_reward(sample[f'{name}_reward'])})"), ratio=1, overflow="fold"
        )
    table.add_row(*(_said(sample[name]) for name in TIMES))
    return table


def _said(text: str) -> Text:
    return Text(shown(shorten(text))) if text.strip() else Text("(nothing)", "dim")


def _reward(value: float) -> str:
    return f"{value:.3g}"


def shorten(text: str, most: int = 600) -> str:
    """The text, or its beginning and end with a note of how much is left out."""
    text = text.strip()
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most} characters ...]\n{text[-most // 2 :]}"
