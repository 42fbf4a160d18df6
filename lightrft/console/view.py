"""`lightrft view`: a run's steps, groups and responses in the terminal, from the files of its run folder alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lightrft.media.parts import readable
from lightrft.runs.curves import PANELS
from lightrft.runs.reader import ResponseGroup, Run, question, token_columns
from lightrft.runs.sheets import read_picture
from lightrft.runs.trajectories import spoken
from lightrft.utils.shown import shown

Color = Literal["none", "logprob", "advantage"]
Row = dict[str, Any]
ENDS = {"stop": "complete", "turns": "ended at environment.max_turns"}
"""How a response ended -> what is said of it; all others were truncated."""
BLOCKS = "▁▂▃▄▅▆▇█"
WIDEST = 48
"""Columns of a picture that is shown."""
LEGENDS = {
    "logprob": "tokens: plain = the model was sure of it, [yellow]yellow[/] = below 50 %, [red]red[/] = below 10 %, [magenta]magenta[/] = below 1 %",
    "advantage": "tokens: [green]green[/] = made likelier, [red]red[/] = made less likely; strong colour = large advantage",
}


def view(
    run: Path,
    *,
    step: int | None = None,
    group: int | None = None,
    best: int = 0,
    worst: int = 0,
    color: Color = "none",
    status: str = "",
    console: Console | None = None,
) -> None:
    """Prints the steps of a run; with `step` its groups; with `group`, `best` or `worst` whole responses; with `status` those of it.

    Raises ValueError for a step, group or status that is not there.
    """
    console = console or Console(highlight=False)
    kept = Run(run)
    whole_answers = best > 0 or worst > 0 or group is not None
    if step is None and not whole_answers and not status:
        if kept.learns_from_given:
            console.print(given_responses_table(kept.metrics()))
        else:
            console.print(steps_table(kept))
        console.print(curves(kept))
        say_status(kept, console)
        hint = f"lightrft view {run} --step N   shows a step;  add --best 3, --worst 3 or --group G --color logprob"
        if kept.learns_from_given:
            if not kept.steps:
                return
            hint = f"held-out responses are saved of steps {', '.join(map(str, kept.steps))}: {hint}"
        console.print(Text(shown(hint), "dim"), soft_wrap=True)
        return
    rows = kept.responses(-1 if step is None else step, status or None)
    if not rows:
        asked = f"no response with status {status}" if status else "no response was saved"
        console.print(Text(f"{asked} in this step"))
        return
    if not whole_answers and not status:
        console.print(groups_table(kept.groups(-1 if step is None else step)))
        return
    if color != "none":
        console.print(LEGENDS[color])
    for row in chosen(rows, group=group, best=best, worst=worst):
        console.print(answer_panel(row, color))


def say_status(run: Run, console: Console) -> None:
    """One line on what the run does now, or how it ended; nothing where its folder does not say."""
    said = run.status().get("said")
    if said:
        console.print(Text(shown(said)), soft_wrap=True)


def curves(run: Run) -> Table:
    """One line per metric that the run's picture draws: its course in blocks, its first and its last value."""
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for heading in ("", "course", "first", "last"):
        table.add_column(heading, no_wrap=True)
    logged = run.metrics()
    for name in (name for names, *_ in PANELS for name in names):
        values = [row[name] for row in logged if row.get(name) is not None]
        if len(values) > 1:
            table.add_row(name, spark(values, WIDEST), f"{values[0]:.4g}", f"{values[-1]:.4g}")
    return table


def spark(values: Sequence[float], width: int) -> str:
    """The course of some values, at most `width` blocks high as the mean of what falls on each, between the least and the largest."""
    count = min(width, len(values))
    cuts = [len(values) * n // count for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((x - low) / (high - low) * 7) if high > low else 3] for x in means)


def given_responses_table(logged: Sequence[Row]) -> Table:
    """One line per logged step of a run that learns from given responses: loss, the pairs that it orders rightly, what is held out."""
    columns = {
        "loss": ("loss", "{:.4f}"),
        "pairs right": ("pairs/accuracy", "{:.0%}"),
        "gradient": ("grad_norm", "{:.3g}"),
        "rate": ("learning_rate", "{:.2g}"),
        "length": ("length/mean", "{:.0f}"),
        "held-out pairs": ("pairs/mean", "{:.1%}"),
        "held-out loss": ("held_out_nll/mean", "{:.4f}"),
        "held-out error": ("held_out_error/mean", "{:.4f}"),
    }
    known = {heading: one for heading, one in columns.items() if any(one[0] in row for row in logged)}
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for heading in ("step", *known):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in logged:
        table.add_row(str(row["step"]), *(number(row.get(name), form) for name, form in known.values()))
    return table


def steps_table(run: Run) -> Table:
    """One line per logged step: reward, spread, length, and whether its responses were saved."""
    saved = set(run.steps)
    table = Table(box=None, header_style="dim", padding=(0, 1))
    for heading in ("step", "reward", "spread", "zero variance", "length", "truncated", "responses"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in run.metrics():
        mean = row.get("reward/mean")
        if mean is not None:
            table.add_row(
                str(row["step"]),
                f"{mean:.3f}",
                number(row.get("reward/std"), "{:.3f}"),
                number(row.get("reward/zero_std_fraction"), "{:.0%}"),
                number(row.get("length/mean"), "{:.0f}"),
                number(row.get("length/truncated_fraction"), "{:.0%}"),
                "saved" if row["step"] in saved else "-",
                Text("█" * round(20 * min(max(mean, 0.0), 1.0)), "green"),
            )
    return table


def groups_table(groups: Sequence[ResponseGroup]) -> Table:
    """One line per group: its prompt, and the reward of each response."""
    table = Table(box=None, header_style="dim", padding=(0, 2))
    table.add_column("group", justify="right")
    table.add_column("task", no_wrap=True)
    table.add_column("prompt", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("reference answer", max_width=24, no_wrap=True, overflow="ellipsis")
    table.add_column("mean", justify="right")
    table.add_column("rewards")
    table.add_column("use", no_wrap=True)
    for group in groups:
        table.add_row(
            str(group.number),
            Text(shown(group.source)),
            Text(shown(group.question)),
            Text(shown(group.target)),
            "-" if math.isnan(group.mean) else f"{group.mean:.2f}",
            " ".join(number(reward, "{:.2g}") for reward in group.rewards),
            ", ".join(dict.fromkeys(use(row) for row in group.responses)),
        )
    return table


def use(row: Row) -> str:
    """What the step did with a response, in words; "" for files of versions that did not say."""
    told = str(row.get("use", "")).replace("_", " ")
    came = str(row.get("origin", "sampled")).replace("_", " ")
    if came == "given":
        return f"{told}, of the data"
    return told if came == "sampled" else f"{told}, {came}"


def chosen(rows: Sequence[Row], *, group: int | None, best: int, worst: int) -> list[Row]:
    """The responses asked for: of one group or of all; the highest and the lowest rewards, or all of the group."""
    pool = [row for row in rows if group is None or row["group"] == group]
    if not pool:
        raise ValueError(
            f"no group {group} in this step; there are: {', '.join(map(str, sorted({r['group'] for r in rows})))}."
        )
    if not best and not worst:
        return pool
    ranked = sorted((row for row in pool if row["reward"] is not None), key=lambda row: -row["reward"])
    return ranked[:best] + (ranked[-worst:] if worst else [])


def answer_panel(row: Row, color: Color) -> Panel:
    """One response with its prompt, its reward and parts, and its tokens in colour."""
    parts = "  ".join(f"{name} {number(value, '{:.3g}')}" for name, value in row["parts"].items())
    ended = ENDS.get(row["finish"], "truncated")
    seen = "sampled" if row.get("origin") != "given" else "seen"
    facts = f"{row['length']} tokens, {ended}, {seen} with weights v{row['weight_version']}"
    facts += f", {len(row['step_rewards'])} turns" if row.get("step_rewards") else ""
    facts += f", no reward: {row['failed']}" if row.get("failed") else ""
    facts += f", {told}" if (told := use(row)) else ""
    body: list[RenderableType] = [
        Text(shown(question(row)), "italic"),
        Text(shown(f"reference answer: {row['target']}"), "dim"),
        Text(),
        coloured(row, color),
        Text(),
        Text(shown(f"{parts}   {facts}" if parts else facts), "dim"),
    ]
    title = f"group {row['group']}   reward {number(row['reward'], '{:.3g}')}"
    return Panel(Group(*body), title=title, title_align="left", border_style="dim")


def coloured(row: Row, color: Color) -> Text:
    """The response; with a colour, token by token. ValueError if the tokens were not saved."""
    if color == "none" and row.get("made"):
        return drawn(row["made"]["image"])
    if color == "none":
        return conversation(spoken(row)) if row.get("said") else Text(shown(row["response"].strip()))
    tokens = token_columns(row)
    column = tokens.get("advantages") if color == "advantage" else tokens.get("behavior", tokens.get("new"))
    if column is None or "pieces" not in tokens:
        raise ValueError(
            f"--color {color}: this response has no such column, which only responses learned from have. Set --color logprob or none."
        )
    largest = max((abs(value) for value in column if value is not None), default=0.0) or 1.0
    text = Text()
    for piece, value, sampled in zip(tokens["pieces"], column, tokens["mask"], strict=True):
        style = logprob_style(value) if color == "logprob" else advantage_style(value, largest)
        text.append(shown(piece), style if sampled or not row.get("said") else "dim italic")
    return text


def drawn(made: Row) -> Text:
    """A picture in half blocks, two rows of its pixels to a line."""
    if not Path(made["file"]).is_file():
        return Text(shown(f"[the picture is not there: {made['file']}]"), "dim")
    pixels = read_picture(Path(made["file"]), made["box"], WIDEST)
    text = Text()
    for top in range(0, len(pixels), 2):
        for column in range(pixels.shape[1]):
            upper = pixels[top, column].tolist()
            lower = pixels[min(top + 1, len(pixels) - 1), column].tolist()
            text.append(
                "\u2580", f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})"
            )
        text.append("\n")
    return text


def conversation(said: Sequence[Row]) -> Text:
    """The turns of the policy and, marked by their role, the replies between them."""
    text = Text()
    for message in said:
        reply = message["role"] != "assistant"
        text.append(f"[{message['role']}] " if reply else "", "cyan")
        text.append(shown(f"{readable(message['content']).strip()}\n"), "cyan" if reply else "")
    return text


def logprob_style(value: float | None) -> str:
    """A colour for the probability of a token: the rarer, the louder; reverse where none is known."""
    if value is None:
        return "reverse"
    probability = math.exp(value)
    return (
        "magenta"
        if probability < 0.01
        else "red"
        if probability < 0.1
        else "yellow"
        if probability < 0.5
        else ""
    )


def advantage_style(value: float | None, largest: float) -> str:
    """Green above 0, red below, the stronger the nearer to the largest of the response's step."""
    if not value:
        return ""
    strength = round(110 + 145 * min(abs(value) / largest, 1.0))
    return f"rgb(90,{strength},90)" if value > 0 else f"rgb({strength},90,90)"


def number(value: float | None, form: str) -> str:
    """A value in this form, or a dash where there is none."""
    return "-" if value is None else form.format(value)
