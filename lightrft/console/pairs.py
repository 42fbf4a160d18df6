"""How a reward orders pairs of responses, for people: a line of a run's log, the table of `lightrft judge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightrft.algorithms.judging import as_good_as_length
from lightrft.rewards.fools import Fooling
from lightrft.utils.intervals import wilson

COLUMNS = {
    "pairs": "pairs", "accuracy": "right", "interval": "95 % interval", "tied": "tied", "longer_wins": "longer wins",
    "shorter_wins": "shorter wins", "accuracy_longer": "right, better longer", "accuracy_shorter": "better shorter",
    "accuracy_balanced": "balanced", "brier": "Brier",
}  # fmt: skip
"""Measure -> head of its column."""


def with_interval(known: Mapping[str, float]) -> dict[str, float]:
    """Measures of pairs with low and high of the 95 % interval of their accuracy, if there are pairs."""
    found = dict(known)
    if "accuracy" in found:
        found["low"], found["high"] = wilson(found["accuracy"], int(found["pairs"]))
    return found


def line(name: str, known: Mapping[str, float]) -> str:
    """What is known of one output in one line."""
    if "accuracy" not in known:
        told = f"{name}: no pairs"
    else:
        told = (
            f"{name}: {known['accuracy']:.1%} of {known['pairs']:.0f} right (95 % interval {known['low']:.1%} to {known['high']:.1%}), "
            f"{known['tied']:.1%} tied; longer wins {known['longer_wins']:.1%}, shorter wins {known['shorter_wins']:.1%}"
        )
    if "accuracy_balanced" in known:
        told += (
            f"; right where the better is longer {known['accuracy_longer']:.1%}, shorter {known['accuracy_shorter']:.1%}, balanced "
            f"{known['accuracy_balanced']:.1%}"
        )
    if "sign_accuracy" in known:
        told += f"; {signs(known)}"
    return told


def signs(known: Mapping[str, float]) -> str:
    """How often the sign is right, and how often by always saying the more frequent one."""
    return f"sign {known['sign_accuracy']:.1%}, always one sign {known['sign_base_rate']:.1%}"


def table(name: str, subsets: Mapping[str, Mapping[str, float]]) -> str:
    """The measures of one reward, a line for each subset, and below it what has no column, of the first (all of them)."""
    head = [name, *COLUMNS.values()]
    rows = [[subset, *(_cell(known, measure) for measure in COLUMNS)] for subset, known in subsets.items()]
    return "\n".join(
        [*_aligned([head, *rows]), *(f"  {told}" for told in remarks(next(iter(subsets.values()))))]
    )


def remarks(known: Mapping[str, float]) -> list[str]:
    """Sentences about a reward beside its accuracy, the rule of length among them."""
    found = []
    if "length_correlation" in known:
        found.append(f"Correlation with the length: {known['length_correlation']:+.2f}.")
    found += _of_several(known)
    if "ties_score" in known:
        found.append(f"RewardBench 2, Ties: {known['ties_score']:.3f}.")
    if "sign_accuracy" in known:
        found.append(f"Of responses with a signed grade: {signs(known)}.")
    if known["unjudged"]:
        found.append(f"Not judged: {known['unjudged']:.0f} responses, whose pairs are left out.")
    if "contradictions" in known:
        found.append(
            f"Asked in both orders: the two verdicts contradict each other in {known['contradictions']:.1%} of {known['comparisons']:.0f} "
            "comparisons."
        )
    if "right_in_both_orders" in known:
        found.append(
            f"Right in both orders: {known['right_in_both_orders']:.1%} (95 % interval {known['both_orders_low']:.1%} to "
            f"{known['both_orders_high']:.1%})."
        )
    if "accuracy" not in known:
        return [*found, "No pairs."]
    rule = "longer" if known["longer_wins"] >= known["shorter_wins"] else "shorter"
    share = known[f"{rule}_wins"]
    if as_good_as_length(known, known["low"]):
        found.append(
            f"A rule of length is as good: '{rule} wins' is right in {share:.1%}, and the interval of this reward begins at {known['low']:.1%}."
        )
    else:
        found.append(f"Better than the best rule of length: '{rule} wins' is right in {share:.1%}.")
    return found


def _of_several(known: Mapping[str, float]) -> list[str]:
    """Sentences about rows of three responses or more."""
    found = []
    if "best_of_k" in known:
        found.append(
            f"Best of K: {known['best_of_k']:.1%} of {known['best_of_k_rows']:.0f} rows, by chance {known['best_of_k_chance']:.1%}."
        )
    if "picked" in known:
        interval = "no interval of one row"
        if "gain_low" in known:
            interval = f"95 % interval {known['gain_low']:+.3f} to {known['gain_high']:+.3f}"
        found.append(
            f"Choosing one of K by it: mean grade {known['picked']:.3f} of {known['picked_rows']:.0f} rows, by chance {known['picked_mean']:.3f} "
            f"(gain {known['picked'] - known['picked_mean']:+.3f}, {interval}), the "
            f"longest {known['picked_longest']:.3f}, the shortest {known['picked_shortest']:.3f}, the best there is {known['picked_best']:.3f}."
        )
    return found


def fools_table(name: str, tried: Sequence[Fooling]) -> str:
    """What answers that say nothing got from one reward, a line for each."""
    rows = [
        [repr(one.text), _number(one.score), _number(one.wrong), str(one.prompts), "gets more" * one.fools]
        for one in tried
    ]
    return "\n".join(_aligned([[f"{name}: an answer", "score", "wrong answer", "prompts", ""], *rows]))


def fools_told(name: str, tried: Sequence[Fooling]) -> str:
    """A sentence if some of them got more than a wrong answer; else empty."""
    found = [repr(one.text) for one in tried if one.fools]
    if not found:
        return ""
    return (
        f"reward '{name}' gives more to {', '.join(found)} than to a wrong answer: a policy would learn to write that. Take a better judge, "
        "or add a reward that looks at what is said."
    )


def _number(value: float | None) -> str:
    return "not judged" if value is None else f"{value:.3f}"


def _cell(known: Mapping[str, float], measure: str) -> str:
    if measure == "interval":
        return f"{known['low']:.1%} to {known['high']:.1%}" if "low" in known else ""
    if measure not in known:
        return ""
    return (
        f"{known[measure]:.0f}"
        if measure == "pairs"
        else f"{known[measure]:{'.3f' if measure == 'brier' else '.1%'}}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if n == 0 else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
