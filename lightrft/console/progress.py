"""What a person sees while a run goes on: a live picture in a terminal, one line per step elsewhere; and the report at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lightrft.console.samples import side_by_side
from lightrft.runs.curves import HELD_OUT_LOSSES, where_drawn
from lightrft.runs.layout import RunFolder
from lightrft.utils.amounts import clock
from lightrft.utils.inline import PREFIX
from lightrft.utils.intervals import wilson

if TYPE_CHECKING:
    from lightrft.config import RunConfig

BARS = "▁▂▃▄▅▆▇█"
PHASE_COLORS = {
    "rollout": "cyan",
    "score": "magenta",
    "sync": "yellow",
    "wait": "red",
    "train": "green",
    "evaluate": "blue",
}
ROWS = [  # metric, what it is called here, how its number is written
    ("reward/mean", "reward", "{:.3f}"),
    ("nll", "loss per token", "{:.3f}"),
    ("error", "squared error", "{:.4f}"),
    ("pairs/accuracy", "pairs right", "{:.1%}"),
    ("length/mean", "response length", "{:.0f} tokens"),
    ("length/truncated_fraction", "truncated", "{:.0%}"),
    ("reward/zero_std_fraction", "zero-variance groups", "{:.0%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("grad_norm", "gradient norm", "{:.3g}"),
    ("kl", "KL to the start", "{:.2g}"),
    ("rollout/tokens_per_second", "speed", "{:.0f} tokens/s"),
    ("train/tokens_per_second", "speed", "{:.0f} tokens/s"),
]
MAIN = ("reward/mean", "nll", "error", "pairs/accuracy")
PLAIN = [
    *MAIN, "length/mean", "length/truncated_fraction", "entropy", "grad_norm", "rollout/tokens_per_second", "train/tokens_per_second",
]  # fmt: skip


class Progress:
    """Shows a run's progress; a context manager. Only the first rank should show one.

    In a terminal, with log.progress on, a picture that is redrawn in place; otherwise one line per step.
    """

    def __init__(
        self,
        config: RunConfig,
        total_steps: int,
        start_step: int = 0,
        *,
        run: Path | None = None,
        console: Console | None = None,
        show: bool = True,
    ) -> None:
        self.config, self.total, self.done, self.run = config, total_steps, start_step, run
        self.console = console or Console(
            stderr=False, quiet=not show, highlight=False, markup=False, emoji=False
        )
        self.live = show and config.log.progress and self.console.is_terminal
        self.history: dict[str, list[float]] = {}
        self.metrics: Mapping[str, float] = {}
        self.current, self.phase_start = "", time.monotonic()
        self.answered, self.expected = 0, 0
        self.start, self.first_step = time.monotonic(), start_step
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.live:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=4, transient=False
            )
            self._live.start()
        else:
            self.console.print(self._headline(), markup=False, emoji=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.current = ""
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str) -> None:
        """Says what runs now: rollout, score, sync, train, evaluate, ..."""
        self.current, self.phase_start = name, time.monotonic()
        self.answered, self.expected = 0, 0

    def responses(self, done: int, total: int) -> None:
        """How many responses of the running phase are finished."""
        self.answered, self.expected = done, total

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A training step is done."""
        self.done, self.metrics, self.current = step, metrics, ""
        for name, value in metrics.items():
            if math.isfinite(value):
                self.history.setdefault(name, []).append(value)
        if not self.live:
            self.console.print(self._line(step), soft_wrap=True, markup=False, emoji=False)

    def note(self, text: str) -> None:
        """One line that stays, above the picture."""
        self.console.print(text, soft_wrap=True, markup=False, emoji=False)

    def seconds_left(self) -> float | None:
        """Time for the remaining steps at the pace of this run's last ten; None before the first."""
        recent = self.history.get("seconds/step", [])[-10:]
        taken = self.done - self.first_step
        if not recent and not taken:
            return None
        pace = sum(recent) / len(recent) if recent else (time.monotonic() - self.start) / taken
        return pace * (self.total - self.done)

    def render(self) -> RenderableType:
        """The picture."""
        parts: list[RenderableType] = [self._bar()]
        if self.metrics:
            parts += [Text(), self._table(), Text(), self._phases()]
        parts += [Text(), self._now()]
        title = Text.assemble((" LightRFT ", "bold"), (f"{self._headline()} ", "dim"))
        width = min(self.console.width, 100)
        return Panel(
            Group(*parts),
            title=title,
            title_align="left",
            box=box.ROUNDED,
            border_style="dim",
            padding=(1, 2),
            width=width,
        )

    def _headline(self) -> str:
        tasks = ", ".join(self.config.tasks.train) or "no task"
        parts = [self.config.model.path, tasks, str(self.run) if self.run else self.config.name]
        return " · ".join(part for part in parts if part)

    def _bar(self) -> RenderableType:
        left = self.seconds_left()
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        when = "finished" if self.done >= self.total else f"{clock(left)} left" if left is not None else ""
        bar = ProgressBar(
            total=self.total, completed=self.done, complete_style="cyan", finished_style="green"
        )
        row.add_row(Text(f"step {self.done} of {self.total}", "bold"), bar, Text(when, "bold"))
        return row

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True)
        for name, label, form in ROWS:
            if name in self.metrics:
                style = "bold" if name in MAIN else ""
                line = sparkline(self.history.get(name, []), 40)
                table.add_row(
                    label,
                    Text(form.format(self.metrics[name]), style),
                    Text(line, "cyan" if style else "dim cyan"),
                )
        return table

    def _phases(self) -> RenderableType:
        """The last step's seconds per phase, as one bar in colours and in numbers."""
        seconds = phase_seconds(self.metrics)
        total = sum(seconds.values()) or 1.0
        bar, words = Text(no_wrap=True), Text()
        for name, value in seconds.items():
            color = PHASE_COLORS.get(name, "white")
            bar.append("━" * round(56 * value / total), color)
            words.append("● ", color).append(f"{name} {value:.1f} s   ")
        return Group(bar, words)

    def _now(self) -> RenderableType:
        if not self.current:
            return Text("·" if self.done >= self.total else "preparing the next step", "dim")
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        color = PHASE_COLORS.get(self.current.split()[0], "cyan")
        what = Text(f"{self.current}  {time.monotonic() - self.phase_start:.0f} s", color)
        if not self.expected:
            row.add_row(self._spinner, what, Text(), Text())
        else:
            bar = ProgressBar(
                total=self.expected, completed=self.answered, complete_style=color, finished_style=color
            )
            row.add_row(self._spinner, what, bar, Text(f"{self.answered}/{self.expected} responses", "dim"))
        return row

    def _line(self, step: int) -> str:
        labels = {name: (label, form) for name, label, form in ROWS}
        shown = [
            f"{labels[name][0]} {labels[name][1].format(self.metrics[name])}"
            for name in PLAIN
            if name in self.metrics
        ]
        left = self.seconds_left()
        spent = f"{self.metrics['seconds/step']:.1f} s" if "seconds/step" in self.metrics else ""
        ends = f"{clock(left)} left" if left else ""
        return "  ".join(part for part in [f"step {step}/{self.total}", *shown, spent, ends] if part)


def phase_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Phase -> seconds of a step, in the order of the loop."""
    names = [
        *PHASE_COLORS,
        *(name.removeprefix("seconds/") for name in metrics if name.startswith("seconds/")),
    ]
    return {
        name: metrics[f"seconds/{name}"]
        for name in dict.fromkeys(names)
        if name != "step" and f"seconds/{name}" in metrics
    }


def sparkline(values: Sequence[float], width: int) -> str:
    """A row of block characters from lowest to highest; more values than `width` are averaged."""
    if not values:
        return ""
    cuts = (
        [round(i * len(values) / width) for i in range(width + 1)]
        if len(values) > width
        else list(range(len(values) + 1))
    )
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    if low == high:
        return BARS[3] * len(means)
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


def report(
    summary: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    run: Path,
    *,
    console: Console | None = None,
) -> None:
    """Prints what a run has achieved.

    `summary` is RUN/summary.json: "seconds", "steps", and "evaluation" with "before", "after" (fractions), "questions",
    and, if known, "before_interval" and "after_interval" ([low, high]). `samples` holds one prompt each, with
    "question", "target", "before" and "after" (responses), "before_reward" and "after_reward".
    """
    console = console or Console()
    console.print()
    console.rule("[bold]done", style="dim")
    console.print(_scores(summary))
    console.print(side_by_side(samples))
    console.print(_next_commands(run), soft_wrap=True, markup=False, emoji=False, highlight=False)


def report_losses(summary: Mapping[str, Any], run: Path, *, console: Console | None = None) -> None:
    """Prints what a run of supervised fine-tuning has achieved; `summary` is RUN/summary.json."""
    losses = [(unit, *x) for name, unit in HELD_OUT_LOSSES.items() for x in summary.get(name, {}).items()]
    lines = [f"held-out loss {label}: {loss:.4f} {unit}" for unit, label, loss in losses]
    _report("sft", summary, lines, _next_of_policy(run), run, console)


def report_pairs(summary: Mapping[str, Any], run: Path, *, console: Console | None = None) -> None:
    """Prints what the training of a reward model has achieved; `summary` is RUN/summary.json."""
    model = RunFolder(run).model
    then = f"  lightrft train LAYERS... --reward_model.paths rated {model} --rewards.functions rated 1   teach a policy with it\n"
    _report("reward", summary, _shares(summary), then, run, console)


def report_preferences(summary: Mapping[str, Any], run: Path, *, console: Console | None = None) -> None:
    """Prints what learning preferences has achieved; `summary` is RUN/summary.json."""
    _report("dpo", summary, _shares(summary), _next_of_policy(run), run, console)


def _shares(summary: Mapping[str, Any]) -> list[str]:
    return [f"held-out pairs right {label}: {share:.1%}" for label, share in summary["pair_accuracy"].items()]


def _next_of_policy(run: Path) -> str:
    model = RunFolder(run).model
    return (
        f"  lightrft evaluate TASK --model {model}   score it on a task\n"
        f"  lightrft train LAYERS... --model {model}   go on with reinforcement learning\n"
    )


def _report(
    command: str,
    summary: Mapping[str, Any],
    lines: Sequence[str],
    then: str,
    run: Path,
    console: Console | None,
) -> None:
    """What a run from given responses has achieved, where its files are, and commands to go on with."""
    console = console or Console()
    console.print()
    console.rule("[bold]done", style="dim")
    for line in (f"{summary['steps']} steps in {clock(summary['seconds'])}", *lines):
        console.print(line, highlight=False, markup=False, emoji=False)
    after = f"{_files(run)}{then}{_again(command, run)}{_tensorboard(run)}"
    console.print(f"\n{after}", soft_wrap=True, markup=False, emoji=False, highlight=False)


def _scores(summary: Mapping[str, Any]) -> RenderableType:
    evaluation = summary.get("evaluation", {})
    table = Table.grid(padding=(0, 2))
    for name in ("before", "after"):
        if evaluation.get(name) is not None:
            share = evaluation[name]
            low, high = interval(evaluation, name)
            bar = ProgressBar(
                total=1.0, completed=share, width=40, complete_style="green" if name == "after" else "yellow"
            )
            spread = f"95 % interval {low:.1%} to {high:.1%}" if high > low else ""
            table.add_row(Text(name, "dim"), bar, Text(f"{share:.1%}", "bold"), Text(spread, "dim"))
    counted = f" on {evaluation['questions']} held-out prompts" if evaluation.get("questions") else ""
    heading = Text(f"{summary['steps']} steps in {clock(summary['seconds'])}")
    if not table.row_count:
        return heading
    return Group(heading.append(f"   score{counted}", "dim"), Text(), table, Text())


def interval(evaluation: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The recorded 95 % interval of a score, else Wilson's from the number of prompts, else just the score."""
    if evaluation.get(f"{name}_interval"):
        low, high = evaluation[f"{name}_interval"]
        return low, high
    questions = evaluation.get("questions")
    return wilson(evaluation[name], questions) if questions else (evaluation[name], evaluation[name])


def _files(run: Path) -> str:
    curves = where_drawn(run)
    return (
        f"run folder  {run}\n{curves}model       {RunFolder(run).model}   (a Hugging Face folder)\n\nnext:\n"
    )


def _tensorboard(run: Path) -> str:
    """How to look at its events, where it wrote any."""
    return f"  tensorboard --logdir {run.parent}" if RunFolder(run).tensorboard.is_dir() else ""


def _again(command: str, run: Path) -> str:
    """How to repeat a run from the command line; nothing where its settings name objects of the program that began it."""
    config = RunFolder(run).config
    return (
        f"  lightrft {command} {config} --seed 1    the same run with another seed\n"
        if _is_whole(run)
        else ""
    )


def _is_whole(run: Path) -> bool:
    config = RunFolder(run).config
    return not (config.is_file() and PREFIX in config.read_text(encoding="utf-8"))


def _next_commands(run: Path) -> str:
    settings = f"{RunFolder(run).config} " if _is_whole(run) else ""
    return (
        f"{_files(run)}"
        f"  lightrft view {run} --step -1 --best 3        read the last responses, token by token\n"
        f"  lightrft evaluate TASK {settings}--model {RunFolder(run).model}   score it on another task\n"
        f"{_again('train', run)}"
        f"{_tensorboard(run)}"
    )
