"""Search in one's own texts: the policy asks with words, and is shown the passages that fit best.

Imports no torch: worker processes run this.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Protocol

from lightrft.config.environment import USUAL_SECONDS
from lightrft.environments.tools import Calls, Tools
from lightrft.utils.imports import resolve
from lightrft.utils.paths import expanded

TEXTS = (".txt", ".md", ".rst")
"""Endings of the files of a folder that are passages."""


class BM25:
    """Ranks passages by Okapi BM25 (Robertson et al. 1994, https://trec.nist.gov/pubs/trec3/papers/city.ps.gz), with an idf that is
    never negative, as Lucene's: log(1 + (N - n + 0.5) / (n + 0.5)) for a word that n of N passages have."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        passages = [words(text) for text in texts]
        average = sum(map(len, passages)) / max(1, len(passages)) or 1.0
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, passage in enumerate(passages):
            long = k1 * (1 - b + b * len(passage) / average)
            for word, count in Counter(passage).items():
                self._weights[word].append((place, count * (k1 + 1) / (count + long)))
        for word, entries in self._weights.items():
            idf = math.log(1 + (len(passages) - len(entries) + 0.5) / (len(entries) + 0.5))
            self._weights[word] = [(place, idf * weight) for place, weight in entries]

    def best(self, query: str, top: int) -> list[int]:
        """Places of the passages with the highest scores, the best first; none that shares no word with the query."""
        scores: dict[int, float] = defaultdict(float)
        for word in words(query):
            for place, weight in self._weights.get(word, ()):
                scores[place] += weight
        return heapq.nsmallest(top, scores, key=lambda place: (-scores[place], place))


class Index(Protocol):
    """What ranks passages; made of a list of texts."""

    def best(self, query: str, top: int) -> Sequence[int]:
        """Places of the passages that fit best, at most `top`, the best first."""
        ...


INDEXES: Mapping[str, Callable[[Sequence[str]], Index]] = {"bm25": BM25}


class Search(Tools):
    """An environment with one tool, `search`; the response ends with a turn that does not call it."""

    def __init__(
        self,
        corpus: str,
        top: int = 3,
        field: str = "text",
        title: str = "title",
        index: str = "bm25",
        calls: Calls = "json",
        seconds: float = USUAL_SECONDS,
    ) -> None:
        """corpus: a file with a JSON object in each line, of which `field` and, where it has one, `title` are read, a folder of texts, or
        the import path of a function that returns texts. top: passages in a reply. index: bm25, or the import path of another `Index`, a
        dense one for instance. ValueError for a corpus that is not there or empty, and for an index that is none."""
        if top < 1:
            raise ValueError(f"environment.options top={top}: a reply has at least one passage. Set top 3.")
        self._passages, self._index = indexed(corpus, field, title, index)
        self._top = top
        super().__init__([], calls, seconds=seconds)
        self.add(self.search)

    def search(self, query: str) -> str:
        """Finds the passages that have most to do with the words of a query."""
        found = self._index.best(query, self._top)[: self._top]
        lines = [f"[{n}] {self._passages[place]}" for n, place in enumerate(found, start=1)]
        return "\n".join(lines) or "(nothing was found)"


@cache
def indexed(corpus: str, field: str, title: str, index: str) -> tuple[list[str], Index]:
    """The passages of a corpus and their index, made once in a process for all conversations. ValueError as from `passages_of`, for
    a corpus without text, and for an index that finds nothing."""
    passages = list(passages_of(corpus, field, title))
    if not passages:
        raise ValueError(f"environment.options corpus={corpus} holds no text.")
    made = resolve(INDEXES, index, "index")(passages)
    if not callable(getattr(made, "best", None)):
        raise ValueError(f"environment.options index={index} makes nothing with a method best(query, top).")
    return passages, made


def passages_of(corpus: str, field: str, title: str) -> Iterator[str]:
    """The passages of a file or folder, or what a function returns. ValueError naming file and line of what is none."""
    if re.search(r":\w+$", corpus):
        yield from resolve({}, corpus, "corpus")()
        return
    place = expanded(corpus, "environment.options corpus")
    if place.is_dir():
        for file in sorted(f for f in place.rglob("*") if f.suffix in TEXTS):
            yield f"{file.relative_to(place)}: {file.read_text(encoding='utf-8', errors='replace')}"
        return
    if not place.is_file():
        raise ValueError(f"environment.options corpus={corpus}: there is no such file or folder.")
    for number, line in enumerate(place.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line.strip():
            yield _passage(f"{place}:{number}", line, field, title)


def words(text: str) -> list[str]:
    """Words of a text in small letters."""
    return re.findall(r"\w+", text.lower())


def _passage(where: str, line: str, field: str, title: str) -> str:
    try:
        row = json.loads(line)
        text = row[field]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{where}: no JSON object with a field '{field}' ({type(error).__name__})."
        ) from None
    if not isinstance(text, str):
        raise ValueError(f"{where}: field '{field}' is no text.")
    return f"{row[title]}: {text}" if isinstance(row.get(title), str) else text
