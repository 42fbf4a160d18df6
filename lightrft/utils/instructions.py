"""The 25 kinds of instruction that a program can verify, of IFEval (Zhou et al. 2023, https://arxiv.org/abs/2311.07911).

Each check says of a text whether it follows one instruction, as the published checker does; docs/rewards.md says where the two may
differ. The target of a prompt is {"instruction_id_list": [...], "kwargs": [{...}, ...]}, as the data set has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from lightrft.utils.languages import language
from lightrft.utils.prose import capital_words, sentence_count

LESS_THAN, AT_LEAST = "less than", "at least"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")
Check = Callable[..., bool]


def followed(text: str, target: Mapping[str, Any]) -> list[bool]:
    """Whether a text follows each instruction; an empty one follows none. ValueError as from `checks_of`."""
    return [bool(text.strip()) and check(text) for check in checks_of(target)]


def followed_loosely(text: str, target: Mapping[str, Any]) -> list[bool]:
    """Whether the text, or what is left of it without introduction, farewell and markup, follows each instruction."""
    lines = text.split("\n")
    cuts = [text, *("\n".join(lines[a:b]).strip() for a, b in ((1, None), (None, -1), (1, -1)))]
    variants = [
        found
        for cut, bare in product(cuts, (False, True))
        if (found := cut.replace("*", "") if bare else cut).strip()
    ]
    return [any(check(variant) for variant in variants) for check in checks_of(target)]


def checks_of(target: Mapping[str, Any]) -> list[Callable[[str], bool]]:
    """A check with its numbers and words for each instruction of a target.

    ValueError for a target of another form, a kind that is none of the 25, and a number or word that the kind needs and lacks.
    """
    if not isinstance(target, Mapping):
        raise ValueError(
            f"the target of a prompt is {target!r:.80}; instructions are {{'instruction_id_list': [...], 'kwargs': [...]}}."
        )
    kinds, given = target.get("instruction_id_list"), target.get("kwargs")
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or not kinds:
        raise ValueError(f"'instruction_id_list' is {kinds!r:.80}; it must name one instruction or more.")
    if not isinstance(given, Sequence) or len(given) != len(kinds):
        raise ValueError(
            f"'kwargs' must be a list with {len(kinds)} entries, as many as there are instructions, not {given!r:.80}."
        )
    return [_check_of(kind, words or {}) for kind, words in zip(kinds, given, strict=True)]


def _check_of(kind: str, given: Mapping[str, Any]) -> Callable[[str], bool]:
    if kind not in KINDS:
        raise ValueError(f"there is no instruction {kind!r}. Those of IFEval are: {', '.join(KINDS)}.")
    check, needs = KINDS[kind]
    words = {}
    for name, form in needs.items():
        value = given.get(name)
        if isinstance(value, float) and value.is_integer() and form is int:
            value = int(value)  # a column of numbers in which some are missing
        if (
            isinstance(value, bool)
            or not isinstance(value, form)
            or (isinstance(value, str | list) and not value)
        ):
            raise ValueError(
                f"instruction {kind}: '{name}' is {value!r:.60}, and must be a {form.__name__} with something in it."
            )
        words[name] = value
    for name in words.keys() & {"relation", "let_relation", "capital_relation"}:
        if words[name] not in (LESS_THAN, AT_LEAST):
            raise ValueError(
                f"instruction {kind}: '{name}' is {words[name]!r:.40}, and must be '{LESS_THAN}' or '{AT_LEAST}'."
            )
    return partial(check, **words)


def _compare(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == LESS_THAN else count >= bound


def _found(word: str, text: str, around: str = "") -> int:
    """How often a keyword occurs, whatever its case."""
    written = _pattern(f"{around}{word}{around}", f"{around}{re.escape(word)}{around}", re.IGNORECASE)
    return sum(1 for _ in written.finditer(text))


def _pattern(written: str, escaped: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Words of the data set are patterns, as published; one that is none ("C++") stands for itself."""
    try:
        return re.compile(written, flags)
    except re.error:
        return re.compile(escaped, flags)


def has_keywords(text: str, *, keywords: list[str]) -> bool:
    """All of the keywords occur."""
    return all(_found(word, text) for word in keywords)


def keyword_count(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword occurs so often."""
    return _compare(_found(keyword.strip(), text), relation, frequency)


def no_keywords(text: str, *, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a word."""
    return not any(_found(word, text, r"\b") for word in forbidden_words)


def letter_count(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """A letter occurs so often, whatever its case."""
    return _compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def in_language(text: str, *, language: str) -> bool:
    """The text is in a language, or without letters."""
    return _speaks(text, language)


def _speaks(text: str, code: str) -> bool:
    return not any(c.isalpha() for c in text) or language(text) == code.partition("-")[0]


def counts_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """There are so many sentences."""
    return _compare(sentence_count(text), relation, num_sentences)


def counts_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """There are so many paragraphs, with *** between; an empty one counts only as a fault."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def counts_words(text: str, *, num_words: int, relation: str) -> bool:
    """There are so many words."""
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def paragraph_begins(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """There are so many paragraphs, with an empty line between, of which one begins with a word."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.lower()


def counts_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many [placeholders]."""
    return sum(map(_brackets, text.split("\n"))) >= num_placeholders


def _brackets(line: str) -> int:
    count, end = 0, 0
    while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1):
        count += 1
    return count


def has_postscript(text: str, *, postscript_marker: str) -> bool:
    """A line with a postscript."""
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    return _found(pattern, text.lower()) > 0


def counts_bullets(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that begin with * or -."""
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(line.startswith("-") for line in lines)
    place = 0
    while place < len(lines):
        line = lines[place]
        alone = line == "*" and place + 1 < len(lines)  # as published, the line below belongs to it
        count += alone or (line.startswith("*") and line[1:2] not in ("", "*"))
        place += 2 if alone else 1
    return count == num_bullets


def is_option(text: str) -> bool:
    """One of three answers is in it."""
    return any(option in text.strip() for option in OPTIONS)


def counts_highlights(text: str, *, num_highlights: int) -> bool:
    """At least so many *highlights*; **one with two asterisks** on each side is found twice where one with a single one is, as published."""
    single = [part.strip("*").strip() for part in re.findall(r"\*[^\n\*]*\*", text)]
    double = [part[2:-2].strip() for part in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(map(bool, [*single, *double])) >= num_highlights


def counts_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each begun by a word and a number."""
    word = section_spliter.strip()
    return (
        len(_pattern(rf"\s?{word}\s?\d+\s?", rf"\s?{re.escape(word)}\s?\d+\s?").findall(text)) >= num_sections
    )


def is_json(text: str) -> bool:
    """All of it is JSON, in a fence or without."""
    bare = text.strip()
    for fence in FENCES:
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    """A <<title>>."""
    return any(map(_titled, text.split("\n")))


def _titled(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return 0 <= start < end - 2 and bool(line[start:end].lstrip("<").rstrip(">").strip())


def two_responses(text: str) -> bool:
    """Two different texts with ****** between."""
    parts = [part.strip() for part in text.split("******")]
    said = [part for part in parts if part]
    return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The text begins with the prompt."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
    """The text ends with a phrase, quotation marks left aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def counts_capitals(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """There are so many words in capitals."""
    return _compare(capital_words(text), capital_relation, capital_frequency)


def english_capitals(text: str) -> bool:
    """English, all in capitals."""
    return text.isupper() and _speaks(text, "en")


def english_small(text: str) -> bool:
    """English, without any capital."""
    return text.islower() and _speaks(text, "en")


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


def quoted(text: str) -> bool:
    """All of it stands between quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


KINDS: Mapping[str, tuple[Check, Mapping[str, type]]] = {
    "change_case:capital_word_frequency": (counts_capitals, {"capital_frequency": int, "capital_relation": str}),
    "change_case:english_capital": (english_capitals, {}),
    "change_case:english_lowercase": (english_small, {}),
    "combination:repeat_prompt": (repeats_prompt, {"prompt_to_repeat": str}),
    "combination:two_responses": (two_responses, {}),
    "detectable_content:number_placeholders": (counts_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": (has_postscript, {"postscript_marker": str}),
    "detectable_format:constrained_response": (is_option, {}),
    "detectable_format:json_format": (is_json, {}),
    "detectable_format:multiple_sections": (counts_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:number_bullet_lists": (counts_bullets, {"num_bullets": int}),
    "detectable_format:number_highlighted_sections": (counts_highlights, {"num_highlights": int}),
    "detectable_format:title": (has_title, {}),
    "keywords:existence": (has_keywords, {"keywords": list}),
    "keywords:forbidden_words": (no_keywords, {"forbidden_words": list}),
    "keywords:frequency": (keyword_count, {"keyword": str, "frequency": int, "relation": str}),
    "keywords:letter_frequency": (letter_count, {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": (in_language, {"language": str}),
    "length_constraints:nth_paragraph_first_word": (
        paragraph_begins, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "length_constraints:number_paragraphs": (counts_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_sentences": (counts_sentences, {"num_sentences": int, "relation": str}),
    "length_constraints:number_words": (counts_words, {"num_words": int, "relation": str}),
    "punctuation:no_comma": (no_comma, {}),
    "startend:end_checker": (ends_with, {"end_phrase": str}),
    "startend:quotation": (quoted, {}),
}  # fmt: skip
"""Instruction -> its check, and the numbers and words that it needs, with their types."""
