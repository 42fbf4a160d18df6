"""Benchmarks of instructions and of questions with short answers: IFEval, HotpotQA and Natural Questions, rows as their authors publish them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, asked, field, text_field
from lightrft.datasets.sources import Row
from lightrft.tasks.base import Measure, Place, Task, from_places, no_option
from lightrft.types import Record
from lightrft.utils.instructions import checks_of

SHORT = "Answer in a few words, and put nothing but the answer between <answer> and </answer>."
NO_TRAIN = "it is a test set. Name it in tasks.evaluate, and train on other rows."


def ifeval_row(row: Row, config: TaskConfig) -> Example:
    """Fields `prompt`, `instruction_id_list`, and `kwargs`: a dict of each instruction, in which null means that it needs none."""
    given = field(row, "kwargs")
    kinds = field(row, "instruction_id_list")
    if not isinstance(given, list) or not all(isinstance(one, dict | None) for one in given):
        raise ValueError(f"field 'kwargs' must be a list of objects, not {given!r:.80}")
    words = [{name: value for name, value in (one or {}).items() if value is not None} for one in given]
    target = {"instruction_id_list": list(kinds), "kwargs": words}
    checks_of(target)
    return Example(asked(text_field(row, "prompt"), row), target)


def ifeval(option: str) -> Task:
    """Prompts with one to three instructions that a program can verify (Zhou et al. 2023, https://arxiv.org/abs/2311.07911).

    The score is prompt-level strict accuracy; the other three measures of the paper stand beside it.
    """
    no_option("ifeval", option)
    place = Place("ifeval/input_data.jsonl", "google/IFEval", "train", ifeval_row)
    load = from_places("ifeval", [], [place], instruction="", no_train=NO_TRAIN)
    rewards = {
        "instructions": 1.0,
        "instructions_loose": 0.0,
        "instructions_share": 0.0,
        "instructions_loose_share": 0.0,
    }
    measures = {
        "prompt-level loose": Measure("instructions_loose"),
        "instruction-level strict": Measure("instructions_share", instruction_count),
        "instruction-level loose": Measure("instructions_loose_share", instruction_count),
    }
    return Task("ifeval", load, rewards, _no_gold, max_tokens=1280, measures=measures)


def instruction_count(target: Mapping[str, Any]) -> int:
    """How many instructions a prompt has."""
    return len(target["instruction_id_list"])


def _no_gold(record: Record) -> str:
    raise ValueError(
        f"{record.id}: IFEval states no answers to its prompts, so there is no gold answer to check."
    )


def hotpot_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, `answer` and `context`, ten paragraphs of which two are needed: lists of titles and of sentences, as the hub
    has them, or a list of pairs, as in the published files."""
    paragraphs = [
        f"{title}: {''.join(sentences).strip()}" for title, sentences in _paragraphs(field(row, "context"))
    ]
    question = "\n\n".join([*paragraphs, text_field(row, "question").strip()])
    return Example(asked(question, row), text_field(row, "answer").strip())


def hotpot_question(row: Row, config: TaskConfig) -> Example:
    """Fields `question` and `answer`."""
    return Example(asked(text_field(row, "question").strip(), row), text_field(row, "answer").strip())


def _paragraphs(context: Any) -> list[tuple[str, Sequence[str]]]:
    if isinstance(context, dict) and {"title", "sentences"} <= context.keys():
        return list(zip(context["title"], context["sentences"], strict=True))
    if isinstance(context, list) and all(isinstance(one, list | tuple) and len(one) == 2 for one in context):
        return [(title, sentences) for title, sentences in context]
    raise ValueError(
        f"field 'context' must hold titles and sentences, not {context!r:.80}; hotpotqa:question needs none"
    )


def hotpotqa(option: str) -> Task:
    """Questions that need two paragraphs of Wikipedia (Yang et al. 2018, https://arxiv.org/abs/1809.09600): hotpotqa shows ten
    paragraphs, the distractor setting; hotpotqa:question the question alone, for a search (docs/environments.md) or from memory.

    The score is exact match; F1 as published stands beside it.
    """
    if option not in ("", "question"):
        raise ValueError(f"task 'hotpotqa:{option}': there are hotpotqa and hotpotqa:question.")
    name, form = (f"hotpotqa:{option}", hotpot_question) if option else ("hotpotqa", hotpot_row)
    train = Place("hotpotqa/train.jsonl", "hotpotqa/hotpot_qa:distractor", "train", form)
    evaluate = replace(train, file="hotpotqa/validation.jsonl", split="validation")
    load = from_places(name, [train], [evaluate], instruction=SHORT)
    return Task(
        name, load, {"squad_exact": 1.0, "hotpot_f1": 0.0}, short_gold, measures={"F1": Measure("hotpot_f1")}
    )


def nq_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, without a question mark, and `answer`: a list of right answers."""
    answers = field(row, "answer")
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(one, str) and one.strip() for one in answers)
    ):
        raise ValueError(f"field 'answer' must be a list of texts, not {answers!r:.80}")
    question = text_field(row, "question").strip()
    return Example(asked(question if question.endswith("?") else f"{question}?", row), answers)


def nq_open(option: str) -> Task:
    """Questions to a search engine with answers of at most five words (Lee et al. 2019, https://arxiv.org/abs/1906.00300, from Natural
    Questions, https://aclanthology.org/Q19-1026). Exact match with one of them; F1 with the best of them stands beside it."""
    no_option("nq_open", option)
    train = Place("nq_open/train.jsonl", "google-research-datasets/nq_open", "train", nq_row)
    evaluate = replace(train, file="nq_open/validation.jsonl", split="validation")
    load = from_places("nq_open", [train], [evaluate], instruction=SHORT)
    return Task(
        "nq_open",
        load,
        {"squad_exact": 1.0, "squad_f1": 0.0},
        short_gold,
        measures={"F1": Measure("squad_f1")},
    )


def short_gold(record: Record) -> str:
    """The target, or the first of several, in <answer> tags."""
    right = record.target if isinstance(record.target, str) else record.target[0]
    return f"<answer>{right}</answer>"


TASKS: Mapping[str, Callable[[str], Task]] = {"hotpotqa": hotpotqa, "ifeval": ifeval, "nq_open": nq_open}
