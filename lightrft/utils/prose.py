"""Sentences and capital words of English prose, counted as the usual tools count them, without their models."""

from __future__ import annotations

import re
from itertools import pairwise

_ABBREVIATED = (
    "adm a.d a.m apr approx aug ave b.c bros capt cmdr co col corp cpl d.c dec dept dr e.g esp est etc feb fig ft gen gov hon i.e inc jan"
    " jr lt ltd maj messrs mr mrs ms mt nov oct p.m ph.d pp prof rep reps rev sen sens sep sept sgt sr st u.k u.n u.s u.s.a vol vs"
)
ABBREVIATIONS = frozenset(_ABBREVIATED.split())
"""Words after which a full stop ends no sentence unless what follows could only begin one."""
_STARTING = (
    "a after all although an and as at because but by during each first for he her here his how however i if in it its later many meanwhile"
    " most my now on one our she since so some that the their then there these they this those though to we what when where while with you"
)
STARTERS = frozenset(_STARTING.split())
"""Words that, with a capital, begin a sentence also behind an abbreviation."""
CLOSING, OPENING = "\"'”’)]}*_", "\"'“‘([*_-"
_JOINED = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b", re.IGNORECASE)
_MERGED = re.compile(
    r"\b(can(?=not\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|gim(?=me\b)|lem(?=me\b))", re.IGNORECASE
)
_APART = re.compile(r"""[\s;@#$%&?!()\[\]{}<>"“”`«»…]+|--+|\.{2,}|[:,](?!\d)""")


def sentence_count(text: str) -> int:
    """Sentences of a text; a line break alone ends none, and the number of a list item ("1.") counts as one, as Punkt has it.

    The rules are plain ones for what Punkt's English model (Kiss and Strunk 2006, https://aclanthology.org/J06-4003) learned from
    newspapers, so that now and then the two differ by one.
    """
    words = text.split()
    return bool(words) + sum(_ends(word, after) for word, after in pairwise(words))


def _ends(ending: str, after: str) -> bool:
    """Whether a sentence ends between two words."""
    ending, following = ending.rstrip(CLOSING), after.lstrip(OPENING)
    bare = ending.rstrip(".!?")
    marks, word = ending[len(bare) :], bare.lower().lstrip(OPENING)
    if not marks or "!" in marks or "?" in marks:
        return bool(marks)
    upper = following[:1].isupper()
    starter = upper and following[1:2] != "." and re.split(r"\W", following)[0].lower() in STARTERS
    if len(marks) > 1 or word.rpartition("-")[2] in ABBREVIATIONS or word in ABBREVIATIONS:
        return starter
    if len(word) == 1 and word.isalpha():  # an initial
        return starter
    if word.isdecimal():
        return upper or not following[:1].isalpha()
    return True


def capital_words(text: str) -> int:
    """Words without a small letter, those with a hyphen or a slash counting as one, and contractions ("IT'S", "CANNOT") as two,
    as in the Penn Treebank."""
    count = 0
    for word in _APART.split(_MERGED.sub(r"\1 ", text)):
        rest, joined = _JOINED.subn(" ", word)
        pieces = rest.split() + (_JOINED.findall(word) if joined else [])
        count += sum(piece.isupper() for piece in pieces)
    return count
