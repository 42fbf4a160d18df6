"""`lightrft push`: the model of a finished run to the hub, with a card that says how it was made."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lightrft import __version__
from lightrft.console.web import one_file
from lightrft.models.folder import ADAPTER
from lightrft.runs.layout import RunFolder
from lightrft.runs.reader import Run
from lightrft.runs.shareable import shareable
from lightrft.utils.failures import first_line
from lightrft.utils.hub import unreachable
from lightrft.utils.paths import expanded

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
OF_RUNS = ("model", "adapter")
"""Folders of a run that hold a model."""
ROW = ("advantage", "loss", "average", "clip", "kl_coefficient", "response_filter", "group_filter")
"""Settings of an algorithm that its row in the card has."""
SETTINGS, VIEWER = "training.yaml", "run.html"
VIEWER_MIB = 20.0
"""Largest size of the run as one file for a browser."""


def push(run: Path, name: str, *, dry_run: bool, private: bool, viewer: bool = False) -> int:
    """Uploads RUN/model, RUN/adapter if there is one, the settings and the card, and with `viewer` the run as one file for a browser; with
    `dry_run` only shows them."""
    files = RunFolder(run)
    check(files, name)
    text, uploads = card(files, viewer=viewer), dict(uploaded(files))
    if viewer:
        uploads[VIEWER] = _viewer(files)
    if dry_run:
        out = Console(soft_wrap=True, markup=False, highlight=False)
        out.print(text)
        for place, file in uploads.items():
            size = len(file) if isinstance(file, bytes) else file.stat().st_size
            out.print(f"{size / 1e6:10.3f} MB  {place}")
        out.print(f"{len(uploads)} files and README.md would go to {name}; nothing was uploaded.")
        return 0
    if why := unreachable():
        raise ValueError(
            f"{name}: {why}. Look at the files with --dry-run, and push where there is a network."
        )
    _upload(uploads, text, name, private)
    return 0


def check(files: RunFolder, name: str) -> None:
    """ValueError for a name that the hub does not take, or a run without a finished model."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name}: the hub names models OWNER/NAME, with letters, digits, '.', '-' and '_'.")
    if not files.model.is_dir() or not files.read_summary():
        raise ValueError(
            f"{files.path}: the run has not finished, so there is no model to push. Finish it, or make a folder of a checkpoint: lightrft export "
            f"{files.path} FOLDER"
        )


def uploaded(files: RunFolder) -> Iterator[tuple[str, bytes | Path]]:
    """Name in the repository -> file, or what it holds where a place on this machine was taken out."""
    for folder, below in ((files.model, ""), (files.adapter, "adapter/")):
        for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if file.is_file():
                held = file if file.name != ADAPTER else _without_places(file)
                yield below + file.relative_to(folder).as_posix(), held
    settings = shareable(yaml.safe_load(files.config.read_text(encoding="utf-8")) or {})
    yield SETTINGS, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()


def _viewer(files: RunFolder) -> bytes:
    """The run as `lightrft view --export` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, VIEWER)
        one_file.export([Run(files.path)], file, VIEWER_MIB)
        return file.read_bytes()


def _without_places(file: Path) -> bytes:
    """What an adapter's settings say, of its base on this machine only the last part of the name."""
    found = json.loads(file.read_text(encoding="utf-8"))
    base = str(found.get("base_model_name_or_path") or "")
    found["base_model_name_or_path"] = Path(base).name if is_place(base) else base
    return json.dumps(found, indent=2, sort_keys=True).encode()


def card(files: RunFolder, *, viewer: bool = False) -> str:
    """The model card of a finished run; of places on this machine only the last name is told."""
    config = yaml.safe_load(files.config.read_text(encoding="utf-8")) or {}
    summary = files.read_summary()
    bases = list(bases_of(files))
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["lightrft"]}
    if bases and NAME.fullmatch(bases[-1]) and not is_place(bases[-1]):
        head["base_model"] = bases[-1]
    rows = [
        ("base model", ", from ".join(map(base_told, bases))),
        ("algorithm", algorithm_row(config)),
        (
            "data",
            ", ".join(f"{public(task)} ({share:g})" for task, share in config["tasks"]["train"].items()),
        ),
        ("files", public(str(config["tasks"].get("train_file", ""))) or "-"),
        ("adapters", _adapters(config.get("model", {}).get("lora", {}))),
        ("steps", str(summary.get("steps", ""))),
        ("seed", str(config.get("seed", 0))),
        ("LightRFT", __version__),
    ]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        "# How this model was trained",
        _table(("what", "value"), rows),
        "## Scores on held-out data",
        _scores(summary),
        f"All settings of the run are in `{SETTINGS}`; of folders on the machine that it ran on the last part is told."
        + (
            f" `{VIEWER}` shows its curves, responses and evaluations in a browser: download it, and open it."
            if viewer
            else ""
        ),
    ]
    return "\n\n".join(parts) + "\n"


def bases_of(files: RunFolder) -> Iterator[str]:
    """The model that a run began with; where that is the model of another run that is still there, that of this as well, and so on."""
    seen = set[Path]()
    run: RunFolder | None = files
    while run is not None and run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        base = _base(run)
        if base:
            yield base
        run = run_of(base)


def _base(files: RunFolder) -> str:
    """The model that a run began with, by its settings; empty where these are not readable or name none."""
    try:
        settings = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    model = settings.get("model") if isinstance(settings, dict) else None
    return str(model.get("path") or "") if isinstance(model, dict) else ""


def is_place(base: str) -> bool:
    """Whether a model's name is that of a folder on a machine, not one on the hub or a shape with random weights."""
    return base.startswith((".", "~", "/")) or base.count("/") > 1 or ("/" in base and Path(base).exists())


def run_of(base: str) -> RunFolder | None:
    """The run whose finished model this is; None where no such run is on this machine."""
    if not is_place(base) or Path(base).name not in OF_RUNS:
        return None
    try:
        run = RunFolder(expanded(base, "model.path").parent)
        return run if run.format.is_file() and run.config.is_file() and run.read_summary() else None
    except (OSError, ValueError):  # what cannot be read is nothing to follow
        return None


def base_told(base: str) -> str:
    """A model's name for the card: of a place on a machine the last part, and of which run it is where that is there."""
    if not is_place(base):
        return base
    run = run_of(base)
    return Path(base).name + (f" of {run.path.name}" if run is not None and run.path.name else "")


def algorithm_row(config: Mapping[str, Any]) -> str:
    """The algorithm of a run, as the row of settings that it is; of a run from given responses its loss."""
    algorithm = config.get("algorithm")
    if isinstance(algorithm, dict):
        told = {name: algorithm[name] for name in ROW if algorithm.get(name) not in (None, [], "")}
        told["group_size"] = config.get("rollout", {}).get("group_size")
    else:
        told = {name: config[name] for name in ("loss", "train_on", "average", "outputs") if config.get(name)}
    return ", ".join(f"{name} {value}" for name, value in told.items() if value is not None)


def public(text: str) -> str:
    """A name as it is; of a place on a machine its last part."""
    prefix, _, rest = text.rpartition(":") if ".py:" in text else ("", "", text)
    place = Path(prefix or rest)
    if not place.is_absolute() and not text.startswith((".", "~")):
        return text
    return place.name + (f":{rest}" if prefix else "")


def _adapters(lora: Mapping[str, Any]) -> str:
    if not lora.get("rank"):
        return "none"
    rounded = lora.get("quantize_base", "off")
    beside = "" if rounded == "off" else f", beside a base rounded to {rounded}"
    return f"LoRA, rank {lora['rank']}, alpha {lora['alpha']}{beside}"


def _scores(summary: Mapping[str, Any]) -> str:
    """Scores before and after with their 95 % intervals, or the measures of a run from given responses."""
    found = summary.get("evaluation") or {}
    rows = []
    for label in ("before", "after"):
        for task, one in (found.get(f"{label}_by_task") or {}).items():
            score = one["score"]
            interval = f"{score['low']:.3f} to {score['high']:.3f}"
            rows.append((label, public(task), f"{score['mean']:.3f}", interval, str(one["questions"])))
    if rows:
        return _table(("when", "task", "score", "95 % interval", "questions"), rows)
    measured = [(n, v) for n, v in summary.items() if isinstance(v, dict) and "after" in v]
    plain = [
        (name, *(f"{v[label]:.4f}" if label in v else "not taken" for label in ("before", "after")))
        for name, v in measured
        if all(isinstance(one, float) for label, one in v.items() if label in ("before", "after"))
    ]
    return _table(("measure", "before", "after"), plain) if plain else "None were taken."


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def _upload(uploads: Mapping[str, bytes | Path], text: str, name: str, private: bool) -> None:
    """One commit with all files, by the library of the hub and the key that it knows."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(library_name="lightrft", library_version=__version__)
    added = [CommitOperationAdd(path_in_repo=place, path_or_fileobj=file) for place, file in uploads.items()]
    added.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=text.encode()))
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.create_commit(name, operations=added, commit_message="Model of a run of LightRFT")
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{name}: the hub refuses it: {first_line(error)}. Log in with: hf auth login"
        ) from error
    Console().print(f"{name}: {done.commit_url}", soft_wrap=True, markup=False, highlight=False)
