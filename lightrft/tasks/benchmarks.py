"""Tests of knowledge and mathematics that the field reports, for evaluation only: rows as their authors publish them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, asked, field, text_field
from lightrft.datasets.sources import Row
from lightrft.tasks.base import Place, Task, boxed_gold, from_places, no_option
from lightrft.tasks.media_tasks import LETTER, choices, tagged_gold
from lightrft.utils.choices import letter

LETTERS = "ABCDEFGHIJ"
LOCALES = (
    "AR_XY", "BN_BD", "DE_DE", "ES_LA", "FR_FR", "HI_IN", "ID_ID", "IT_IT", "JA_JP", "KO_KR", "PT_BR", "SW_KE", "YO_NG", "ZH_CN",
)  # fmt: skip
"""Languages of MMMLU, as its subsets are called."""
NO_TRAIN = "it is a test set. Name it in tasks.evaluate, and train on other rows."


def mmlu_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, `choices`, and `answer`, the number of the right choice from 0."""
    options = field(row, "choices")
    return _choice(row, text_field(row, "question"), options, _numbered(row, "answer", len(options)))


def mmlu_pro_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, `options` (up to ten), and `answer`, the letter of the right one."""
    options = field(row, "options")
    return _choice(row, text_field(row, "question"), options, _lettered(row, "answer", len(options)))


def mmmlu_row(row: Row, config: TaskConfig) -> Example:
    """Fields `Question`, `A` to `D`, and `Answer`, the letter of the right one."""
    options = [field(row, name) for name in "ABCD"]
    return _choice(row, text_field(row, "Question"), options, _lettered(row, "Answer", 4))


def gpqa_row(row: Row, config: TaskConfig) -> Example:
    """Fields `Question`, `Correct Answer` and `Incorrect Answer 1` to 3; the place of the right one follows from the question alone."""
    question = text_field(row, "Question")
    right = text_field(row, "Correct Answer").strip()
    options = [right, *(text_field(row, f"Incorrect Answer {n}").strip() for n in (1, 2, 3))]
    order = list(range(4))
    random.Random(f"gpqa/{question}").shuffle(order)
    return _choice(row, question, [options[place] for place in order], order.index(0))


def amc_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question` (or `problem`) and `answer`, a number; 27.0 becomes 27."""
    name = "question" if "question" in row else "problem"
    answer = str(field(row, "answer")).strip()
    return Example(asked(text_field(row, name).strip(), row), answer.removesuffix(".0"))


def olympiad_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, `context` where there is one, and `final_answer`, a list with one answer in LaTeX."""
    answers = field(row, "final_answer")
    if not isinstance(answers, list) or len(answers) != 1 or not str(answers[0]).strip(" $"):
        raise ValueError(f"field 'final_answer' must be a list with one answer, not {answers!r:.80}")
    parts = [str(row.get("context") or "").strip(), text_field(row, "question").strip()]
    return Example(asked("\n".join(filter(None, parts)), row), str(answers[0]).strip().strip("$").strip())


def single_answer(row: Row) -> bool:
    """Whether a problem of OlympiadBench has one answer, which is a number or an expression without a tolerance."""
    return (
        not row.get("is_multiple_answer")
        and not row.get("error")
        and row.get("answer_type", "Numerical") in ("Numerical", "Expression")
    )


def _choice(row: Row, question: str, options: Any, right: int) -> Example:
    if not isinstance(options, (list, tuple)) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"between 2 and {len(LETTERS)} choices are needed, not {options!r:.80}")
    return Example(asked(f"{question.strip()}\n{choices(options)}", row), LETTERS[right])


def _numbered(row: Row, name: str, count: int) -> int:
    number = field(row, name)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ValueError(f"field '{name}' is {number!r}; it must number one of the {count} choices from 0.")
    return number


def _lettered(row: Row, name: str, count: int) -> int:
    found = str(field(row, name)).strip().upper()
    if len(found) != 1 or found not in LETTERS[:count]:
        raise ValueError(
            f"field '{name}' is {found!r:.40}; it must be a letter from A to {LETTERS[count - 1]}."
        )
    return LETTERS.index(found)


def _choice_task(name: str, place: Place, max_tokens: int = 512) -> Task:
    load = from_places(name, [], [place], instruction=LETTER, no_train=NO_TRAIN)
    return Task(name, load, {"choice": 1.0}, tagged_gold, extract=letter, max_tokens=max_tokens)


def mmlu(option: str) -> Task:
    """Four choices in 57 subjects (Hendrycks et al. 2020, https://arxiv.org/abs/2009.03300); mmlu:SUBJECT is one of them."""
    place = Place("mmlu/test.jsonl", "cais/mmlu:all", "test", mmlu_row)
    if option:
        place = replace(place, keep=lambda row: row.get("subject") == option)
    return _choice_task(f"mmlu:{option}" if option else "mmlu", place)


def mmlu_pro(option: str) -> Task:
    """Up to ten choices, harder (Wang et al. 2024, https://arxiv.org/abs/2406.01574)."""
    no_option("mmlu_pro", option)
    place = Place("mmlu_pro/test.jsonl", "TIGER-Lab/MMLU-Pro", "test", mmlu_pro_row)
    return _choice_task("mmlu_pro", place, 2048)


def mmmlu(option: str) -> Task:
    """MMLU in another language, translated by people (https://hf.co/datasets/openai/MMMLU): mmmlu:DE_DE and so on."""
    if option not in LOCALES:
        raise ValueError(
            f"task 'mmmlu:{option}': name a language, mmmlu:DE_DE. There are: {', '.join(LOCALES)}."
        )
    place = Place(f"mmmlu/{option}.jsonl", f"openai/MMMLU:{option}", "test", mmmlu_row)
    return _choice_task(f"mmmlu:{option}", place)


def gpqa(option: str) -> Task:
    """Questions of graduate level, the diamond set (Rein et al. 2023, https://arxiv.org/abs/2311.12022)."""
    no_option("gpqa_diamond", option)
    place = Place("gpqa/gpqa_diamond.csv", "Idavidrein/gpqa:gpqa_diamond", "train", gpqa_row)
    return _choice_task("gpqa_diamond", place, 4096)


def amc(option: str) -> Task:
    """The 40 problems of the American Mathematics Competitions 2023 with a number for an answer."""
    no_option("amc23", option)
    place = Place("amc23/test.jsonl", "math-ai/amc23", "test", amc_row)
    load = from_places("amc23", [], [place], no_train=NO_TRAIN)
    return Task("amc23", load, {"math": 1.0}, boxed_gold, max_tokens=4096)


def olympiad_bench(option: str) -> Task:
    """Competition mathematics in English with one answer (He et al. 2024, https://arxiv.org/abs/2402.14008): without several answers, and
    without a tolerance."""
    no_option("olympiad_bench", option)
    place = Place(
        "olympiad_bench/OE_TO_maths_en_COMP.jsonl",
        "Hothan/OlympiadBench:OE_TO_maths_en_COMP",
        "train",
        olympiad_row,
        keep=single_answer,
    )
    load = from_places("olympiad_bench", [], [place], no_train=NO_TRAIN)
    return Task("olympiad_bench", load, {"math": 1.0}, boxed_gold, max_tokens=4096)


TASKS: Mapping[str, Callable[[str], Task]] = {
    "amc23": amc,
    "gpqa_diamond": gpqa,
    "mmlu": mmlu,
    "mmlu_pro": mmlu_pro,
    "mmmlu": mmmlu,
    "olympiad_bench": olympiad_bench,
}
