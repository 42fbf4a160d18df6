"""What a finished run says of itself: held-out scores, and samples before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightrft.media.parts import readable
from lightrft.runs.layout import EvaluationFolder, RunFolder


def evaluation_summary(run: Path, evaluations: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Held-out scores before and after, with intervals where there is a single task."""
    result: dict[str, Any] = {}
    for label in ("before", "after"):
        if label not in evaluations:
            continue
        result[label] = evaluations[label]["mean"]
        estimates = EvaluationFolder(RunFolder(run).evaluation).read_report(label)
        result["questions"] = sum(e["questions"] for e in estimates.values())
        if len(estimates) == 1:
            score = next(iter(estimates.values()))["score"]
            result[f"{label}_interval"] = [score["low"], score["high"]]
        result[f"{label}_by_task"] = estimates
    return result


def samples(run: Path, most: int = 3) -> list[dict[str, Any]]:
    """Held-out prompts whose responses changed the most for the better, before and after side by side; each of another target, as far as
    there are some that gained."""
    kept = EvaluationFolder(RunFolder(run).evaluation)
    before, after = kept.read_responses("before"), kept.read_responses("after")
    if not before or not after:
        return []
    pairs = [
        (a, b)
        for a, b in zip(before, after, strict=True)
        if a["reward"] is not None and b["reward"] is not None
    ]
    pairs.sort(key=lambda pair: pair[0]["reward"] - pair[1]["reward"])
    firsts: list[tuple[dict[str, Any], dict[str, Any]]] = []
    rest: list[tuple[dict[str, Any], dict[str, Any]]] = []
    seen: set[str] = set()
    for pair in pairs:
        target = repr(pair[0].get("target"))
        is_first = pair[0]["reward"] < pair[1]["reward"] and target not in seen
        (firsts if is_first else rest).append(pair)
        seen |= {target} if is_first else set()
    return [
        {
            "question": readable(a["messages"][-1]["content"]),
            "target": a.get("target"),
            "before": told(a),
            "after": told(b),
            "before_reward": a["reward"],
            "after_reward": b["reward"],
        }
        for a, b in (firsts + rest)[:most]
    ]


def told(row: Mapping[str, Any]) -> str:
    """A response in words; of a picture where it is."""
    places = [f"{one['file']}, pixels {one['box']}" for one in row.get("made", {}).values()]
    return "\n".join([row["response"], *places]).strip()
