"""Every number of every section has a range, and what lies outside of it, or is not finite, is refused by name."""

from __future__ import annotations

import dataclasses
import math
import typing

import pytest

from lightrft import config
from lightrft.config.ranges import ANY, RANGES, WITHOUT_SECTION, Range


def sections():
    """Name of a section as in RANGES, and its class; those of other commands under the name that they share with training's."""
    found = []

    def walk(name, cls):
        found.append((name, cls))
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[f.name]):
                inner = f.name if name in WITHOUT_SECTION else f"{name}.{f.name}"
                walk(inner, hints[f.name])

    walk("", config.Config)
    walk("sft", config.SFTConfig)
    walk("reward", config.RewardTrainingConfig)
    walk("dpo", config.DPOConfig)
    return found


def takes_numbers(hint):
    """Whether a setting of that type holds numbers, by itself or in a list or a table."""
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(x, (int, float)) for x in typing.get_args(hint))
    if typing.get_origin(hint) in (list, dict):
        return typing.get_args(hint)[-1] in (int, float)
    return hint in (int, float)


def numeric(cls):
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if takes_numbers(hints[f.name])}


NUMBERS = sorted({(section, name) for section, cls in sections() for name in numeric(cls)})
CLASSES = {}
for _section, _cls in sections():
    CLASSES.setdefault(_section, []).append(_cls)


def test_every_number_has_a_range_and_every_range_a_number():
    assert sorted((section, name) for section, found in RANGES.items() for name in found) == NUMBERS


def given(hint, number):
    """A setting of that type which holds this number."""
    origin = typing.get_origin(hint)
    if origin is list:
        return [number, number]
    return {"x": number} if origin is dict else number


def outside(found):
    """Numbers just out of a range, and those that are not finite."""
    numbers = [math.nan, math.inf, -math.inf]
    for bound, without, away in ((found.low, found.without_low, -1), (found.high, found.without_high, 1)):
        if math.isfinite(bound):
            numbers.append(bound if without else bound + away)
    return numbers


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_what_is_out_of_range_is_refused_by_name(section, name):
    found = RANGES[section][name]
    for cls in (c for c in CLASSES[section] if name in numeric(c)):
        for number in outside(found):
            setting = name if section in WITHOUT_SECTION else f"{section}.{name}"
            with pytest.raises(ValueError, match=rf"^{setting}=.*must be {found}\.$"):
                cls(**{name: given(numeric(cls)[name], number)})


def test_every_default_lies_in_its_range():
    for _, cls in sections():
        cls()


def test_ranges_are_told_in_words():
    assert str(Range(0, 1, without_low=True)) == "above 0 and at most 1"
    assert str(Range(0, 1, without_high=True)) == "at least 0 and below 1"
    assert str(Range(1)) == "at least 1"
    assert str(ANY) == "a finite number"


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.stop=\[''\]: an empty text"):
        config.RolloutConfig(stop=[""])
