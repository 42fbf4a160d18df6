"""From what a Python program gives, objects among it, to settings as a command line gives them, read by the same parser."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lightrft.config import RewardConfig, RunConfig, layers
from lightrft.config.parser import parse
from lightrft.datasets.sources import is_file
from lightrft.runs.layout import RunFolder
from lightrft.tasks.rows import task_of
from lightrft.tasks.table import TASKS, Split, Task, load_task
from lightrft.utils.inline import PREFIX

log = logging.getLogger("lightrft")
C = TypeVar("C", bound=RunConfig)
Tree = dict[str, Any]
"""Settings by section, every value a text, a list or a dict of texts."""
ROWS = "rows"
"""Name of the task of rows that are given without a name."""
NO_EVALUATION = {"before_and_after": False, "before": True, "every_steps": 0}


@dataclass
class Given(Mapping[str, Any]):
    """Settings so far, and the objects that they name."""

    called: str
    """The function that was called, as errors name it."""
    tree: Tree = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    """inline:NAME -> object."""

    def __getitem__(self, name: str) -> Any:
        return self.tree[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)

    def put(self, name: str, value: Any) -> None:
        """Sets an option by its dotted name, or a section to a dict of options or to its class of options."""
        *above, last = name.split(".")
        place = self.tree
        for part in above:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ValueError(
                    f"{self.called}: {name} is set, and so is all of {part}. Leave one of them out."
                )
            place = inner
        text = self.text(name, value)
        there = place.get(last)
        place[last] = {**there, **text} if isinstance(there, dict) and isinstance(text, dict) else text

    def text(self, name: str, value: Any) -> Any:
        """A value as a layer has it; what can be called becomes a name that leads to it."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        if value is None or isinstance(value, bool):
            return "" if value is None else str(value).lower()
        if isinstance(value, str | int | float | Path):
            return str(value)
        if isinstance(value, Mapping):
            return {str(key): self.text(f"{name}.{key}", one) for key, one in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.text(name, one) for one in value]
        if callable(value):
            return self.hold(name.rpartition(".")[2], value)
        raise ValueError(
            f"{self.called}: {name}={value!r:.80}: a {type(value).__name__} is no setting. Give a text, a number, a list or a dict."
        )

    def hold(self, name: str, thing: Any) -> str:
        """The name under which a run finds an object of the program. ValueError if another one is called so."""
        own = getattr(thing, "name", None) if isinstance(thing, Task) else getattr(thing, "__name__", None)
        called = re.sub(r"\W+", "_", own if own and own != "<lambda>" else name).strip("_") or "object"
        full = f"{PREFIX}{called}"
        if self.objects.setdefault(full, thing) is not thing:
            raise ValueError(
                f"{self.called}: two different objects are called '{called}', and files and metrics tell them apart by name. Rename one, or "
                f"give rewards as a dict: rewards={{'{called}': ..., '{called}_2': ...}}"
            )
        return full

    def section(self, name: str, value: Any, cls: type[Any]) -> bool:
        """Puts a value if it is a section's class of options, or a dict of nothing but its options; whether it did."""
        known = {f.name for f in fields(cls)}
        if isinstance(value, cls) or (isinstance(value, Mapping) and value and set(value) <= known):
            self.put(name, value)
            return True
        return False


def add_data(given: Given, data: Any, evaluate: Any, cls: type[RunConfig]) -> None:
    """Puts what to learn from, and what to evaluate on."""
    if isinstance(evaluate, Mapping) and "data" in evaluate:
        given.put("evaluate", {name: value for name, value in evaluate.items() if name != "data"})
        evaluate = evaluate["data"]
    if evaluate is not None and given.section("evaluate", evaluate, type(_sections(cls)["evaluate"]())):
        evaluate = None
    if isinstance(evaluate, bool):
        given.put("evaluate", {"before_and_after": True} if evaluate else NO_EVALUATION)
        evaluate = None
    held_out = rows_of(given, evaluate)
    learned = rows_of(given, data)
    if learned is not None:
        both: dict[Split, Any] = {"train": learned}
        if held_out is not None:
            both["evaluate"] = held_out
        given.put("tasks.train", {given.hold(ROWS, task_of(ROWS, both)): 1.0})
        if evaluate is None and "evaluate" not in given:
            given.put("evaluate", NO_EVALUATION)
    elif data is not None:
        given.put("tasks", named(given, data, "train"))
    if evaluate is not None and (learned is None or held_out is None):
        add_held_out(given, evaluate, cls)
    fit_target(given, cls, learned)


def add_held_out(given: Given, data: Any, cls: type[RunConfig], argument: str = "evaluate") -> None:
    """Puts what to evaluate on, where that is not the other split of what is learned from."""
    rows = rows_of(given, data)
    if rows is None:
        given.put("tasks", named(given, data, "evaluate"))
        return
    name = ROWS if f"{PREFIX}{ROWS}" not in given.objects else "held_out"
    task = task_of(name, {"evaluate": rows}, {"evaluate": argument})
    given.put("tasks.evaluate", {given.hold(name, task): 1.0})
    fit_target(given, cls, rows)


def fit_target(given: Given, cls: type[RunConfig], rows: Any) -> None:
    """Puts that rows have no reference answer, where the first has none and nothing else is said of their form."""
    tasks = _sections(cls)["tasks"]()
    said = given.get("tasks", {})
    if rows is None or tasks.format != "columns" or {"format", "target_field"} & set(said):
        return
    if isinstance(rows[0], Mapping) and tasks.target_field not in rows[0]:
        given.put("tasks.target_field", "")


def _sections(cls: type[RunConfig]) -> dict[str, Any]:
    """Name of a section -> what makes it."""
    return {f.name: f.default_factory for f in fields(cls)}


def rows_of(given: Given, data: Any) -> Any:
    """Rows, where these are given themselves: a datasets.Dataset, or a list of dicts or of texts; None for names and tasks."""
    if data is None or isinstance(data, str | Path | Mapping | Task) or data is False:
        return None
    if hasattr(data, "with_format") and hasattr(data, "__len__"):
        return data
    if isinstance(data, list | tuple):
        if not data:
            raise ValueError(
                f"{given.called}: data=[]: there are no rows. Give at least one, e.g. {{'prompt': '2 + 3?', 'target': '5'}}."
            )
        return [{"prompt": row} if isinstance(row, str) else row for row in data]
    raise ValueError(
        f"{given.called}: data is a {type(data).__name__}. Give a list of dicts, a datasets.Dataset, a Task, or the name of a task or a file; "
        "of what can be read only once make a list: data=list(rows)."
    )


def named(given: Given, data: Any, split: str) -> Tree:
    """The options of section `tasks` for tasks by name (with weights, or one), a task of the program, or a file."""
    if isinstance(data, Task):
        return {split: {given.hold(data.name, data): 1.0}}
    if isinstance(data, Mapping):
        return {split: dict(data)}
    place = str(data)
    is_task = place.partition(":")[0] in TASKS or (
        ":" in place and not is_file(place) and "/" not in place.split(":")[0]
    )
    if is_task or ".py:" in place:
        return {split: {place: 1.0}}
    return {split: {"file": 1.0}, f"{split}_file": place}


def add_rewards(given: Given, rewards: Any) -> None:
    """Puts rewards: a function or a name, several, or a dict of them with weights; or the whole section."""
    if given.section("rewards", rewards, RewardConfig):
        functions = rewards.get("functions") if isinstance(rewards, Mapping) else None
        if functions is None:
            return
        given.tree["rewards"].pop("functions")
        rewards = functions
    given.put("rewards.functions", dict(_weighted(given, rewards)))


def _refuse_options(given: Given, rewards: Mapping[Any, Any]) -> None:
    """ValueError for options among functions, which would be taken for names of rewards."""
    options = [name for name in rewards if name in {f.name for f in fields(RewardConfig)}]
    if options:
        raise ValueError(
            f"{given.called}: rewards has functions and the option '{options[0]}' side by side. Write rewards={{'functions': {{...}}, "
            f"'{options[0]}': {rewards[options[0]]!r}}}"
        )


def _weighted(given: Given, rewards: Any) -> Iterator[tuple[str, float]]:
    if isinstance(rewards, str) or callable(rewards):
        rewards = [rewards]
    if isinstance(rewards, Mapping):
        _refuse_options(given, rewards)
        for key, value in rewards.items():
            function, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
            if callable(function):
                yield _held(given, str(key), function), weight
            elif callable(key):
                yield given.hold("reward", key), value
            else:
                yield str(key), value
        return
    if not isinstance(rewards, Sequence):
        raise ValueError(
            f"{given.called}: rewards is a {type(rewards).__name__}. Give a function, a name, a list of these, or a dict of names or "
            "functions with weights: rewards={'math': 1.0, short: -0.1}"
        )
    for one in rewards:
        if not isinstance(one, str) and not callable(one):
            raise ValueError(
                f"{given.called}: rewards has {one!r:.80}, which is no function and no name. For example: rewards=[score, 'math']"
            )
        yield (one if isinstance(one, str) else given.hold("reward", one)), 1.0


def _held(given: Given, name: str, function: Callable[..., Any]) -> str:
    """A function under the name that a dict gives it: NAME, or TASK/NAME for one task alone."""
    task, slash, own = name.rpartition("/")
    full = PREFIX + re.sub(r"\W+", "_", own)
    if given.objects.setdefault(full, function) is not function:
        raise ValueError(f"{given.called}: rewards has two different functions called '{own}'. Rename one.")
    return f"{task}{slash}{full}"


def scored_by(data: Any, rewards: Any) -> Any:
    """The task that evaluations are to score by these rewards: its own give way, where it has some."""
    if rewards is None or not isinstance(data, str | Task):
        return data
    if isinstance(data, str) and (data.partition(":")[0] not in TASKS or data == "file"):
        return data
    task = load_task(data) if isinstance(data, str) else data
    return dataclasses.replace(task, rewards={})


def loaded(
    cls: type[C], given: Given, *, config: C | None, named_layers: Sequence[str], resume: Path | None
) -> C:
    """The settings, each over those before it: of the run that goes on, of a Config, of layers, and what was given by name.

    ValueError as from a command line, naming option, value and cure.
    """
    flags: list[str] = []
    if resume is not None:
        flags += layers.file_flags(RunFolder(resume).config, cls)
    if config is not None:
        whole = Given(given.called)
        whole.put("config", config)
        flags += layers.tree_flags(whole["config"], cls, given.called)
    for told in layers.undone(named_layers, cls):
        log.warning("%s", told)
    for word in named_layers:
        flags += [flag for file in layers.chain(word) for flag in layers.file_flags(file, cls)]
    flags += layers.tree_flags(given.tree, cls, given.called)
    try:
        found = parse(flags, cls, prog=given.called, description="")
    except SystemExit:
        raise ValueError(f"{given.called}: the settings cannot be read; see above.") from None
    name = "-".join(word for word in named_layers if word in layers.shipped())
    return found if found.name != "run" or not name else dataclasses.replace(found, name=name)
