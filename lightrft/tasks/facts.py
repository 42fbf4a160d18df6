"""Facts about people who do not exist: no model knows them, and a search finds them.

    How many goats does Velmora Tandis keep?   <search>Velmora Tandis goats</search>
    [1] Velmora Tandis keeps 47 goats.         The answer is 47.

Each fact is a passage of its own, so that a search must say what is wanted of whom, and to read the answer is easy. The corpus is
`passages` (environment.options corpus), the same for every seed; who is asked about in training is never asked about in the
evaluation. Every prompt shows one exchange.
"""

from __future__ import annotations

import random

from lightrft.types import Message, Record

MAX_TOKENS = 192
PEOPLE, HELD_OUT = 400, 100
SYLLABLES = (
    "ba", "ce", "do", "fi", "gu", "ha", "je", "ko", "lu", "mi", "no", "pe", "qui", "ra", "so", "tu", "va", "we", "xo", "zi",
    "bren", "dal", "fros", "gim", "hul", "jor", "kel", "mard", "nel", "prin", "rov", "sten", "tul",
)  # fmt: skip
QUESTIONS = {
    "born": ("In which year was {} born?", "What is the year of birth of {}?"),
    "goats": ("How many goats does {} keep?", "How many goats are there at {}'s?"),
    "house": ("At which number does {} live?", "What is the house number of {}?"),
}
SENTENCES = {"born": "{} was born in {}.", "goats": "{} keeps {} goats.", "house": "{} lives at number {}."}

MESSAGES: list[Message] = [
    {
        "role": "system",
        "content": "You can search. Write <search>WORDS</search> and what was found is sent to you. Then answer with just the number.\n"
        "Example:\nHow many goats does Olmin Pardu keep?\n<search>Olmin Pardu goats</search>\n[1] Olmin Pardu keeps 12 goats.\nThe answer is 12.",
    },
    {"role": "user", "content": "In which year was Sarvo Lindek born?"},
    {"role": "assistant", "content": "<search>Sarvo Lindek born</search>"},
    {"role": "tool", "content": "[1] Sarvo Lindek was born in 1921."},
    {"role": "assistant", "content": "The answer is 1921."},
]
"""What stands before every question."""


def people() -> list[dict[str, str]]:
    """Name and facts of everybody; the last HELD_OUT are those of the evaluation."""
    draw, found = random.Random("facts"), dict[str, dict[str, str]]()
    while len(found) < PEOPLE:
        name = " ".join("".join(draw.sample(SYLLABLES, draw.randint(2, 3))).title() for _ in range(2))
        facts = {
            "born": draw.randint(1800, 1999),
            "goats": draw.randint(10, 99),
            "house": draw.randint(100, 999),
        }
        found[name] = {"name": name} | {kind: str(number) for kind, number in facts.items()}
    return list(found.values())


def passages() -> list[str]:
    """The corpus: a sentence for each fact."""
    return [SENTENCES[kind].format(one["name"], one[kind]) for one in people() for kind in SENTENCES]


def questions(split: str, seed: int) -> list[tuple[list[Message], str]]:
    """Prompts and numbers: each fact of each of the split's people, in an order that the seed draws; that of the evaluation is always the
    same."""
    asked = people()[-HELD_OUT:] if split == "evaluate" else people()[:-HELD_OUT]
    draw = random.Random("facts/evaluate" if split == "evaluate" else f"facts/{seed}")
    found = [
        ([*MESSAGES, Message(role="user", content=draw.choice(forms).format(one["name"]))], one[kind])
        for one in asked
        for kind, forms in QUESTIONS.items()
    ]
    draw.shuffle(found)
    return found


def gold(record: Record) -> str:
    """A right answer."""
    return f"The answer is {record.target}."
