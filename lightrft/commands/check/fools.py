"""Whether answers that say nothing get more from the models that judge than wrong answers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from lightrft.commands.check.policy import Policy
from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.console.pairs import fools_table, fools_told
from lightrft.rewards.base import seen
from lightrft.rewards.fools import PROMPTS, judged_answer, spread, try_fools
from lightrft.rewards.models import ScalarReward
from lightrft.types import Prompt, Trajectory
from lightrft.utils.shown import shown


def fools(section: Section, parts: Parts, questions: Questions, policy: Policy) -> None:
    """Tries them on a few prompts of each task that models judge, beside the right answers to other prompts; and shows where reward models
    read their scores."""
    tried = list(right_and_wrong(parts, questions))
    if not tried:
        section.fact("", "no gold answers are known, so there are no wrong ones to compare with")
        return
    right, wrong = ([pair[side] for pair in tried] for side in (0, 1))
    show_scores(section, parts, policy, right, wrong)
    found = policy.sampler.where_it_judges(parts.judge, lambda: try_fools(wrong, parts.judge))
    for label, fooled in found.items():
        section.show(Text(fools_table(label, fooled)))
        told = fools_told(label, fooled)
        if told:
            section.warn(told)
        else:
            section.ok(f"{label}: none gets more than a wrong answer.")


def show_scores(
    section: Section, parts: Parts, policy: Policy, right: Sequence[Trajectory], wrong: Sequence[Trajectory]
) -> None:
    """Where each reward model reads the score of a right answer, and what it makes of right answers and of those to other prompts."""
    rated = {
        name: output.model
        for name, output in parts.judge.models.items()
        if output and isinstance(output.model, ScalarReward)
    }
    if not rated:
        return
    given = policy.sampler.where_it_judges(parts.judge, lambda: parts.judge.model_values([*right, *wrong]))
    for name, model in sorted(rated.items()):
        label = parts.judge.labels[name]
        both = [
            (a[label], b[label])
            for a, b in zip(given[: len(right)], given[len(right) :], strict=True)
            if label in a and label in b
        ]
        if not both:
            section.warn(f"{label}: the reward model gives no number for a right answer.")
            continue
        section.show(Text(f"{label} reads a score at »the token«: {shown(model.shown(seen(right[0])))}"))
        good, bad = (sum(column) / len(both) for column in zip(*both, strict=True))
        told = f"{label}: right answers get {good:.3g} on average, those to other prompts {bad:.3g}"
        if parts.judge.weights[right[0].prompt.source].get(name, 0.0) > 0 and good <= bad:
            section.warn(f"{told}. A policy would not learn to answer rightly by it.")
        else:
            section.fact("", told)


def right_and_wrong(parts: Parts, questions: Questions) -> Iterator[tuple[Trajectory, Trajectory]]:
    """Right answers, each with the one to another prompt of the same task, for the tasks that models judge."""
    number = 0
    for name, task in parts.tasks.items():
        if not parts.judge.models.keys() & parts.judge.weights[task.name].keys():
            continue
        known = [record for record in questions.records[name] if record.target is not None]
        some = [known[place] for place in spread(len(known), PROMPTS + 1)]
        golds = [task.gold(record) for record in some]
        for place in range(1, len(some)):
            if golds[place - 1] != golds[place]:
                record = some[place]
                prompt = Prompt(
                    record.id, [], record.messages, record.target, record.source, columns=record.columns
                )
                yield (
                    judged_answer(number, prompt, golds[place]),
                    judged_answer(number, prompt, golds[place - 1]),
                )
                number += 1
