"""Finding in an answer's text what it concludes, and writing it in one form: no mathematics, only text.

Rewards compare what is found here with the target; majority votes count it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = r"(?<![\w.)])[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|(?<![\w.)])[-−]?\d+(?:\.\d+)?|(?<!\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"
LAST_NUMBER = re.compile(NUMBER)
LAST_VALUE = re.compile(rf"(?:{NUMBER})(?:\s*/\s*\d+)?")
CHOICE = re.compile(
    r"\\boxed\{\s*(?:\\text\w*\{)?\s*\(?([A-J])\)?\s*\}"
    r"|(?:answer|choice|option)\b(?:\s+is)?\s*:?\s*[*(\s]*([A-J])\b(?!['’])"
    r"|\(([A-J])\)"
    r"|^\s*\**([A-J])\**\s*[.):]?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
HASHES = re.compile(r"####\s*(.+)")
STATED = re.compile(r"\banswer\b(?:\s+is|\s*[:=])+\s*(.+?)(?:\.\s|\.?\s*$)", re.IGNORECASE | re.MULTILINE)
_UNITS = re.compile(r"(\d\s*)\\(?:text|mathrm|mbox|textrm)\{[^{}]*\}(?:\^\{?\d\}?)?")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textrm)\{([^{}]*)\}")
_SPACING = re.compile(
    r"\\[!,;: ]|\\quad|\\left|\\right|\\displaystyle|~|\$|\\\$|\\\(|\\\)|\\\[|\\\]|\\%|%|°|\^\{?\\circ\}?"
)


def concluded(answer: str) -> str:
    """What counts of an answer: the inside of its last <answer> tag, else what follows </think>, else all of it."""
    tagged = TAGGED.findall(answer)
    return tagged[-1].strip() if tagged else answer.rpartition("</think>")[2].strip()


def letter(answer: str) -> str:
    """The last choice letter that the answer commits to, a capital; "" if there is none. "(B)", "B.", "the answer is b"."""
    found = [next(filter(None, letters)) for letters in CHOICE.findall(concluded(answer))]
    return found[-1].upper() if found else ""


def plain_words(answer: str) -> str:
    r"""The words of the conclusion in small letters, without marks: "<answer>Dog bark.</answer>" gives "dog bark"."""
    text = concluded(answer)
    found = boxed(text)
    return " ".join(re.findall(r"\w+", _TEXT.sub(r"\1", text if found is None else found).lower()))


def conclusion(answer: str) -> str | None:
    """What the answer states in the end, as it is written there; None if it states nothing."""
    text = concluded(answer)
    found = boxed(text)
    if found is not None:
        return found
    for pattern in (HASHES, STATED):
        stated = pattern.findall(text)
        if stated:
            return _cut_prose(stated[-1].strip().strip("*").rstrip("."))
    if TAGGED.search(answer):
        return text
    numbers = LAST_VALUE.findall(text)
    return numbers[-1] if numbers else None


def boxed(text: str) -> str | None:
    r"""Inside of the last complete \boxed{...} or \fbox{...}, braces balanced; None if there is none."""
    for start in reversed([m.end() for m in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for place, character in enumerate(text[start:], start):
            depth += {"{": 1, "}": -1}.get(character, 0) if text[place - 1] != "\\" else 0
            if depth == 0:
                return text[start:place].strip()
    return None


def plain(text: str) -> str:
    """The expression without dollars, spacing, units behind a number, text marks and a final full stop."""
    text = _UNITS.sub(r"\1", text.strip())
    text = _TEXT.sub(r"\1", text)
    text = _SPACING.sub("", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("−", "-")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})", ",", text)
    return re.sub(r"\s+", "", text).rstrip(".")


@lru_cache(maxsize=4096)
def value(text: str) -> Fraction | None:
    r"""The number that a plain decimal, a/b or \frac{a}{b} stands for, thousands' commas allowed; else None."""
    text = text.strip().replace("−", "-").lstrip("$")
    text = re.sub(r"^(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}$", r"\1\2/\3", text).replace("--", "")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    parts = re.fullmatch(r"(-?\d{1,400}(?:\.\d{1,400})?|-?\.\d{1,400})(?:\s*/\s*(-?\d{1,400}))?", text)
    if parts is None or (parts[2] is not None and int(parts[2]) == 0):
        return None
    return Fraction(parts[1]) / int(parts[2] or 1)


def _cut_prose(text: str) -> str:
    """ "5 apples" -> "5", "$x = 5$" -> "x = 5"; anything else as it is."""
    number = re.match(rf"\$?\s*({LAST_VALUE.pattern})\s*(?:[a-zA-Z%°].*)?$", text)
    if number:
        return number[1]
    dollars = re.search(r"\$([^$]+)\$", text)
    return dollars[1] if dollars else text


def vote(answer: str) -> str:
    """The conclusion in one form, so that answers which agree are the same text: "0.50" and "1/2" both give "1/2"."""
    found = conclusion(answer)
    if found is None:
        return ""
    text = plain(found)
    number = value(text)
    return text if number is None else str(number)
