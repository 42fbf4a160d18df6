"""Tasks whose answers are programs, judged by tests in a sandbox (rewards/code.py): MBPP and the forms of other data sets."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, Format, asked, field, text_field
from lightrft.datasets.sources import Row
from lightrft.tasks.base import Place, Task, from_places, no_option
from lightrft.types import Record

FENCE = "Write the program in one fenced block, ```python ... ```, and nothing else of code."
STREAMS = "Read from standard input and print to standard output."
PROMISED = "\n".join(
    f"from {name} import *" for name in ("typing", "collections", "itertools", "functools", "heapq", "bisect", "math", "string")
) + "\nimport bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys"  # fmt: skip
"""Imports that LeetCode promises to its programs."""
MOST_UNPACKED = 256 << 20
"""Bytes of private tests after unpacking."""
REWARDS: Mapping[str, float] = {"tests": 1.0}


def fenced(program: str) -> str:
    """A response that holds a program."""
    return f"```python\n{program.strip()}\n```"


def stated_gold(record: Record) -> str:
    """The row's own solution. ValueError where it has none."""
    if not record.target.get("solution"):
        raise ValueError(f"{record.id}: the row has no solution, so there is no gold answer to check.")
    return fenced(record.target["solution"])


def mbpp_row(row: Row, config: TaskConfig) -> Example:
    """Fields `prompt` (or `text`), `code`, `test_list`, `test_imports`; the first test is shown, since it names the function."""
    tests = _texts(row, "test_list")
    question = text_field(row, "prompt" if "prompt" in row else "text").strip()
    code = text_field(row, "code")
    target = {
        "tests": tests,
        "setup": "\n".join(row.get("test_imports") or []) or row.get("test_setup_code") or "",
        "functions": [
            name for name in re.findall(r"^def (\w+)", code, re.MULTILINE) if any(name in t for t in tests)
        ],
        "solution": code,
    }
    return Example(asked(f"{question}\nIt must pass tests such as: {tests[0]}", row), target)


def humaneval_row(row: Row, config: TaskConfig) -> Example:
    """Fields `prompt` (the head of a function with its docstring), `test` (a function `check`), `entry_point`, `canonical_solution`."""
    head, name = text_field(row, "prompt"), text_field(row, "entry_point")
    target = {
        "tests": [f"{text_field(row, 'test')}\ncheck({name})"],
        "program_setup": f"{head}\n    pass\n",
        "functions": [name],
        "solution": head + str(row.get("canonical_solution") or ""),
    }
    question = f"Complete this function and give it as a whole:\n```python\n{head.strip()}\n```"
    return Example(asked(question, row), target)


def leetcode_row(row: Row, config: TaskConfig) -> Example:
    """Fields `problem`, `tests.functional` (a function `check` and its call) and, for the self-check, `solutions`."""
    tests = field(row, "tests")
    target = {
        "tests": [text_field(tests, "functional")],
        "program_setup": PROMISED,
        "functions": ["Solution"],
        "solution": str(row.get("solutions") or ""),
    }
    return Example(asked(text_field(row, "problem").strip(), row), target)


def stdin_row(row: Row, config: TaskConfig) -> Example:
    """Field `problem` (or `question`), and `tests` (or `input_output`): a list of {input, output}, or lists of inputs and outputs, as
    Codeforces, CodeContests and APPS have them; also as JSON text."""
    tests = _json(field(row, "tests" if "tests" in row else "input_output"))
    if isinstance(tests, dict):
        if tests.get("fn_name"):
            raise ValueError(
                "the row's tests call a function; this form takes inputs and outputs of a program."
            )
        given, wanted = field(tests, "inputs"), field(tests, "outputs")
        if len(given) != len(wanted):
            raise ValueError(f"{len(given)} inputs and {len(wanted)} outputs.")
        tests = [{"input": one, "output": other} for one, other in zip(given, wanted, strict=True)]
    pairs = [[_lines(field(test, "input")), _lines(field(test, "output"))] for test in tests]
    if not pairs:
        raise ValueError("the row has no tests.")
    solutions = _json(row.get("solutions") or [])
    solution = solutions if isinstance(solutions, str) else solutions[0] if solutions else ""
    question = text_field(row, "problem" if "problem" in row else "question").strip()
    return Example(asked(f"{question}\n{STREAMS}", row), {"pairs": pairs, "solution": solution})


def livecodebench_row(row: Row, config: TaskConfig) -> Example:
    """LiveCodeBench (https://livecodebench.github.io): `question_content`, `starter_code`, `public_test_cases`, `private_test_cases`,
    `metadata` with func_name where a function is called. Private tests are JSON, or text packed by base64, zlib and pickle."""
    tests = [*_json(field(row, "public_test_cases")), *private_tests(field(row, "private_test_cases"))]
    question, start = text_field(row, "question_content").strip(), str(row.get("starter_code") or "").strip()
    name = _json(row.get("metadata") or "{}").get("func_name", "")
    kinds = {test["testtype"] for test in tests}
    if kinds == {"stdin"}:
        pairs = [[test["input"], test["output"]] for test in tests]
        target = {"pairs": pairs, "solution": row.get("solution") or ""}
        return Example(asked(f"{question}\n{STREAMS}", row), target)
    if kinds != {"functional"} or not name:
        raise ValueError(f"the tests are of the kinds {sorted(kinds)} and metadata.func_name is {name!r}.")
    calls = [
        [[json.loads(line) for line in t["input"].splitlines() if line], json.loads(t["output"])]
        for t in tests
    ]
    callee = f"Solution().{name}" if "class Solution" in start or not start else name
    target = {
        "calls": calls,
        "function": callee,
        "program_setup": PROMISED,
        "solution": row.get("solution") or "",
    }
    return Example(asked(f"{question}\nBegin with:\n```python\n{start}\n```", row), target)


def cruxeval_row(row: Row, config: TaskConfig) -> Example:
    """CRUXEval's output prediction (https://arxiv.org/abs/2401.03065): `code` with a function f, `input`, `output` as Python writes it."""
    code, given, output = text_field(row, "code").strip(), str(field(row, "input")), text_field(row, "output")
    question = f"{code}\n\nassert f({given}) == ?"
    text = f"What must stand for the question mark?\n```python\n{question}\n```"
    return Example(asked(text, row), output.strip())


class _TextAlone(pickle.Unpickler):
    """Unpickles a text; a name of any class or function is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the private tests name {module}.{name}; they may hold text alone.")

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002  # called so by the base class
        raise ValueError("the private tests name an object elsewhere; they may hold text alone.")


def private_tests(packed: Any) -> list[dict[str, Any]]:
    """LiveCodeBench's private tests. ValueError for anything but JSON or a packed text of it."""
    try:
        found = _json(packed)
    except ValueError:
        try:
            opened = zlib.decompressobj()
            text = _TextAlone(io.BytesIO(opened.decompress(base64.b64decode(packed), MOST_UNPACKED))).load()
        except (
            zlib.error,
            pickle.UnpicklingError,
            EOFError,
            IndexError,
            KeyError,
            AttributeError,
            TypeError,
        ) as error:
            raise ValueError(f"the private tests cannot be unpacked: {error}") from None
        if not isinstance(text, str):
            raise ValueError(
                f"the private tests hold a {type(text).__name__}; they may hold text alone."
            ) from None
        found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"the private tests are a {type(found).__name__}, not a list.")
    return found


def _json(value: Any) -> Any:
    """A list or an object, also where it was written as text. ValueError for another text."""
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] not in ("[", "{"):
        raise ValueError(f"not JSON: {value[:60]!r}")
    return json.loads(value)


def _lines(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))


def _texts(row: Row, name: str) -> list[str]:
    found = field(row, name)
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"field '{name}' must be a list of texts, not {found!r:.80}")
    return found


def mbpp(option: str) -> Task:
    """Short Python functions described in a sentence (Austin et al. 2021, https://arxiv.org/abs/2108.07732), the checked 399: every fifth
    is held out."""
    no_option("mbpp", option)
    file = "mbpp/mbpp_sanitized_399.jsonl"

    def part(held_out: bool) -> Place:
        def keep(row: Row) -> bool:
            return (int(row["task_id"]) % 5 == 0) == held_out

        # The hub's own parts hold other rows than the file's: all of them are read, and divided alike.
        every = "train+test+validation+prompt"
        return Place(file, "google-research-datasets/mbpp:sanitized", every, mbpp_row, keep=keep)

    load = from_places("mbpp", [part(False)], [part(True)], instruction=FENCE)
    return Task("mbpp", load, REWARDS, stated_gold)


def evaluated(name: str, file: str, hub: str, form: Format, split: str = "test") -> Callable[[str], Task]:
    """A task to be evaluated on."""

    def make(option: str) -> Task:
        no_option(name, option)
        load = from_places(name, [], [Place(file, hub, split, form)], instruction=FENCE, no_train=NO_TRAIN)
        return Task(name, load, REWARDS, stated_gold, max_tokens=2048)

    return make


NO_TRAIN = "it is a test set. Train on mbpp."
CODE_FORMATS: dict[str, Format] = {
    "mbpp": mbpp_row,
    "humaneval": humaneval_row,
    "leetcode": leetcode_row,
    "stdin": stdin_row,
    "livecodebench": livecodebench_row,
    "cruxeval": cruxeval_row,
}
"""Forms of rows for one's own files, with the reward `tests` (`exact` for cruxeval)."""
TASKS: dict[str, Callable[[str], Task]] = {
    "humaneval": evaluated(
        "humaneval", "humaneval/humaneval.jsonl", "openai/openai_humaneval", humaneval_row
    ),
    "leetcode": evaluated("leetcode", "livecode_style/leetcode_test.jsonl", "", leetcode_row),
    "mbpp": mbpp,
}
