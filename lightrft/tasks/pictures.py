"""Tasks for models that draw, with rewards by program.

`digits`: "the digit five" wants a picture of a five. Training reads pictures with one judge (reward `digit`); the task's own score comes
from a second one of another kind, taught on other pictures (rewards/digits.py), and its prompts have a wording that training never shows.
"""

from __future__ import annotations

from lightrft.config import TaskConfig
from lightrft.tasks.base import Records, Split, Task, limited, no_option
from lightrft.types import Message, Record
from lightrft.utils.digits import TAUGHT, WORDS

FORMS: dict[Split, tuple[str, ...]] = {
    "train": TAUGHT,
    "evaluate": ("the number {}",),
}


def digits(option: str) -> Task:
    """A handwritten digit by its name; evaluated with another wording, by a second judge."""
    no_option("digits", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        found = [
            Record(
                f"digits/{split}-{form}-{n}", [Message(role="user", content=text.format(word))], n, "digits"
            )
            for form, text in enumerate(FORMS[split])
            for n, word in enumerate(WORDS)
        ]
        return limited(Records(found), split, config)

    return Task("digits", load, {"digit_second": 1.0}, lambda record: str(record.target))


TASKS = {"digits": digits}
