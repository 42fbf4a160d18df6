"""A YAML file is a list of flags: layers from left to right, flags last, one parser, one kind of error.

    lightrft train grpo my_run.yaml --rollout.group-size 16

A bare word is a shipped layer (lightrft/configs/WORD.yaml), a path is the user's own file. Each file is flattened into
`--section.option=value` by walking the dataclass's type hints, and all of it goes through one `tyro.cli` call, so the
last one to set an option wins. Lists and dicts are replaced as a whole by a later layer, never merged.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Hashable, Iterator, Sequence
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from lightrft.config.answers import answer
from lightrft.config.parser import ImpossibleError, parse
from lightrft.config.words import refuse_unreadable, refuse_value, without_empty
from lightrft.utils.paths import expanded

C = TypeVar("C")
FOLDER = Path(__file__).resolve().parent.parent / "configs"
EXTENDS = "extends"
"""Key of a file whose value names the layers that it stands on."""
YAML_FLOATS = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}


def load(args: Sequence[str], cls: type[C], *, prog: str = "lightrft train", description: str = "") -> C:
    """The configuration that layers and flags describe.

    `args` is what stands after the command: layers first, then flags. A layer that does not exist or sets an unknown
    option raises ValueError naming the file, and so do a bad flag and an impossible combination. SystemExit after --help.
    """
    words, flags = split(args)
    flags = without_empty(flags, {name: hint for name, _, _, hint in options(cls)})
    refuse_misplaced(words, flags, cls)
    files = [file for word in words for file in chain(word)]
    parsed = [file_flags(file, cls) for file in files]
    merged = [flag for part in parsed for flag in part]
    try:
        return parse([*merged, *flags], cls, prog=prog, description=description)
    except ImpossibleError as told:
        where = _file_at_fault(files, parsed, cls)
        raise ValueError(f"{told} The value stands in {where}." if where else str(told)) from None


def refuse_misplaced(words: Sequence[str], flags: Sequence[str], cls: type[Any]) -> None:
    """ValueError for a layer that is an option without its dashes, and for flags that no option could be read from."""
    hints = {name: hint for name, _, _, hint in options(cls)}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and not Path(word).exists():
            flag = f"--{name.replace('_', '-')}"
            told = (
                f"Write it as a flag: {flag} {value}"
                if name.replace("-", "_") in hints
                else answer(flag, list(hints), flags=True)
            )
            raise ValueError(f"'{word}' is no layer. {told}".rstrip())
    refuse_unreadable(flags, hints, shipped())


def chain(word: str) -> list[Path]:
    """The file of a layer behind the files that it extends, each once. ValueError for a circle."""
    found: list[Path] = []

    def visit(file: Path, behind: tuple[Path, ...]) -> None:
        if file in behind:
            circle = " -> ".join(str(one) for one in (*behind, file))
            raise ValueError(f"{file}: extends itself: {circle}. Remove one of the names.")
        for name in extended(file):
            near = file.parent / name
            visit(near if near.is_file() else find_layer(name), (*behind, file))
        if file not in found:
            found.append(file)

    visit(find_layer(word), ())
    return found


def extended(file: Path) -> list[str]:
    """The layers that a file names under `extends`, in their order."""
    named = read(file).get(EXTENDS, [])
    if isinstance(named, str):
        named = [named] if named else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(
            f"{file}: {EXTENDS}={named}: expected names of layers, e.g. {EXTENDS}: [grpo, fsdp]."
        )
    return named


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Layers and flags: everything before the first word that begins with '-', and the rest."""
    first = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def shipped() -> dict[str, Path]:
    """Name -> file of the layers that come with LightRFT, sorted by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def describe(file: Path) -> str:
    """The first comment line of a layer: what it is for."""
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def find_layer(layer: str) -> Path:
    """The file behind a shipped layer's name or a path. ValueError if there is none."""
    names = shipped()
    if layer in names:
        return names[layer]
    path = expanded(layer, "layer")
    if path.is_dir():
        raise ValueError(f"layer '{layer}' is a folder. Name a file in it, e.g. {path}/config.yaml.")
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ValueError(f"no configuration file '{layer}' (looked for {path.resolve()}).")
    close = difflib.get_close_matches(layer, names, n=1)
    perhaps = f" Perhaps you meant: {close[0]}." if close else ""
    raise ValueError(
        f"no layer named '{layer}'.{perhaps}\n  shipped: {', '.join(names)}.  Your own: path/to/file.yaml.  Flags begin with --."
    )


def file_flags(file: Path, cls: type[Any]) -> list[str]:
    """A YAML file as flags of the dataclass `cls`. ValueError naming file and option for what does not fit.

    A file about rows may name their rewards (tasks.rewards) and serve commands that score nothing as well, which leave them out.
    """
    tree = {key: value for key, value in read(file).items() if key != EXTENDS}
    flags = list(_flatten(tree, cls, file))
    return _without_rewards(flags) if _has_idle_rewards(tree, cls) else flags


def _has_idle_rewards(tree: dict[str, Any], cls: type[Any]) -> bool:
    """Whether a file names rewards of its rows, and `cls` has no section rewards: its command scores no responses."""
    tasks = tree.get("tasks")
    return isinstance(tasks, dict) and bool(tasks.get("rewards")) and "rewards" not in get_type_hints(cls)


def _without_rewards(flags: Sequence[str]) -> list[str]:
    """Flags of a file without tasks.rewards and its values."""
    first = flags.index("--tasks.rewards")
    after = next((n for n, flag in enumerate(flags) if n > first and flag.startswith("--")), len(flags))
    return [*flags[:first], *flags[after:]]


def tree_flags(tree: dict[str, Any], cls: type[Any], told: str) -> list[str]:
    """Settings by section, every value a text, as flags; an error begins with `told` in place of a file."""
    return list(_flatten(tree, cls, Path(told)))


def read(file: Path) -> dict[str, Any]:
    """What a YAML file says, every value a text. ValueError for what is not `option: value`."""
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a YAML file: {error}") from None
    except RecursionError:
        raise ValueError(f"{file}: nested too deep for options, which have four levels at most.") from None
    if tree in (None, ""):
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: expected 'option: value' lines, found a {type(tree).__name__}.")
    return tree


def undone(words: Sequence[str], cls: type[Any]) -> list[str]:
    """One sentence for each option that a layer sets to another value than a layer before it, or that is left out here."""
    settings: dict[str, tuple[str, tuple[str, ...]]] = {}
    found = []
    for file in (file for word in words for file in chain(word)):
        if _has_idle_rewards(read(file), cls):
            found.append(f"{file.stem} sets tasks.rewards, and this command scores no responses: left out.")
        for name, value in _settings(file_flags(file, cls)):
            before = settings.get(name)
            if before is not None and list(map(_number, before[1])) != list(map(_number, value)):
                found.append(
                    f"{file.stem} sets {name} to {' '.join(value)}, which {before[0]} had set to {' '.join(before[1])}."
                )
            settings[name] = file.stem, value
    return found


def _number(text: str) -> float | str:
    """The number that a text is, so that 3e-3 is 0.003; any other text as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def _settings(flags: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Flags of a file as name and value."""
    starts = [n for n, flag in enumerate(flags) if flag.startswith("--")]
    for start, end in pairwise([*starts, len(flags)]):
        name, equals, value = flags[start].removeprefix("--").partition("=")
        yield name, (value,) if equals else tuple(flags[start + 1 : end])


def fits(file: Path, cls: type[Any]) -> bool:
    """Whether every option that a YAML file sets is one of `cls`."""
    try:
        for one in chain(str(file)):
            file_flags(one, cls)
    except ValueError:
        return False
    return True


def to_yaml(config: Any) -> str:
    """A configuration as a YAML layer with each option's meaning beside it. Loading it gives an equal configuration."""
    return "\n".join(_lines(config, indent="")) + "\n"


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Field name -> the docstring under it, on one line, for the fields of a dataclass that have one, inherited ones included."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    body = _classes(sys.modules[cls.__module__])[cls.__qualname__]
    for field, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
        ):
            docs[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


@cache
def _classes(module: ModuleType) -> dict[str, ast.ClassDef]:
    """Name -> definition of the classes at the top of a module, which is read once."""
    top = ast.parse(inspect.getsource(module)).body
    return {node.name: node for node in top if isinstance(node, ast.ClassDef)}


def options(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any], dataclasses.Field[Any], Any]]:
    """Every option below a dataclass: dotted name, the class that holds it, its field, its type; sections opened up."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]  # a class, by the type hint
        else:
            yield f"{prefix}{field.name}", cls, field, hint


def values(config: Any) -> dict[str, Any]:
    """The value of every option, by its dotted name."""
    return {name: reduce(getattr, name.split("."), config) for name, *_ in options(type(config))}


NOTHING = ("null", "Null", "NULL", "~", "None")
"""What says in YAML, or to who thinks of Python, that there is no value; in quotes it is the word."""


class _TextLoader(yaml.BaseLoader):
    """Every value stays the text that was written, for the one parser to read; a key given twice is an error.

    YAML's own reading would turn `revision: 0123` into 83, `name: on` into true, and `3e-5` into a string. A null is an empty text.
    """

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        if node.style is None and node.value in NOTHING:
            return ""
        return str(super().construct_scalar(node))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "the name of an option is a list or a table", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _flatten(
    tree: dict[str, Any], cls: type[Any], file: Path, prefix: str = "", top: type[Any] | None = None
) -> Iterator[str]:
    hints = get_type_hints(cls)
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise ValueError(f"{file}: no option '{name}'.{_perhaps(name, prefix, cls, top or cls)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if isinstance(value, dict):
                yield from _flatten(value, hint, file, f"{name}.", top or cls)  # type: ignore[arg-type]  # a class, by the type hint
            elif value != "":
                raise ValueError(f"{file}: '{name}' is a section: write its options below it, indented.")
        elif get_origin(hint) is dict:
            if not isinstance(value, dict):
                raise ValueError(
                    f"{file}: {name}={value}: expected name-value pairs, e.g. {name}: {{NAME: 1.0}}."
                )
            kinds = get_args(hint)
            yield f"--{name}"
            yield from (
                _word(x, kind, name, file)
                for pair in value.items()
                for x, kind in zip(pair, kinds, strict=True)
            )
        elif get_origin(hint) is list:
            values = value if isinstance(value, list) else [value]
            yield f"--{name}"
            yield from (_word(x, get_args(hint)[0], name, file) for x in values)
        else:
            yield f"--{name}={_word(value, hint, name, file)}"


def _word(value: Any, kind: Any, name: str, file: Path) -> str:
    """One value as a command-line word. A text that begins with '-' would be taken for a flag and gets a backslash."""
    if not isinstance(value, str):
        raise ValueError(f"{file}: {name}={value}: expected one value, found a {type(value).__name__}.")
    if kind is str:
        return "\\" + value if re.match(r"\\*-", value) else value
    word = YAML_FLOATS.get(value, value) if kind is float else value
    refuse_value((word,), kind, f"{file}: {name}={value}", f"{name}: ")
    return word


def _perhaps(name: str, prefix: str, cls: type[Any], top: type[Any]) -> str:
    """A suggestion: what a foreign or an earlier name is called here, the closest name, or all of the section."""
    told = answer(name, [known for known, *_ in options(top)])
    here = [prefix + f.name for f in dataclasses.fields(cls)]
    return f" {told}" if told else f" There are: {', '.join(here)}."


def _file_at_fault(files: Sequence[Path], parsed: Sequence[Sequence[str]], cls: type[Any]) -> Path | None:
    """The first of the files that has an error all by itself; None if none has."""
    for file, flags in zip(files, parsed, strict=True):
        try:
            parse(flags, cls, prog="lightrft", description="")
        except ImpossibleError:
            return file
    return None


def _lines(config: Any, indent: str) -> Iterator[str]:
    docs = field_docs(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            about = (inspect.getdoc(type(value)) or "").split("\n")[0]
            yield f"{indent}{field.name}:  # {about}"
            yield from _lines(value, indent + "  ")
        else:
            line = f"{indent}{field.name}: {yaml_value(value)}"
            yield f"{line:<44}  # {docs[field.name]}" if field.name in docs else line


class _TextDumper(yaml.SafeDumper):
    """Puts in quotes whatever `_TextLoader` would not take for a text."""


_TextDumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None$"), ["N"])


def yaml_value(value: Any) -> str:
    """One value in YAML on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(
        value,
        Dumper=_TextDumper,
        default_style=style,
        default_flow_style=True,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("...\n").rstrip("\n")
