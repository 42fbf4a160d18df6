"""`lightrft view RUN --advice`: what a run's metrics advise, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from lightrft.runs.reader import Run
from lightrft.utils.shown import shown

STYLES = {"alarm": "bold red", "advice": "bold yellow"}


def show(run: Run, console: Console | None = None) -> bool:
    """Prints each piece of advice with its evidence, what to change and its source; returns whether one is an alarm."""
    console = console or Console(highlight=False)
    found = run.advice()
    console.print(Text(shown(run.folder.name, lines=False), "bold"))
    if not found:
        console.print("  no alarm, no advice")
    for one in found:
        console.print(
            Text.assemble("  ", (f"{one.level}: {one.rule}", STYLES[one.level]), f"  {one.sentence}")
        )
        for word, told in (("seen", one.evidence), ("change", one.option), ("source", one.source)):
            console.print(Text(f"    {word:<7} {shown(told)}"))
    return any(one.level == "alarm" for one in found)
