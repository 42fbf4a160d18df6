"""How a run went as curves: which metrics are drawn together, and RUN/curves.png, one picture where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightrft.runs.layout import RunFolder
from lightrft.runs.metrics import read_metrics, series
from lightrft.utils.extras import install_command, installed

INK, GRID, BLUE, ORANGE = "#333333", "#e6e6e6", "#2b6cb0", "#dd6b20"
PANELS = [  # metrics drawn where they exist, title, unit
    (["reward/mean"], "reward", ""),
    (["nll"], "loss", "nats per token"),
    (["error"], "loss", "mean squared error"),
    (["pairs/accuracy"], "pairs ordered rightly", "share"),
    (["length/mean"], "response length", "tokens"),
    (
        ["length/truncated_fraction", "reward/zero_std_fraction"],
        "truncated, and zero-variance groups",
        "share",
    ),
    (["entropy"], "entropy", "nats per token"),
    (["grad_norm"], "gradient norm", ""),
    (["kl", "mismatch/mean_abs"], "KL to the start, engine-trainer mismatch", "nats per token"),
]

HELD_OUT_LOSSES = {"held_out_nll": "nats per token", "held_out_error": "mean squared error"}
"""What supervised fine-tuning measures on held-out data, in summary.json and before /TASK in the metrics -> its unit. Without `held_out_` it is the metric of
training."""


def draw_curves(run: Path) -> Path | None:
    """Draws RUN/curves.png from RUN/metrics.jsonl, titled with the scores in RUN/summary.json. None if no step was logged, and
    without matplotlib (the extra `plots`): the viewer draws the curves anyway."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return None
    rows = read_metrics(run)
    panels = [
        (names, title, unit) for names, title, unit in PANELS if any(series(rows, name)[0] for name in names)
    ]
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * lines + 0.5), dpi=130, layout="constrained")
    figure.suptitle(title_of(run), fontsize=10, color=INK)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (names, title, unit) in zip(axes, panels, strict=False):
        _panel(axis, rows, names, title, unit)
    _held_out(axes[0], rows)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    path = RunFolder(run).curves
    figure.savefig(path, facecolor="white")
    return path


def finish_curves(run: Path, *, wanted: bool) -> None:
    """Draws the curves of a run that has ended, if they are wanted. A picture of before it was resumed does not stay."""
    RunFolder(run).curves.unlink(missing_ok=True)
    if wanted:
        draw_curves(run)


def where_drawn(run: Path) -> str:
    """A line that says where the curves of a finished run are; empty where no step was logged that could be drawn, and where none are
    wanted (log.curves=false)."""
    if RunFolder(run).curves.exists():
        return f"curves      {RunFolder(run).curves}\n"
    if installed("matplotlib") or not _wanted(run):
        return ""
    return f"curves      lightrft view {run} --web   (for curves.png, too: {install_command('plots')})\n"


def _wanted(run: Path) -> bool:
    """Whether the settings of a run ask for the picture."""
    file = RunFolder(run).config
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(settings.get("log", {}).get("curves", True))


def title_of(run: Path) -> str:
    """The name of a run, with its held-out loss or score before and after where both are known."""
    summary = RunFolder(run).read_summary()
    losses: dict[str, float] = next((summary[name] for name in HELD_OUT_LOSSES if name in summary), {})
    scores = summary.get("evaluation", {})
    if losses.keys() >= {"before", "after"}:
        return f"{run.name}: held-out loss {losses['before']:.3f} before, {losses['after']:.3f} after {summary['steps']} steps"
    shares = summary.get("pair_accuracy", {})
    if shares.keys() >= {"before", "after"}:
        return f"{run.name}: held-out pairs right {shares['before']:.1%} before, {shares['after']:.1%} after {summary['steps']} steps"
    if scores.get("before") is None or scores.get("after") is None:
        return run.name
    return f"{run.name}: held-out score {scores['before']:.1%} before, {scores['after']:.1%} after {summary['steps']} steps"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values, fewer at the start."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def _panel(axis: Any, rows: list[dict[str, Any]], names: list[str], title: str, unit: str) -> None:
    drawn = [name for name in names if series(rows, name)[0]]
    for name, color in zip(drawn, (BLUE, ORANGE), strict=False):
        steps, values = series(rows, name)
        trend = smooth(values, max(1, len(values) // 10))
        axis.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        axis.plot(
            steps, trend, color=color, linewidth=1.8, label=name, marker="." if len(steps) == 1 else None
        )
    axis.set_title(title, fontsize=9, color=INK, loc="left")
    axis.set_ylabel(unit, fontsize=8, color=INK)
    axis.tick_params(labelsize=8, colors=INK, length=0)
    axis.grid(color=GRID, linewidth=0.8)
    axis.spines[:].set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(names) > 1:
        axis.legend(fontsize=7, frameon=False)


def _held_out(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Held-out scores or losses as points on the first panel; before the first step at 0."""
    for name, label in (
        ("evaluation/mean", "held-out score"),
        ("held_out_nll/mean", "held-out loss"),
        ("held_out_error/mean", "held-out loss"),
        ("pairs/mean", "held-out pairs"),
    ):
        steps, values = series(rows, name)
        if steps:
            axis.plot(steps, values, "o--", color=ORANGE, linewidth=1, markersize=5, label=label)
            axis.legend(fontsize=7, frameon=False)
