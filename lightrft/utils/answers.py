"""Finding in an answer's text what it concludes, and writing it in one form: no mathematics, only text.

Rewards compare what is found here with the target; majority votes count it. Every function takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from lightrft.utils.spoken import spoken_values, stated

NUMBER = (
    r"(?<![\w.)])[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|(?<![\w.)])[-−]?\d+(?:\.\d+)?"
    r"|(?<![\w.)])[-−]?\.\d+|(?<!\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?"
)
LAST_NUMBER = re.compile(NUMBER)
LONGEST = 2000
"""Characters of a conclusion beyond which it is no expression, and compared as text alone."""
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Word -> how many zeros it stands for."""
HASHES = re.compile(r"####[ \t]*(\S.*)")
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,9}\{")
_CONSTANT = re.compile(r"\\(?:text|mathrm|mbox|textrm)\{\s*([ei])\s*\}")
_UNITS = re.compile(r"(\d[\s~]*)\\(?:text|mathrm|mbox|textrm)\{[^{}]*\}(?:\^\{?\d\}?)?")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textrm|underline)\{([^{}]*)\}")
_SPACING = re.compile(
    r"\\[!,;: ]|\\quad|\\left|\\right|\\displaystyle|~|\$|\\\$|\\\(|\\\)|\\\[|\\\]|\\%|%|°|\^\{?\\circ\}?|[€£]"
)
_SCALED = re.compile(
    rf"(-?\d[\d,]{{0,30}}(?:\.\d{{1,30}})?)[\s~]*(?:\\(?:text|mathrm)\{{\s*)?({'|'.join(SCALES)})\b\s*\}}?", re.IGNORECASE
)  # fmt: skip
_PLAIN_UNIT = re.compile(
    r"([-−]?[\d,.]*\d(?:\s*/\s*\d{1,30})?)(?:\s+(?!(?:to|or|and|times|plus|minus|over)\b)[A-Za-z]{2,30}(?:/[A-Za-z]{1,9})?(?:\^\{?\d\}?)?(?:\s[A-Za-z ]{0,60})?"
    r"|\s+[mgshlL](?:/[a-z]{1,3})?(?:\^\{?\d\}?)?|(?:cm|mm|km|kg|mg|ml|mL|min|hrs?|ft|lbs?|mph)(?:\^\{?\d\}?)?)"
)


def concluded(answer: str) -> str:
    """What counts of an answer: the inside of its last <answer> tag, else what follows </think>, else all of it."""
    end = answer.rfind("</answer>")
    start = answer.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        return answer[start + len("<answer>") : end].strip()
    return answer.rpartition("</think>")[2].strip()


def plain_words(answer: str) -> str:
    r"""The words of the conclusion in small letters, without marks: "<answer>Dog bark.</answer>" gives "dog bark".

    A letter with an accent is the same in either of Unicode's ways to write it.
    """
    text = concluded(answer)
    found = boxed(text)
    bare = _TEXT.sub(r"\1", text if found is None else found)
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", bare).lower()))


def conclusion(answer: str) -> str | None:
    """What the answer states in the end, as it is written there; None if it states nothing.

    The last box that is not empty, else what follows ####, else what is said to be the answer, else all that stands in
    the answer's tag, else the last number or formula.
    """
    text = concluded(answer)
    found = boxed(text)
    if found is not None:
        return found
    after_hashes = HASHES.findall(text)
    said = stated(after_hashes[-1], whole=True) if after_hashes else stated(text)
    if said is not None:
        return said
    if "<answer>" in answer and "</answer>" in answer:
        return text
    values = spoken_values(text)
    return values[-1] if values else None


def boxed(text: str) -> str | None:
    r"""Inside of the last complete \boxed{...} or \fbox{...} that is not empty, braces balanced; None if there is none."""
    boxes = {match.end() - 1 for match in _BOX.finditer(text)}
    if not boxes:
        return None
    best: tuple[int, int] | None = None
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", text):
        place = brace.start()
        if place and text[place - 1] == "\\":
            continue
        if brace[0] == "{":
            opened.append(place)
        elif opened:
            start = opened.pop()
            fuller = best is None or start > best[0]
            if start in boxes and fuller and not text[start + 1 : start + 9].isspace():
                best = (start, place) if text[start + 1 : place].strip() else best
    return None if best is None else text[best[0] + 1 : best[1]].strip()


def plain(text: str) -> str:
    """The expression without dollars, spacing, units behind a number, text marks and a final full stop.

    A blank stays where two numbers would become one without it: "4 2/3", "2, 220".
    """
    if len(text) > LONGEST:
        return re.sub(r"\s+", "", text)
    text = _CONSTANT.sub(r"\1", text.strip())
    text = _SCALED.sub(_scaled, text)
    text = _UNITS.sub(r"\1", text)
    text = _TEXT.sub(r"\1", text).strip()
    unit = _PLAIN_UNIT.fullmatch(text)
    text = unit[1] if unit else text
    text = _SPACING.sub("", text).replace("\\varnothing", "\\emptyset")
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).replace("−", "-")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d)(,?)\s+(?=\d{3}(?!\d))|(?<=\d)()\s+(?=\d)", _kept_apart, text)
    return re.sub(r"[^\S ]+| +(?!\0)", "", text).replace("\0", "").rstrip(".")


def _scaled(match: re.Match[str]) -> str:
    return f"{float(match[1].replace(',', '')):.12g}e{SCALES[match[2].lower()]}"


def _kept_apart(match: re.Match[str]) -> str:
    return f"{match[1] or ''} \0"


@lru_cache(maxsize=4096)
def value(text: str) -> Fraction | None:
    r"""The number that a plain decimal, 1e-3, a/b, \frac{a}{b} or a mixed number 4 2/3 stands for, thousands' commas
    allowed; else None."""
    text = text.strip().replace("−", "-").lstrip("$")
    text = re.sub(r"^(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}$", r"\1\2/\3", text).replace("--", "")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    mixed = re.fullmatch(r"(-?)(\d{1,400}) (\d{1,400})/(\d{1,400})", text)
    if mixed and int(mixed[4]):
        whole = int(mixed[2]) + Fraction(int(mixed[3]), int(mixed[4]))
        return -whole if mixed[1] else whole
    parts = re.fullmatch(
        r"([-+]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,3})?)(?:\s*/\s*(-?\d{1,400}))?",
        text,
    )
    if parts is None or (parts[2] is not None and int(parts[2]) == 0):
        return None
    return Fraction(parts[1]) / int(parts[2] or 1)


def vote(answer: str) -> str:
    """The conclusion in one form, so that answers which agree are the same text: "0.50" and "1/2" both give "1/2".

    "" for an answer that concludes nothing.
    """
    found = conclusion(answer)
    return "" if found is None else label(found)


def label(found: str) -> str:
    """A conclusion in one form: numbers as fractions, a choice letter without brackets."""
    text = plain(found)
    number = value(text)
    if number is not None:
        return str(number)
    bracketed = re.fullmatch(r"\(([A-J])\)", text)
    return bracketed[1] if bracketed else text
