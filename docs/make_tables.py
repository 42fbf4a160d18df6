"""Writes docs/configuration.md, docs/metrics.md and the tables of docs/algorithms.md from the code: `make docs-tables`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    METRICS_PAGE.write_text(metrics_page(), encoding="utf-8")
    COMING_PAGE.write_text(coming_page(COMING_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    ALGORITHMS_PAGE.write_text(algorithms_page(ALGORITHMS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
