"""`lightrft judge`: is a reward any good? Every response of a file of comparisons through a run's own rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightrft.algorithms.judging import Choice, Tied, choices, judged, ties_score
from lightrft.build.data import training_rewards
from lightrft.build.judges import check_judging, check_without_policy, hold_judging_models
from lightrft.build.models import build_processor
from lightrft.build.process import prepare_process
from lightrft.build.reward_models import Place, model_rewards
from lightrft.config import Config
from lightrft.config.reward_training import COMPARISONS
from lightrft.console import pairs as shown
from lightrft.datasets.media_preferences import ROW_FORMATS
from lightrft.datasets.sources import BadRecords, Row, read
from lightrft.media.parts import has_media, readable
from lightrft.rewards import comparing
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.fools import judged_answer, spread, try_fools
from lightrft.rewards.table import JUDGE
from lightrft.tasks.base import conversation, media_folder, placed
from lightrft.tasks.table import load_task
from lightrft.trainer.estimates import difference_estimate
from lightrft.trainer.metrics import average
from lightrft.types import Prompt, Trajectory
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve
from lightrft.utils.intervals import wilson
from lightrft.utils.paths import expanded

ROWS = 32
"""Rows judged in one call, so that the time limit of rewards means about the same as in training."""
SOURCE = "file"
ALL = "all"
"""What the rows of all subsets together are called."""
Report = dict[str, dict[str, dict[str, float]]]
"""Reward -> subset, all of them first -> measure -> number."""


@dataclass(frozen=True)
class Compared:
    """One response of one row."""

    trajectory: Trajectory
    grades: dict[str, float]
    """By output; one without a name is of any."""
    subset: str
    id: str
    """The row's own, where it has one: `ref:7`, `tied:7` in RewardBench 2's subset Ties."""
    length: int


def judge(config: Config, *, as_json: bool, out: str) -> int:
    """Prints what each reward makes of the comparisons in tasks.train_file, and writes it to `out` if that is set."""
    check_without_policy(config, "judge")
    if not config.rewards.functions and not config.constraint.cost:
        raise ValueError(
            "which rewards? Set rewards.functions, e.g. --reward_model.paths rated RUN/model --rewards.functions rated 1 length 1"
        )
    target = expanded(out, "--out") if out else None
    if target is not None and not target.parent.is_dir():
        raise ValueError(
            f"--out {out}: there is no folder {target.parent}. Make it, or name a file in another."
        )
    prepare_process(config)
    rewards = training_rewards(config, [load_task(SOURCE)])
    options = replace(config.rewards, on_failure="drop")
    with RewardRunner(rewards, options, model_rewards(config), config.sandbox) as runner:
        check_judging(config, [runner], training=False)
        rows, unit = comparisons(config)
        hold_judging_models(config, runner, pick_device(config.strategy.device))
        groups: dict[int, list[Compared]] = {}
        for row in rows:
            groups.setdefault(row.trajectory.group, []).append(row)
        counts = judge_all(runner, [[row.trajectory for row in group] for group in groups.values()])
        outputs = {runner.labels[name]: output_of(config, name) for name in rewards[SOURCE]}
        fooled = try_fools(wrong_answers(list(groups.values())), runner) if runner.models else {}
    found = report(rows, outputs)
    if JUDGE in found and config.judge.against != "none":
        found[JUDGE][ALL] |= both_orders(found[JUDGE][ALL], groups.values(), counts, config.judge.samples)
    told = {"file": config.tasks.train_file, "lengths_in": unit, "rewards": found}
    told |= {"fools": {label: list(map(asdict, tried)) for label, tried in fooled.items()}} if fooled else {}
    text = json.dumps(told, indent=2)
    if target is not None:
        target.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    else:
        print(f"{config.tasks.train_file}: {len(groups)} rows, {len(rows)} responses, lengths in {unit}")
        print("\n\n".join(shown.table(name, subsets) for name, subsets in found.items()))
        for label, tried in fooled.items():
            warning = shown.fools_told(label, tried)
            print(f"\n{shown.fools_table(label, tried)}" + f"\n  Warning: {warning}" * bool(warning))
    return 0


def judge_all(runner: RewardRunner, groups: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
    """Judges the responses of all rows in place; what was counted on the way, by metric."""
    counts: dict[str, float] = {}
    for start in range(0, len(groups), ROWS):
        part = runner([t for group in groups[start : start + ROWS] for t in group])
        counts = average([counts, part.metrics])
    return counts


def wrong_answers(groups: Sequence[Sequence[Compared]]) -> list[Trajectory]:
    """The worst response of some rows, by the first of its grades."""
    found = []
    for number, place in enumerate(spread(len(groups))):
        worst = min(groups[place], key=_first_grade)
        found.append(judged_answer(number, worst.trajectory.prompt, worst.trajectory.answer))
    return found


def _first_grade(row: Compared) -> float:
    """The first of its grades; one that nobody graded is the worst of none."""
    grade = next(iter(row.grades.values()))
    return math.inf if math.isnan(grade) else grade


def comparisons(config: Config) -> tuple[list[Compared], str]:
    """The responses of all rows in their order, and what their lengths are counted in. ValueError if there are none."""
    tasks = config.tasks
    form = resolve(ROW_FORMATS, COMPARISONS if tasks.format == "columns" else tasks.format, "format")
    bad = BadRecords(tasks.on_bad_record)
    tokenizer = build_processor(config).tokenizer if config.model.path else None

    def tokens(text: str) -> list[int]:
        if tokenizer is None:
            return [0] * len(text)
        return list(tokenizer.encode(text, add_special_tokens=False))

    folder = media_folder(tasks.train_file)
    found: list[Compared] = []
    for group, (where, row) in enumerate(read(tasks.train_file, tasks.train_split, bad)):
        try:
            found += _compared(form, row, config, group, where, tokens, folder)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            bad(f"{where}: {error}")
    if not found:
        raise ValueError(f"{tasks.train_file} holds no comparisons ({bad.skipped} rows skipped).")
    return found, "characters" if tokenizer is None else f"tokens of {config.model.path}"


def _compared(
    form: Callable[..., Any],
    row: Row,
    config: Config,
    group: int,
    where: str,
    tokens: Callable[[str], list[int]],
    folder: Path,
) -> list[Compared]:
    example = form(row, config.tasks)
    if not isinstance(example.target, list):
        raise ValueError(
            f"tasks.format={config.tasks.format} gives no responses to compare. Leave it out, or see docs."
        )
    messages = conversation(example, system=config.tasks.system, instruction=config.tasks.instruction)
    messages = placed(messages, folder, config.tasks)
    found = []
    for one in example.target:
        if not one["grades"]:
            raise ValueError("a response has no grade.")
        *before, last = placed(one["messages"], folder, config.tasks)
        text, is_medium = readable(last["content"]), has_media([last])
        ids = tokens("" if is_medium else text)
        # A response that is a medium stands in the messages, where reward models that read it look for it.
        before = [*before, last] if is_medium else before
        asked = Prompt(
            where, [], [*messages, *before], row.get(config.tasks.target_field), SOURCE, columns=row
        )
        said = Trajectory(
            prompt=asked, group=group, token_ids=ids, mask=[True] * len(ids), behavior=[0.0] * len(ids),
            finish="stop", answer=text,
        )  # fmt: skip
        subset = str(row.get("subset") or "")
        found.append(Compared(said, one["grades"], subset, str(row.get("id", "")), len(ids)))
    return found


def output_of(config: Config, name: str) -> tuple[str, str]:
    """Names of the grades that a reward is measured by, where rows have several: its own, else that of its model's output."""
    return name, Place.of(config.reward_model.paths.get(name, "")).output


def report(rows: Sequence[Compared], outputs: dict[str, tuple[str, str]]) -> Report:
    """All measures of each reward, over all rows and by subset."""
    found: Report = {}
    for label, names in outputs.items():
        subsets = {ALL: list(rows)}
        for row in rows:
            if row.subset:
                subsets.setdefault(row.subset, []).append(row)
        own = [name for name in (label, *names) if name and any(name in row.grades for row in rows)]
        wanted = (*own, "") if own else None
        found[label] = {subset: _measured(part, label, wanted) for subset, part in subsets.items()}
    return found


def _measured(rows: Sequence[Compared], label: str, names: Sequence[str] | None) -> dict[str, float]:
    """Measures of a reward on some rows, by the grades of the first of these names that each has; None: by the first grade."""
    values = [row.trajectory.parts.get(label, math.nan) for row in rows]
    grades = [_grade(row.grades, names) for row in rows]
    columns = (
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(grades, dtype=torch.float64),
        torch.tensor([row.trajectory.group for row in rows]),
        torch.tensor([row.length for row in rows]),
    )
    known = judged(*columns) | picked(choices(*columns))
    if not any(grade < 0 for grade in grades) or not any(grade > 0 for grade in grades):  # ranks, not signs
        known = {name: value for name, value in known.items() if "sign" not in name}
    tied: dict[str, Tied] = {}
    for row, value, grade in zip(rows, values, grades, strict=True):
        if row.id.startswith(("ref:", "tied:")):
            one = tied.setdefault(row.id, Tied([], []))
            (one.right if grade > 0 else one.wrong).append(value)  # type: ignore[attr-defined]  # lists, made here
    # As of all measures, a row counts whose responses have numbers.
    tied = {
        name: one
        for name, one in tied.items()
        if one.right and one.wrong and not any(map(math.isnan, [*one.right, *one.wrong]))
    }
    if tied:
        known["ties_score"] = ties_score(tied)
    return shown.with_interval(known)


def picked(rows: Sequence[Choice]) -> dict[str, float]:
    """Means over rows of what choosing one of several responses by the reward gives: the grade of its choice, of a choice by chance, of the
    best one, and of the choices of the two rules of length; with the 95 % interval of what is gained over chance, where there are
    two rows or more."""
    if not rows:
        return {}
    gain = difference_estimate([row.first - row.mean for row in rows])
    by_rule = zip(
        ("picked", "picked_mean", "picked_best", "picked_longest", "picked_shortest"),
        zip(*rows, strict=True),
        strict=True,
    )
    found = {name: sum(grades) / len(rows) for name, grades in by_rule}
    interval = {"gain_low": gain.low, "gain_high": gain.high} if len(rows) > 1 else {}
    return found | {"picked_rows": float(len(rows))} | interval


def both_orders(
    known: Mapping[str, float],
    groups: Collection[Sequence[Compared]],
    counts: Mapping[str, float],
    samples: int,
) -> dict[str, float]:
    """What asking in both orders tells besides the measures `known` of all rows.

    comparisons: those with both verdicts; contradictions: the share of them whose verdicts contradict each other. Where every row is a
    pair and the judge says one thing each time, right_in_both_orders: the share of rows whose better response wins twice, with low and high
    of its interval; a row without a verdict is not right.
    """
    found = {"comparisons": counts.get(comparing.COMPARISONS, 0.0)}
    if found["comparisons"]:
        found["contradictions"] = counts[comparing.CONTRADICTIONS] / found["comparisons"]
    if samples == 1 and all(len(group) == 2 for group in groups):
        right = (known.get("accuracy", 0.0) - known.get("tied", 0.0) / 2) * known["pairs"] / len(groups)
        low, high = wilson(right, len(groups))
        found |= {"right_in_both_orders": right, "both_orders_low": low, "both_orders_high": high}
    return found


def _grade(grades: dict[str, float], names: Sequence[str] | None) -> float:
    """The grade that a reward is measured by; NaN for a row of other outputs alone, whose grades say nothing of this one."""
    if names is None:
        return next(iter(grades.values()))
    return next((grades[name] for name in names if name in grades), math.nan)
