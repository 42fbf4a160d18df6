"""Rules that tell what would make a run better. Each looks at the facts and says what it finds."""

from __future__ import annotations

import math
import statistics
from collections import Counter

from lightrft.runs.curves import HELD_OUT_LOSSES
from lightrft.runs.facts import FEWEST, LAST, Facts, Found, is_flat, mean, named, rises

GENERAL = {"reward/mean", "reward/std", "reward/overlong", "reward/zero_std_fraction"}
"""Metrics of rewards that are no part of it."""


def zero_variance(facts: Facts) -> Found:
    """Half of the groups and more in each of the last steps; groups of one response (ppo, reinforce_pp) are compared with none: folders of former versions call them equal."""
    if facts.config.get("rollout.group_size") == 1:
        return None
    course, reward = facts.last("reward/zero_std_fraction"), facts.last("reward/mean")
    if not course or not reward or min(value for _, value in course) < 0.5:
        return None
    easy = mean(reward) > 0.5
    why = (
        "all its responses are right: the prompts are too easy"
        if easy
        else "all its responses are wrong: the prompts are too hard, or the reward sees no difference"
    )
    return (
        "advice",
        f"In half of the groups and more {why}.",
        f"zero-variance groups {mean(course):.0%}, mean reward {mean(reward):.3g}, {named(course)}",
    )


def truncation(facts: Facts) -> Found:
    """A quarter of the responses and more in each of the last steps, where that costs reward; an alarm if it rises while the reward falls."""
    course, reward = facts.course("length/truncated_fraction"), facts.course("reward/mean")
    if len(course) < LAST:
        return None
    told = f"truncated {mean(course[-LAST:]):.0%}, {named(course[-LAST:])}"
    if len(course) >= FEWEST and rises(course[-FEWEST:]) > 3.0 and rises(reward[-FEWEST:]) < -3.0:
        return "alarm", "More and more responses are truncated while the reward falls.", told
    if min(value for _, value in course[-LAST:]) < 0.25 or not _truncation_costs(facts):
        return None
    return "advice", "A quarter of the responses and more are truncated before they come to an answer.", told


def _truncation_costs(facts: Facts) -> bool:
    """Whether truncated responses earn less than those that ended, by two standard errors; where one kind is not to be seen, whether the reward is flat."""
    cut, ended = (
        [
            row["reward"]
            for row in facts.responses
            if row["reward"] is not None and (row["finish"] == "length") is kind
        ]
        for kind in (True, False)
    )
    if min(len(cut), len(ended)) >= LAST:
        error = math.sqrt(sum(statistics.variance(some) / len(some) for some in (cut, ended)))
        return statistics.fmean(ended) - statistics.fmean(cut) > 2 * error
    return is_flat(facts.course("reward/mean")[-3 * FEWEST :])


def clipping(facts: Facts) -> Found:
    """More than 30 % of the tokens in each of the last 5 steps."""
    course = facts.last("clip/fraction", 5)
    if not course or min(value for _, value in course) <= 0.3:
        return None
    return (
        "advice",
        "The clip stops the gradient of many tokens: the policy moves far within a step.",
        f"clipped {mean(course):.0%}, {named(course)}",
    )


def gradient_spike(facts: Facts) -> Found:
    """A norm above 5 times the median of up to 20 steps before it."""
    course = facts.course("grad_norm")
    spikes = [
        (step, value)
        for n, (step, value) in enumerate(course)
        if n >= 5 and value > 5 * statistics.median(v for _, v in course[max(0, n - 20) : n])
    ]
    if not spikes:
        return None
    step, value = max(spikes, key=lambda one: one[1])
    return (
        "advice",
        "The gradient norm jumped to more than five times its running median.",
        f"{len(spikes)} times, most in step {step}: {value:.3g}",
    )


def divergence(facts: Facts) -> Found:
    """KL three times as large as 50 steps before, at least 0.01, and a flat reward."""
    course, reward = facts.last("kl", 50), facts.last("reward/mean", 50)
    if not course or not reward:
        return None
    before, now = mean(course[:5]), mean(course[-5:])
    if now < 3 * before or now < 0.01 or not is_flat(reward):
        return None
    return (
        "advice",
        "The policy moves away from the reference and gains no reward by it.",
        f"KL {before:.3g} to {now:.3g}, {named(course)}",
    )


def longer(facts: Facts) -> Found:
    """Length half as much again as 20 steps before, rising steadily, and a flat reward."""
    length, reward = facts.last("length/mean", 20), facts.last("reward/mean", 20)
    if not length or not reward or rises(length) < 3.0 or not is_flat(reward):
        return None
    before, now = mean(length[:5]), mean(length[-5:])
    if now < 1.5 * before:
        return None
    return (
        "advice",
        "Responses grow longer and gain no reward by it.",
        f"mean length {before:.0f} to {now:.0f} tokens, {named(length)}",
    )


def format_alone(facts: Facts) -> Found:
    """A part that rose from below 0.7 to above 0.95 within 20 steps beside one that is flat and below 0.5."""
    parts = sorted({name for row in facts.rows for name in row if name.startswith("reward/")} - GENERAL)
    courses = {name: facts.last(name, 20) for name in parts}
    full = [
        n for n, c in courses.items() if c and mean(c[:LAST]) < 0.7 and min(v for _, v in c[-LAST:]) > 0.95
    ]
    stuck = [n for n, c in courses.items() if c and is_flat(c) and mean(c) < 0.5]
    if not full or not stuck:
        return None
    told = (
        f"{full[0]} above 0.95, {stuck[0]} {mean(courses[stuck[0]]):.2g} and flat, {named(courses[full[0]])}"
    )
    return (
        "advice",
        "One part of the reward has been learned to the full while another does not rise: form may be all that is learned.",
        told,
    )


def too_slow(facts: Facts) -> Found:
    """Divergence from the sampling policy below 1e-5 for 30 steps, with several updates a step, and a flat reward."""
    moved, reward = facts.last("approx_kl", 30), facts.last("reward/mean", 30)
    if (
        facts.updates < 2
        or not moved
        or not reward
        or max(value for _, value in moved) >= 1e-5
        or not is_flat(reward)
    ):
        return None
    return (
        "advice",
        "The policy hardly moves, and nor does the reward.",
        f"approx_kl at most {max(v for _, v in moved):.1e}, {named(moved)}",
    )


def stragglers(facts: Facts) -> Found:
    """A rank that takes half as long again as the mean in each of the last 5 steps."""
    names = sorted({n for row in facts.rows for n in row if n.startswith("straggler/") and n.count("/") == 1})
    slow = {name: facts.last(name, 5) for name in names}
    slow = {name: course for name, course in slow.items() if course and min(v for _, v in course) > 1.5}
    if not slow:
        return None
    name, course = max(slow.items(), key=lambda one: mean(one[1]))
    return (
        "advice",
        "One rank takes much longer than the others, which wait for it.",
        f"{name} {mean(course):.2g}, {named(course)}",
    )


def slow_rollout(facts: Facts) -> Found:
    """Sampling, or waiting for what is sampled beside the step, takes more than 70 % of each of the last 10 steps that took a second and more."""
    steps = [
        row for row in facts.rows if (row.get("seconds/step") or 0.0) > 1.0 and "seconds/rollout" in row
    ][-FEWEST:]
    taken = [(row["seconds/rollout"] or 0.0) + (row.get("seconds/wait") or 0.0) for row in steps]
    shares = [
        (int(row["step"]), seconds / row["seconds/step"]) for row, seconds in zip(steps, taken, strict=True)
    ]
    if len(shares) < FEWEST or min(value for _, value in shares) <= 0.7:
        return None
    return (
        "advice",
        "Sampling takes most of each step, and the trainer is idle meanwhile.",
        f"rollout {mean(shares):.0%} of a step, {named(shares)}",
    )


def memory(facts: Facts) -> Found:
    """Half as much again and a GiB more than at the start, rising steadily in both halves of the run."""
    course = facts.course("memory/rss_gib")[FEWEST:]
    if len(course) < 2 * FEWEST:
        return None
    quarter = len(course) // 4
    before, now = mean(course[:quarter]), mean(course[-quarter:])
    if (
        now - before < 1.0
        or now < 1.5 * before
        or rises(course) < 5.0
        or rises(course[len(course) // 2 :]) < 5.0
    ):
        return None
    return (
        "advice",
        "Host memory grows from step to step.",
        f"{before:.1f} to {now:.1f} GiB, {named(course)}",
    )


def garbled(facts: Facts) -> Found:
    """A quarter of the last saved responses are broken characters, but for models drawn at random, or one sequence of words."""
    knows_none = str(facts.config.get("model.path", "")).startswith("random:")
    texts = [text for row in facts.responses if (text := str(row["response"])).strip()]
    bad = [
        text
        for text in texts
        if _repeats(text) or (not knows_none and text.count("\ufffd") > 0.05 * len(text))
    ]
    if len(texts) < 4 or len(bad) < 0.25 * len(texts):
        return None
    return (
        "advice",
        "Many responses are broken characters or the same words over and over.",
        f"{len(bad)} of {len(texts)} responses of the last saved step",
    )


def _repeats(text: str) -> bool:
    """Whether half of a longer text is one sequence of four words."""
    words = text.split()
    if len(words) < 40:
        return False
    counts = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 4 * counts.most_common(1)[0][1] >= len(words) / 2


def overfitting(facts: Facts) -> Found:
    """The held-out loss 5 % above its lowest for two evaluations, while the training loss falls."""
    measured = next((name for name in HELD_OUT_LOSSES if facts.course(f"{name}/mean")), "")
    held_out, trained = facts.course(f"{measured}/mean"), facts.course(measured.removeprefix("held_out_"))
    if len(held_out) < 3 or len(trained) < FEWEST:
        return None
    best = min(value for _, value in held_out)
    if held_out[-1][1] < 1.05 * best or held_out[-2][1] <= best or rises(trained) > -2.0:
        return None
    step = next(step for step, value in held_out if value == best)
    return (
        "advice",
        "The held-out loss has been rising again while the training loss falls: the model learns the data by heart.",
        f"lowest held-out loss {best:.3g} in step {step}, now {held_out[-1][1]:.3g}",
    )
