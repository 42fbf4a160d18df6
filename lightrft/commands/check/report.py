"""What `lightrft check` prints: a section per check, each with its mark, and one verdict in the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


class Mark(IntEnum):
    """How something was found, from good to bad."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


STYLES = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.PROBLEM: "bold red"}


@dataclass
class Section:
    """The findings of one part of the check, in the order in which they were made."""

    title: str
    lines: list[tuple[Text, Text] | RenderableType] = field(default_factory=list)
    mark: Mark = Mark.OK
    """The worst so far."""

    def fact(self, name: str, value: str) -> None:
        """Something to know, neither good nor bad."""
        self.lines.append((Text(name, "dim"), Text(value)))

    def show(self, picture: RenderableType) -> None:
        """A table, or text that stands by itself."""
        self.lines.append(picture)

    def ok(self, text: str) -> None:
        """Something that was looked at and is right."""
        self._find(Mark.OK, text)

    def warn(self, text: str) -> None:
        """Something that may be meant, but often is not."""
        self._find(Mark.WARNING, text)

    def problem(self, text: str) -> None:
        """Something that would stop the run or make it worthless."""
        self._find(Mark.PROBLEM, text)

    def _find(self, mark: Mark, text: str) -> None:
        self.mark = max(self.mark, mark)
        self.lines.append((Text(mark.name.lower(), STYLES[mark]), Text(text)))

    def print(self, console: Console) -> None:
        """The heading with the worst mark, and the lines below it."""
        heading = Text.assemble(f"{self.title}  ", (self.mark.name.lower(), STYLES[self.mark]))
        console.print(Rule(heading, align="left", style="dim"))
        grid = _grid()
        for line in self.lines:
            if isinstance(line, tuple):
                grid.add_row(*line)
                continue
            if grid.row_count:
                console.print(grid)
                grid = _grid()
            console.print(Padding(line, (0, 0, 0, 2)))
        if grid.row_count:
            console.print(grid)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 1), pad_edge=True)
    grid.add_column(width=20)
    grid.add_column(overflow="fold")
    return grid


class Report:
    """Runs the sections one after another and sums them up."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.sections: list[Section] = []

    def run(self, title: str, look: Callable[[Section], T]) -> T | None:
        """What `look` gives back; None if it found out that the run could not get that far.

        An error of the kinds that the parts raise for users becomes a problem of the section.
        """
        section = Section(title)
        self.sections.append(section)
        result: T | None = None
        with self.console.status(f"{title} ..."):
            try:
                result = look(section)
            except (ValueError, RuntimeError, OSError) as error:
                if os.environ.get("LIGHTRFT_TRACEBACK"):
                    raise
                section.problem(str(error))
        section.print(self.console)
        return result

    def verdict(self) -> int:
        """Prints the last line; 0 if no section found a problem, else 1."""
        titles = {mark: [s.title for s in self.sections if s.mark is mark] for mark in Mark}
        warned = f"warnings in: {', '.join(titles[Mark.WARNING])}" if titles[Mark.WARNING] else ""
        self.console.print(Rule(style="dim"))
        if titles[Mark.PROBLEM]:
            told = f"not ready; fix: {', '.join(titles[Mark.PROBLEM])}"
            self.console.print(Text("; ".join(filter(None, [told, warned])), "bold red"), soft_wrap=True)
            return 1
        told = f"ready, with {warned}" if warned else "ready: nothing wrong was found"
        self.console.print(Text(told, "bold yellow" if warned else "bold green"), soft_wrap=True)
        return 0
