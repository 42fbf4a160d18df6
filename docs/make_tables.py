"""Writes docs/configuration.md, docs/metrics.md, docs/api.md and the tables of docs/algorithms.md from the code: `make docs-tables`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

import lightrft
from lightrft.algorithms.advantages import ADVANTAGES
from lightrft.algorithms.kl import KL
from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.algorithms.selection import GROUP_FILTERS, RESPONSE_FILTERS
from lightrft.config import (
    AlgorithmConfig,
    Config,
    DPOConfig,
    HeldOutConfig,
    RewardTrainingConfig,
    SFTConfig,
    SFTLogConfig,
    layers,
)
from lightrft.config.foreign_names import OPENRLHF, RENAMED, TRL, VERL
from lightrft.trainer.metrics import METRICS

PAGE = Path(__file__).resolve().parent / "configuration.md"
HEAD = """# Configuration

<!-- Written by `make docs-tables` from lightrft/config/ and lightrft/configs/. Edit those. -->

A run is described by **layers from left to right, then flags**. A layer is the name of a shipped YAML file or a path
to your own; a YAML file is nothing but a list of flags, written as sections. The last one to set an option wins.

```
lightrft train grpo my_run.yaml --rollout.group-size 16
lightrft config grpo my_run.yaml --rollout.group-size 16      # prints what would run
```

* A list or a dict is replaced as a whole by a later layer, never merged.
* `--rollout.group-size` and `--rollout.group_size` are the same flag; YAML uses the underscore.
* Values in YAML are read as they are written: `revision: 0123` stays `0123`, `3e-5` is a number where one is wanted.
* In a flag that takes several texts, write one that begins with `-` with a backslash: `--rollout.stop '\\-\\-\\-'`. YAML needs none.
* The run folder holds the whole resolved configuration: `lightrft train RUN/config.yaml` runs it again.
* Your own functions and classes are named by import path, `package.module:name` or `path/to/file.py:name`. So **a layer, and a run
  folder with its `config.yaml`, is code**: take them only from where you would take a program ([SECURITY.md](../SECURITY.md)).
  `config` and `view` run none of it; `plan`, `export` and `replay` refuse to, unless you add `--run-code`.
* Short flags: `--model` for `--model.path`, `--samples` for `--evaluate.samples`, `--capture-steps 3,7` for `--log.capture-steps 3 7`.
"""
SFT_HEAD = """
## Options of `lightrft sft`

The sections `model`, `tasks`, `media`, `optimizer`, `update`, `strategy` and `checkpoint` are those above; `tasks.format` is
`lightrft.datasets.conversations:conversation` and `optimizer.learning_rate` 1e-5 unless set.
"""
REWARD_HEAD = """
## Options of `lightrft reward`

The sections `model`, `tasks`, `optimizer`, `update`, `strategy` and `checkpoint` are those above, `evaluate` and `log` those of
`lightrft sft`; `tasks.format` is `lightrft.datasets.preferences:compared` and `optimizer.learning_rate` 1e-5 unless set.
"""
DPO_HEAD = """
## Options of `lightrft dpo`

The sections `model`, `tasks`, `media`, `optimizer`, `update`, `strategy` and `checkpoint` are those above, `evaluate` and `log` those of
`lightrft sft`; `tasks.format` is `lightrft.datasets.preferences:compared` and `optimizer.learning_rate` 1e-6 unless set.
"""
METRICS_PAGE = PAGE.with_name("metrics.md")
METRICS_HEAD = """# Metrics

<!-- Written by `make docs-tables` from lightrft/trainer/metrics.py. Edit that. -->

`RUN/metrics.jsonl` has one JSON object per step: `step`, `time`, and the metrics below; TensorBoard shows the same. A
metric that a run cannot know is absent (`kl` without a reference model); one that is NaN or infinite is `null`. Words in
capitals stand for a name: with the reward math, `reward/PART` is reward/math. A loss of your own may add metrics.

| metric | meaning |
|---|---|
"""


def page() -> str:
    """The whole page."""
    shared = {type(getattr(Config(), f.name)) for f in dataclasses.fields(Config)}
    own = "".join(sections(SFTConfig, "", leave_out=shared))
    shared |= {HeldOutConfig}
    rated = "".join(sections(RewardTrainingConfig, "", leave_out=shared))
    shared |= {SFTLogConfig}
    preferred = "".join(sections(DPOConfig, "", leave_out=shared))
    options = "".join(sections(Config, ""))
    return f"{HEAD}\n## Shipped layers\n\n{layer_table()}\n## Options\n{options}{SFT_HEAD}{own}{REWARD_HEAD}{rated}{DPO_HEAD}{preferred}"


def metrics_page() -> str:
    """The whole page."""
    return METRICS_HEAD + "".join(f"| `{name}` | {cell(meaning)} |\n" for name, meaning in METRICS.items())


ALGORITHMS_PAGE = PAGE.with_name("algorithms.md")


def algorithms_page(text: str) -> str:
    """The page with what stands between its marks written anew: `<!-- NAME -->` ... `<!-- end -->`."""
    tables = {
        "rows": row_table(),
        "advantages": function_table(ADVANTAGES),
        "losses": function_table({**LOSSES, **ONLINE_LOSSES}),
        "kl": function_table(KL),
        "group_filters": function_table(GROUP_FILTERS),
        "response_filters": function_table(RESPONSE_FILTERS),
    }
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert len(block.findall(text)) == 1, f"docs/algorithms.md needs one block {name}"
        text = block.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


COMING_PAGE = PAGE.with_name("coming_from.md")


def coming_page(text: str) -> str:
    """The page for those who know other frameworks, its tables written anew."""
    tables = {
        "trl": names_table(TRL),
        "verl": names_table(VERL),
        "openrlhf": names_table(OPENRLHF),
        "earlier": names_table(
            {old: f"{old.rpartition('.')[0]}.{new}".lstrip(".") for old, new in RENAMED.items()}
        ),
    }
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert len(block.findall(text)) == 1, f"docs/coming_from.md needs one block {name}"
        text = block.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


def names_table(names: Mapping[str, str | tuple[str, ...]]) -> str:
    """A foreign name, as plain text since it is no option, and ours on each line; of several the first that a command has."""
    lines = ["| there | here |", "|---|---|"]
    for name, ours in names.items():
        several = [ours] if isinstance(ours, str) else ours
        lines.append(f"| {name} | {', '.join(f'`{one}`' for one in several)} |")
    return "\n".join(lines) + "\n"


def row_table() -> str:
    """What each shipped layer that is an algorithm sets; an empty place is the default."""
    columns = ["advantage", "loss", "clip", "average", "group_filter", "response_filter"]
    lines = [f"| layer | {' | '.join(columns)} | KL | more |", "|---" * (len(columns) + 3) + "|"]
    for name, file in layers.shipped().items():
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        chosen = dict(tree.get("algorithm", {}))
        if "tasks" in tree or not chosen:
            continue
        for setting in unread(chosen.get("loss")):
            chosen.pop(setting, None)
        cells = [str(chosen.pop(column, "")) for column in columns]
        weight = chosen.pop("kl_coefficient", None)
        kind, where = chosen.pop("kl", AlgorithmConfig.kl), chosen.pop("kl_in", AlgorithmConfig.kl_in)
        kl = "" if weight is None else "none" if not weight else f"{weight} {kind} in the {where}"
        options = chosen.pop("options", {})
        more = ", ".join(f"{key}: {value}" for key, value in {**chosen, **options}.items())
        lines.append(f"| `{name}` | {' | '.join([*cells, kl, more])} |")
    return "\n".join(lines) + "\n"


def unread(loss: str | None) -> tuple[str, ...]:
    """Settings that a loss does not read."""
    return getattr({**LOSSES, **ONLINE_LOSSES}.get(loss), "unused_settings", ())


def function_table(table: Mapping[str, Callable[..., Any]]) -> str:
    """Name, first sentence and sources of each function, all from its docstring."""
    lines = ["| name | what it is | source | options |", "|---|---|---|---|"]
    for name, function in table.items():
        doc = inspect.getdoc(function) or ""
        about = " ".join(doc.split("\n\n")[0].split())
        links = " ".join(
            f"[{link.split('/')[-1]}]({link})" for link in re.findall(r"\((https?://[^)]+)\)", doc)
        )
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in own)
        lines.append(f"| `{name}` | {cell(about)} | {links} | {options} |")
    return "\n".join(lines) + "\n"


def layer_table() -> str:
    """The layers that are shipped: what each is, and what it sets."""
    rows = ["| layer | what it is | what it sets |", "|---|---|---|"]
    for name, file in layers.shipped().items():
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        settings = "<br>".join(f"`{option}: {value}`" for option, value in leaves(tree))
        rows.append(f"| `{name}` | {layers.describe(file)} | {settings} |")
    return "\n".join(rows) + "\n"


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of everything a layer sets."""
    dicts = {name for name, *_, hint in layers.options(Config) if get_origin(hint) is dict}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in dicts:
            yield from leaves(value, f"{name}.")
        else:
            yield (
                name,
                yaml.safe_dump(value, default_flow_style=True, width=10**9)
                .removesuffix("\n...\n")
                .strip()
                .replace("'", ""),
            )


def sections(cls: type[Any], prefix: str, leave_out: Set[type[Any]] = frozenset()) -> Iterator[str]:
    """One heading and table for a class, then those of its sections but for the classes left out."""
    hints, docs = get_type_hints(cls), layers.field_docs(cls)
    fields = dataclasses.fields(cls)
    about = (inspect.getdoc(cls) or "").split("\n")[0]
    yield f"\n### {f'`{prefix[:-1]}`' if prefix else 'The run'}\n\n{about}\n\n| option | type | default | meaning |\n|---|---|---|---|\n"
    for field in fields:
        if not dataclasses.is_dataclass(hints[field.name]):
            default = field.default_factory() if callable(field.default_factory) else field.default
            shown = layers.yaml_value(default)
            yield f"| `{prefix}{field.name}` | {type_name(hints[field.name])} | `{shown}` | {cell(docs[field.name])} |\n"
    for field in fields:
        if dataclasses.is_dataclass(hints[field.name]) and hints[field.name] not in leave_out:
            yield from sections(hints[field.name], f"{prefix}{field.name}.")


def type_name(hint: Any) -> str:
    """The type of an option in words, ready for a cell."""
    if get_origin(hint) is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {type_name(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"name: {type_name(get_args(hint)[1])}"
    return {"str": "text", "bool": "true \\| false", "int": "integer", "float": "number"}[hint.__name__]


def cell(text: str) -> str:
    """Text whose bars do not end a cell."""
    return text.replace("|", "\\|")


API_PAGE = PAGE.with_name("api.md")
API_HEAD = """# Public names

<!-- Written by `make docs-tables` from the docstrings of the names in lightrft/__init__.py. Edit those. -->

What `import lightrft` offers, each name with its signature and what it says of itself. [From Python](python.md) shows the functions at work,
[Reading a run](run_folder.md) the class `Run`, and [Extending](extending.md) where the types of the data model meet code of your own. Options and their sections:
[Configuration](configuration.md).

Letters of shapes: L tokens of one response, P of its prompt; T tokens of all responses of a batch, S of these responses; R rows of positions.
"""


def api_page() -> str:
    """The whole page: functions, then classes, each in the order of the alphabet."""
    public = {name: getattr(lightrft, name) for name in sorted(lightrft.__all__)}
    functions = {name: one for name, one in public.items() if not inspect.isclass(one)}
    return API_HEAD + "".join(
        described(name, one)
        for name, one in (functions | {n: one for n, one in public.items() if n not in functions}).items()
    )


def described(name: str, found: Any) -> str:
    """One public name: signature, docstring and, of a class, its fields and methods."""
    if not inspect.isclass(found):
        return f"\n## `lightrft.{name}`\n\n{signed(name, found)}{prose(found)}"
    text = f"\n## `lightrft.{name}`\n\n{prose(found)}"
    if found is Config:
        return text + "\nFields: the options and sections of [Configuration](configuration.md).\n"
    docs = layers.field_docs(found) if dataclasses.is_dataclass(found) else {}
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    if rows := [
        f"| `{one.name}` | `{cell(str(one.type))}` | {cell(plain(docs.get(one.name, '')))} |\n"
        for one in fields
        if not one.name.startswith("_")
    ]:
        text += "\n| field | type | meaning |\n|---|---|---|\n" + "".join(rows)
    docs |= {one.name: "" for one in fields}
    for member, value in vars(found).items():
        if member.startswith("_") or member in docs:
            continue
        if isinstance(value, property) and value.__doc__:
            text += f"\n### `{name}.{member}`\n\n{prose(value)}"
        elif inspect.isfunction(value) and value.__doc__:
            text += f"\n### `{name}.{member}()`\n\n{signed(member, value)}{prose(value)}"
    return text


class Bare(str):
    """The text of an annotation, shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def signed(name: str, function: Callable[..., Any]) -> str:
    """A signature as a block of code, one parameter a line where it is long."""
    found = inspect.signature(function)
    own = [
        p if p.annotation is p.empty else p.replace(annotation=Bare(p.annotation))
        for p in found.parameters.values()
    ]
    bare = found.replace(parameters=own, return_annotation=Bare(found.return_annotation))
    whole = f"{name}{bare}"
    if len(whole) > 110:
        lines = [str(p) for p in own]
        star = next((place for place, p in enumerate(own) if p.kind is p.KEYWORD_ONLY), None)
        lines = lines if star is None else [*lines[:star], "*", *lines[star:]]
        whole = f"{name}(\n    " + ",\n    ".join(lines) + f",\n) -> {bare.return_annotation}"
    return f"```text\n{whole}\n```\n\n"


def prose(found: Any) -> str:
    """A docstring as paragraphs, what it says of a parameter as an item of a list; what is indented stays code."""
    lines, text = (inspect.getdoc(found) or "").split("\n"), ""
    for before, line in zip(["", *lines], lines, strict=False):
        is_code, was_code = line.startswith("    "), before.startswith("    ") or not before
        shown = (
            line
            if is_code
            else re.sub(r"^(\w+): ", r"* `\1`: ", plain(line))
            if line[:1].islower()
            else plain(line)
        )
        text += ("\n" if is_code and not was_code else "") + shown + "\n"
    return text


def plain(text: str) -> str:
    """Text whose signs are none of Markdown's, but for code between backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*\[\]]|\b_|_\b)", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    API_PAGE.write_text(api_page(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")
    COMING_PAGE.write_text(coming_page(COMING_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    ALGORITHMS_PAGE.write_text(algorithms_page(ALGORITHMS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
