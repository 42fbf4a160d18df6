"""Reading what prose says about a result: "The answer is therefore 7 apples.", "so it is $\\frac{1}{2}$".

Linear in the text: every pattern is anchored where a cheap one has matched, and looks at few characters from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

REACH = 600
"""Most characters of a statement that are read: what is longer is no result."""
ANSWER = re.compile(
    r"(?:\b(?P<which>this|that|my|our|your)\s{1,3})?\banswers?\b\*{0,2}(?:\s{0,9}(?:is|was|are|[:=]|\*\*))+",
    re.IGNORECASE,
)
"""What announces a result; the result follows."""
REMARK = re.compile(
    r"(?:(?:also|indeed|very|quite|probably|surely|now|therefore|not|definitely|both)\s+)*(?:correct|right|wrong|incorrect|true|false|consistent|"
    r"reasonable|plausible|sensible|valid|invalid|verified|confirmed|fine|good|clear|obvious|unclear|unknown|unique|complete|final|in|as|based|given|because|"
    r"obtained|found|close|likely|well|expected|supported|needed|required|positive|what|that|i|we|you|it|this|there)\b", re.IGNORECASE
)  # fmt: skip
"""What is said of an answer rather than as one."""
ASIDE = re.compile(
    r"(?:\s|\*|:|=|≈|(?<!\w)(?:therefore|thus|hence|then|so|simply|just|about|approximately|approx\.|roughly|around|nearly|exactly|clearly|indeed|"
    r"equal\s+to|given\s+by|the\s+(?:number|value|integer|fraction)|a\s+total\s+of|usd|eur|gbp|us(?=\s?\$))(?!\w),?|\([A-J]\)(?=\s+[-−$\\\d]))*", re.IGNORECASE
)  # fmt: skip
"""Words between the announcement and the result."""
OPENING = re.compile(r"\$\$|\\\[|\\\(|(?<!\\)\$(?!\s)")
CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
TRIED = 20
"""Announcements that are looked at, from the end."""
MORE = re.compile(
    r"\s*(?:(?:hundred|thousand|million|billion|trillion|or|to|times|and\s+[-−$\\\d])\b|(?:and|or)\s*\$)",
    re.IGNORECASE,
)
"""Words that make a number more than it says by itself."""
PROSE = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|log|ln|exp|pi|inf)\b)[A-Za-z]{2,}")
VALUE = re.compile(
    r"(?:[-−]?\d+\s+\d+\s*/\s*\d+|(?<![\w.)])[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.)])[-−]?\.\d+|(?<!\d)\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?)"
    r"(?:[ \t]{0,3}/[ \t]{0,3}\d+)?"
)


def stated(text: str, *, whole: bool = False) -> str | None:
    """The result that a text announces last; None if it announces none. `whole`: all of the text is one announcement."""
    if whole:
        return _result(text[:REACH])
    for match in reversed(list(ANSWER.finditer(text))[-TRIED:]):
        rest = text[match.end() : match.end() + REACH]
        said = rest[ASIDE.match(rest).end() :]  # type: ignore[union-attr]  # it matches nothing at all, too
        remark = REMARK.match(said) or (match["which"] and PROSE.match(said))
        if remark is None:
            found = _result(said)
            if found:
                return found
    return None


def spoken_values(text: str) -> list[str]:
    """Numbers and formulas of a text in their order; of an equation between dollars its last side."""
    found: list[tuple[int, str]] = []
    rest, place = list[str](), 0
    for start, end, inside in _spans(text):
        rest += [text[place:start], "\n" * (end - start)]
        place = end
        if re.search(r"\d|\\(?:pi|frac|sqrt|infty)", inside):
            found.append((start, _last_side(inside)))
    bare = "".join([*rest, text[place:]])
    if "\\" in bare or "^" in bare or "_" in bare:
        bare = _without_formulas(bare, found)
    found += [(match.start(), match[0]) for match in VALUE.finditer(bare)]
    return [value for _, value in sorted(found)]


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and inside of mathematics between its marks; a dollar before a price closes nothing."""
    place, missing = 0, set[str]()
    while match := OPENING.search(text, place):
        opening, start = match[0], match.start()
        closing, place = CLOSING[opening], match.end()
        if opening in missing:
            continue
        end = text.find(closing, place + 1, place + REACH)
        if end < 0 and text.find(closing, place + 1) < 0:
            missing.add(opening)
        inside = text[place:end] if end > 0 else ""
        price = opening == "$" and (
            "\n" in inside or inside[-1:].isspace() or text[end + 1 : end + 2].isdigit()
        )
        if inside and not price:
            yield start, end + len(closing), inside
            place = end + len(closing)


def _without_formulas(text: str, found: list[tuple[int, str]]) -> str:
    """The text with LaTeX blanked that nobody put between dollars: words with a command, ^ or _, blanks inside braces included."""
    rest, place, depth, start = list(text), 0, 0, 0
    for mark in re.finditer(r"[\s{}]|\Z", text):
        place = mark.start()
        depth = max(0, depth + {"{": 1, "}": -1}.get(mark[0], 0))
        if mark[0] in ("{", "}") or (depth and mark[0] not in ("", "\n")):
            continue
        word, depth = text[start:place], 0
        if re.search(r"\\[A-Za-z]|[\^_]", word):
            rest[start:place] = " " * len(word)
            if re.search(r"\d", word):
                found.append((start, _last_side(word.strip("*.,;:"))))
        start = mark.end()
    return "".join(rest)


def _result(said: str) -> str | None:
    """The result at the beginning of what follows its announcement; None if it is nothing that could be one."""
    said = said[ASIDE.match(said).end() :].strip()  # type: ignore[union-attr]
    span = next(_spans(said), None) if OPENING.match(said) else None
    if span is not None and span[0] == 0:
        _, end, inside = span
        more = MORE.match(said, end)
        return inside.strip() if more is None else f"{inside.strip()} {_line(said[end:])}".replace("$", "")
    line = _line(said)
    if not line:
        return None
    word = PROSE.search(line)
    formula = (line if word is None else line[: word.start()]).strip()
    if not formula:  # a word by itself, or prose that comes to a value
        values = spoken_values(line)
        return values[-1] if values else line.strip("*").rstrip(".").strip()
    if word is not None and MORE.match(line, len(formula)):
        return line.strip("*").rstrip(".")
    return _trimmed(formula, prose_follows=word is not None) or None


def _line(said: str) -> str:
    """The first sentence of the first line."""
    line = said.split("\n", 1)[0]
    return re.split(r"[.;!?]\s|[.!?]$", line, maxsplit=1)[0].strip().strip("*").strip()


def _trimmed(formula: str, *, prose_follows: bool) -> str:
    """A formula without what begins the prose after it: an open bracket, a comma, an article, the unit of a number."""
    formula = formula.replace("\\$", "").lstrip("$").strip("*").strip()
    aside = re.match(rf"({VALUE.pattern})\s*(?:[,(:;—–°]|[aAI]\b)", formula)
    if (
        aside
        and (prose_follows or formula[aside.end() - 1] == "°")
        and not re.search(r"\d", formula[aside.end() :])
    ):
        return aside[1]
    unit = re.fullmatch(rf"({VALUE.pattern})\s+[mgshlL](?:/[a-z])?(?:\^\{{?\d\}}?)?", formula)
    return unit[1] if unit else formula.rstrip(" ,(:;*=—–").rstrip(".")


def _last_side(formula: str) -> str:
    """What an equation comes to: the side after its last equals sign that stands outside braces."""
    depth, start = 0, 0
    for place, character in enumerate(formula):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "=" and depth == 0 and formula[place - 1 : place] not in ("<", ">", "!"):
            start = place + 1
    return formula[start:].strip() if start and formula[start:].strip() else formula.strip()
