"""Rules that tell when a run goes wrong: its time is likely lost as it goes on. Each looks at the facts and says what it finds."""

from __future__ import annotations

from lightrft.runs.facts import FEWEST, LAST, Facts, Found, Level, Row, is_flat, mean, named, rises


def skipped_updates(facts: Facts) -> Found:
    """Any update of the policy or the critic that was skipped, as each is whose loss or gradient is not finite."""
    names = ("counts/skipped_updates", "critic/counts/skipped_updates")
    bad = sorted((step, value) for name in names for step, value in facts.course(name) if value > 0)
    if not bad:
        return None
    total = sum(value for _, value in bad)
    return (
        "alarm",
        "Updates were skipped for a loss or gradient that was not finite.",
        f"{total:.0f} updates, {named(bad)}",
    )


def failing_rewards(facts: Facts) -> Found:
    """Any failure of a reward; an alarm from a tenth of all responses on."""
    lost = {int(row["step"]): _lost(row) for row in facts.rows}
    total = sum(lost.values())
    if not total:
        return None
    dropped = sum(value for _, value in facts.course("counts/dropped_responses"))
    sampled = dropped + sum(value for _, value in facts.course("counts/responses")) or 1.0
    level: Level = "alarm" if total >= 0.1 * sampled else "advice"
    steps = [step for step, count in lost.items() if count]
    return (
        level,
        "Rewards fail, and these responses teach nothing.",
        f"{total:.0f} of {sampled:.0f} responses lost, first in step {steps[0]}",
    )


def _lost(row: Row) -> float:
    """Responses of a step that failing rewards cost: those dropped, siblings that were left alone among them, or those that failed."""
    failed = [value or 0.0 for name, value in row.items() if name.startswith("counts/failed/")]
    return max([row.get("counts/dropped_responses") or 0.0, *failed])


def reward_hacking(facts: Facts) -> Found:
    """Training reward rises by two standard errors, and the held-out intervals lie apart, the last one below the first."""
    if len(facts.intervals) < 2:
        return None
    (first, low, _), (last, _, high) = facts.intervals[0], facts.intervals[-1]
    if high >= low or rises(facts.course("reward/mean")) < 2.0:
        return None
    told = f"held-out score at least {low:.3g} {first}, at most {high:.3g} {last}"
    return (
        "alarm",
        "The reward in training rises while the held-out score falls: the policy may exploit the reward.",
        told,
    )


def mismatch(facts: Facts) -> Found:
    """Over the last steps: ratio, effective samples or differences of log-probs beyond what rounding explains."""
    single = str(facts.config.get("model.dtype", "float32")) == "float32"
    ratio, samples = facts.last("mismatch/ratio"), facts.last("mismatch/effective_samples")
    largest, typical = facts.last("mismatch/max"), facts.last("mismatch/mean_abs")
    signs = {
        "mean ratio outside 0.5 to 2": ratio and not 0.5 <= mean(ratio) <= 2.0,
        "effective sample size below 0.3": samples and mean(samples) < 0.3,
        "largest difference above 0.1 in float32": largest and single and min(v for _, v in largest) > 0.1,
        "mean difference above 0.1": typical and mean(typical) > 0.1,
    }
    seen = [name for name, is_so in signs.items() if is_so]
    if not seen:
        return None
    return (
        "alarm",
        "Engine and trainer disagree about the probability of the sampled tokens.",
        f"{'; '.join(seen)}, {named(largest or ratio)}",
    )


def critic(facts: Facts) -> Found:
    """Explained variance well below 0 over the last 5 steps, after the first 10. A critic that knows nothing yet is at 0, give or take little."""
    course = facts.course("critic/explained_variance")[FEWEST:]
    if len(course) < 5 or mean(course[-5:]) >= -0.05:
        return None
    told = f"explained variance {mean(course[-5:]):.3g}, {named(course[-5:])}"
    return (
        "alarm",
        "The critic predicts returns worse than their mean would, so it adds noise to the advantages.",
        told,
    )


def entropy_collapse(facts: Facts) -> Found:
    """Low entropy alone is no sign: the reward must have stopped short of full marks too."""
    entropy, reward = facts.course("entropy"), facts.course("reward/mean")
    tail = max(2 * FEWEST, len(reward) // 5)
    if len(reward) < 2 * tail or len(entropy) < 2 * tail:
        return None
    start, end = mean(entropy[:LAST]), mean(entropy[-LAST:])
    if end >= 0.2 * start or not is_flat(reward[-tail:]) or mean(reward[-tail:]) > 0.8:
        return None
    held_out = facts.course("evaluation/mean")[-3:]
    if len(held_out) == 3 and held_out[-1][1] > max(held_out[0][1], held_out[1][1]):
        return None
    told = f"entropy {start:.3g} at the start, {end:.3g} now; reward {mean(reward[-tail:]):.3g} and flat, {named(reward[-tail:])}"
    return (
        "alarm",
        "Entropy has collapsed and the reward no longer rises: the policy has stopped exploring.",
        told,
    )
