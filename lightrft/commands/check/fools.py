"""Whether answers that say nothing get more from the models that judge than wrong answers do."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from lightrft.commands.check.policy import Policy
from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.console.pairs import fools_table, fools_told
from lightrft.rewards.fools import PROMPTS, spread, try_fools, wrong_answer
from lightrft.types import Prompt, Trajectory


def fools(section: Section, parts: Parts, questions: Questions, policy: Policy) -> None:
    """Tries them on a few prompts of each task that models judge, beside the right answers to other prompts."""
    wrong = list(wrong_answers(parts, questions))
    if not wrong:
        section.fact("", "no gold answers are known, so there are no wrong ones to compare with")
        return
    found = policy.sampler.where_it_judges(parts.judge, lambda: try_fools(wrong, parts.judge))
    for label, tried in found.items():
        section.show(Text(fools_table(label, tried)))
        told = fools_told(label, tried)
        if told:
            section.warn(told)
        else:
            section.ok(f"{label}: none gets more than a wrong answer.")


def wrong_answers(parts: Parts, questions: Questions) -> Iterator[Trajectory]:
    """Right answers to other prompts of the same task, for the tasks that models judge."""
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
                prompt = Prompt(record.id, [], record.messages, record.target, record.source)
                yield wrong_answer(number, prompt, golds[place - 1])
                number += 1
