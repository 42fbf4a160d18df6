"""The letter of a multiple-choice answer, in the ways people and models write it."""

from __future__ import annotations

import re

from lightrft.utils.answers import boxed, concluded

_MARKS = re.compile(r"\\(?:text\w*|math\w+|mbox)\s*\{|[{}*$\\]")
_OPTION = re.compile(r"\s*[(\[]?\s*([A-J])\s*(?:[)\].:]+(?:\s.*)?|)\s*", re.IGNORECASE | re.DOTALL)
"""A letter alone, in brackets, or in front of what it stands for: "(B)", "B. Paris"."""
_ALONE = re.compile(r"[ \t*]*\**([A-J])\**[ \t]*[.):]?[ \t*]*", re.IGNORECASE)
_LINK = (
    r"(?:\b(?:answer|choice|option)\b[*\s]{0,6}(?:(?:is|[:=]|must be|should be|would be|therefore|thus|clearly)[*:\s]{0,6}){0,4}"
    r"|\b(?:it|this)\s(?:is|must\sbe|has\sto\sbe|should\sbe)\s(?=[(\[*]*[A-J]\b)|\b(?:so|thus|therefore|hence|choose|pick|select)[,:]?\s(?=[(\[*]*[A-J][)\]*]*(?:[.!\n]|$)))"
)
_COMMITTED = re.compile(
    rf"(?P<negated>\b(?:not|nor|neither|isn't|than|of|never)\s{{1,3}}(?:option\s|choice\s|answer\s)?\(?)?"
    rf"(?:(?i:{_LINK})[*(\[$]{{0,4}}(?P<said>[A-Ja-j])(?![\w'’])|\((?P<mention>[A-Ja-j])\))"
)
_WORD = re.compile(
    r"[ \t]+(?!(?:because|since|as|and|which|with|for|due|is|was|seems|has|by|where|from)\b)[\w'’]",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\s*(?:is|are|was|seems|must be)?\s*(?:clearly |also |obviously )?(?:wrong|incorrect|false|not|ruled|out|excluded|impossible)\b"
)


def letter(answer: str) -> str:
    """The choice letter that the answer commits to last, a capital; "" if there is none.

    A box or a tag decides where there is one. "(B)", "B.", "B. Paris", "the answer is b"; "a dog" and "I think" name none, nor
    does "not (A)".
    """
    text = concluded(answer)
    found = boxed(text)
    whole = None if found is None else _OPTION.fullmatch(_MARKS.sub("", found))
    if whole:
        return whole[1].upper()
    places = [(match.start(), name) for match in _COMMITTED.finditer(text) if (name := _name(match))]
    start = 0
    for line in text.split("\n"):
        alone = _ALONE.fullmatch(line.strip()[:20]) if len(line.strip()) < 20 else None
        places += [(start, alone[1])] if alone else []
        start += len(line) + 1
    if not places:
        options = [
            match[1] for line in text.split("\n") if (match := _OPTION.fullmatch(_MARKS.sub("", line[:400])))
        ]
        return options[0].upper() if len(options) == 1 else ""
    return max(places)[1].upper()


def _name(match: re.Match[str]) -> str:
    """The letter, unless it is an article, a pronoun, or named to be refused."""
    if match["negated"]:
        return ""
    after = match.string[match.end() : match.end() + 40]
    if match["mention"]:
        return "" if _WRONG.match(after) else match["mention"]
    said = match["said"]
    if (said in "aiAI" and _WORD.match(after)) or _WRONG.match(after):
        return ""
    return str(said)
