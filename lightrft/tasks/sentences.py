"""The demo task: turn a sentence into JSON, the way programs need it from a language model.

    The train from Oslo to Rome takes 31 hours.
    Write this as JSON with the keys start, goal and hours.   ->   {"start": "Oslo", "goal": "Rome", "hours": 31}

The first JSON object in the answer must be that one; prose around it costs nothing. A small instruct model knows JSON,
but nests, invents keys, or copies wrongly. The words of the evaluation sentences (names, places, things, jobs) never
occur in training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightrft.types import Record

MAX_TOKENS = 96
TRAIN, EVALUATE = 2000, 240
EVALUATION_SHARE = 3
"""Every third word of each list is kept for the evaluation."""


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tina Viktor Lena Tom "
    "Nora Max Julia Oscar Sara Peter Maria Simon Laura Adam Helen Daniel Alice Frank"
)
CITIES = _words(
    "Paris London Rome Madrid Berlin Vienna Oslo Lisbon Prague Dublin Athens Warsaw Boston Chicago Denver Tokyo Dallas "
    "Seattle Munich Geneva Zurich Milan Naples Venice Toronto Sydney Delhi Cairo Lima Seoul"
)
JOBS = _words(
    "teacher doctor baker pilot nurse farmer painter driver lawyer cook dentist singer carpenter judge gardener tailor "
    "plumber librarian waiter butcher sailor writer mechanic photographer"
)
THINGS = _words(
    "lamps chairs books apples pencils candles cups shirts baskets tickets bottles carpets plates flowers hats bags toys "
    "spoons mirrors blankets pillows clocks shoes brushes"
)

PERSON = (
    "{name} is {age} years old and lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "Meet {name}, {age}, from {city}.",
    "My friend {name} from {city} turned {age} last week.",
)
JOB = (
    "{name} works as a {job} in {city}.",
    "In {city}, {name} found work as a {job}.",
    "{name} lives in {city} and is a {job}.",
    "Ask {name}, the {job} from {city}.",
)
TRIP = (
    "The train from {start} to {goal} takes {hours} hours.",
    "It takes {hours} hours to drive from {start} to {goal}.",
    "We left {start} in the evening and reached {goal} {hours} hours later.",
    "The bus to {goal} leaves {start} and is on the road for {hours} hours.",
)
SALE = (
    "{name} bought {count} {item} for {price} dollars.",
    "For {price} dollars, {name} got {count} {item}.",
    "{name} sold {count} {item} and earned {price} dollars.",
    "It cost {name} {price} dollars to order {count} {item}.",
)


@dataclass(frozen=True)
class Words:
    """The words one split may use."""

    names: list[str]
    cities: list[str]
    jobs: list[str]
    things: list[str]


def questions(split: str, seed: int, kind: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Distinct questions with their target objects, the four kinds of sentence in turn, or those of them that are of one kind.

    The evaluation split is the same for every seed.
    """
    held_out = split == "evaluate"
    words = Words(*(_part(all_words, held_out) for all_words in (NAMES, CITIES, JOBS, THINGS)))
    draw = random.Random("sentences/evaluate" if held_out else f"sentences/train/{seed}")
    found: dict[str, dict[str, Any]] = {}
    kinds = list(KINDS.values())
    size = EVALUATE if held_out else TRAIN
    while len(found) < size:
        templates, target = kinds[len(found) % len(kinds)](draw, words)
        found.setdefault(question(draw.choice(templates), target), target)
    return list(found.items())[list(KINDS).index(kind) :: len(KINDS)] if kind else list(found.items())


def kind_named(option: str) -> str:
    """The kind of sentence that an option of the task names; "" for none, which is all. ValueError where there is no such kind."""
    if option and option not in KINDS:
        raise ValueError(f"task 'demo:{option}': there are demo and demo:{', demo:'.join(KINDS)}.")
    return option


def question(template: str, target: Mapping[str, Any]) -> str:
    """The sentence, and what is wanted."""
    *most, last = target
    return f"{template.format(**target)}\nWrite this as JSON with the keys {', '.join(most)} and {last}."


def gold(record: Record) -> str:
    """The target as JSON."""
    return json.dumps(record.target)


def pairs(split: str, seed: int) -> list[dict[str, Any]]:
    """For each question the right object as the chosen response, and a rejected one with a fault of form or content.

    Half of the faults are a value exchanged for another of its kind. A quarter is longer: the object inside another one, or a value with a word
    too many. A quarter is shorter: without one of the values, or without its end. So lengths say nothing.
    """
    rows = []
    for number, (asked, target) in enumerate(questions(split, seed)):
        draw = random.Random(f"pairs/{asked}")
        # Kinds of sentence come in turn, by fours: each kind meets each fault.
        fault = FAULTS[(number + number // len(FAULTS)) % len(FAULTS)]
        chosen = json.dumps(target)
        rows.append({"prompt": asked, "chosen": chosen, "rejected": fault(draw, target, split == "evaluate")})
    return rows


def _exchanged(draw: random.Random, target: Mapping[str, Any], held_out: bool) -> str:
    """One value is another of its kind: a word from the same list, or a number of as many digits."""
    key = draw.choice(list(target))
    value = target[key]
    if isinstance(value, int):
        others: list[Any] = [n for n in range(1, 100) if len(str(n)) == len(str(value)) and n != value]
    else:
        words = next(found for found in (NAMES, CITIES, JOBS, THINGS) if value in found)
        others = [word for word in _part(words, held_out) if word not in target.values()]
    return json.dumps({**target, key: draw.choice(others)})


def _nested(draw: random.Random, target: Mapping[str, Any], held_out: bool) -> str:
    """The object inside another one."""
    return json.dumps({draw.choice(("result", "data", "answer")): target})


def _embroidered(draw: random.Random, target: Mapping[str, Any], held_out: bool) -> str:
    """A value has a word behind it that is not in the sentence; a number becomes a text by that."""
    key = draw.choice(list(target))
    word = draw.choice(_part(draw.choice((NAMES, CITIES, JOBS, THINGS)), held_out))
    return json.dumps({**target, key: f"{target[key]} {word}"})


def _lacking(draw: random.Random, target: Mapping[str, Any], held_out: bool) -> str:
    """Without one of its values, whichever."""
    left_out = draw.choice(list(target))
    return json.dumps({key: value for key, value in target.items() if key != left_out})


def _cut_short(draw: random.Random, target: Mapping[str, Any], held_out: bool) -> str:
    """Without its end."""
    whole = json.dumps(target)
    return whole[: -draw.randint(1, len(whole) // 2)]


FAULTS = (_exchanged, _nested, _exchanged, _lacking, _exchanged, _embroidered, _exchanged, _cut_short)


def _person(draw: random.Random, words: Words) -> tuple[tuple[str, ...], dict[str, Any]]:
    return PERSON, {
        "name": draw.choice(words.names),
        "age": draw.randint(18, 89),
        "city": draw.choice(words.cities),
    }


def _job(draw: random.Random, words: Words) -> tuple[tuple[str, ...], dict[str, Any]]:
    return JOB, {
        "name": draw.choice(words.names),
        "job": draw.choice(words.jobs),
        "city": draw.choice(words.cities),
    }


def _trip(draw: random.Random, words: Words) -> tuple[tuple[str, ...], dict[str, Any]]:
    start, goal = draw.sample(words.cities, 2)
    return TRIP, {"start": start, "goal": goal, "hours": draw.randint(2, 40)}


def _sale(draw: random.Random, words: Words) -> tuple[tuple[str, ...], dict[str, Any]]:
    count, price = draw.randint(2, 30), draw.randint(31, 95)
    return SALE, {
        "name": draw.choice(words.names),
        "item": draw.choice(words.things),
        "count": count,
        "price": price,
    }


KINDS = {"person": _person, "job": _job, "trip": _trip, "sale": _sale}


def _part(words: list[str], held_out: bool) -> list[str]:
    return [word for place, word in enumerate(words) if (place % EVALUATION_SHARE == 0) == held_out]
