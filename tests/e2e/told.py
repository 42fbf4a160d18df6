"""A task for a model that knows nothing: which kind of characters is wanted is told in the environment's reply alone."""

from lightrft.tasks.base import Records, Task
from lightrft.tasks.tiny import KINDS, questions
from lightrft.types import Record


def load(split, config, data, seed):
    return Records(
        [
            Record(
                f"told/{split}/{n}", [{"role": "user", "content": "go"}], {"kind": kind, "clue": clue}, "told"
            )
            for n, (clue, kind) in enumerate(questions(split, seed))
        ]
    )


def kind(answer, target):
    """The share of the last turn's characters that are of the kind."""
    return sum(c in KINDS[target["kind"]] for c in answer) / max(1, len(answer))


told = Task("told", load, {f"{__file__}:kind": 1.0}, lambda record: record.target["clue"])
