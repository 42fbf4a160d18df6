"""What the viewer in a browser asks of a run, as JSON: the server answers it live, and an export holds the same answers in its file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightrft.media.parts import KINDS, readable
from lightrft.media.pictures import picture
from lightrft.media.sources import MediaError
from lightrft.runs.curves import PANELS, title_of
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.media import COPY, base_name, copy_of, webp
from lightrft.runs.reader import ResponseGroup, Run
from lightrft.runs.shareable import shareable
from lightrft.runs.sheets import read_picture
from lightrft.runs.trajectories import spoken
from lightrft.utils.imports import require
from lightrft.utils.shown import shown

Row = dict[str, Any]
LARGEST_PICTURE = 512
"""Longest side of a picture in a page, in pixels."""
SHOWN_OF_RESPONSE = (
    "place",
    "prompt_id",
    "reward",
    "parts",
    "length",
    "finish",
    "statuses",
    "weight_version",
    "response",
    "failed",
    "step_rewards",
    "correct",
    "use",
    "origin",
)


@dataclass(frozen=True)
class Route:
    """One question: what answers it, and the words after its name in a path."""

    answer: Callable[..., Any]
    words: tuple[type, ...] = ()


def overview(run: Run) -> Row:
    """Everything about a run that is no response: metrics by name, scores, advice, settings, and what is saved.

    A broken file of scores, responses or settings is a sentence in `problems`: the rest is shown all the same.
    """
    problems: list[str] = []
    scores = EvaluationFolder(RunFolder(run.folder).evaluation).read_report
    evaluations = {
        when: _or_told(problems, f"evaluation {when}", partial(scores, when), {}) for when in run.evaluations
    }
    advice = _or_told(problems, "advice", run.advice, [])
    config = _or_told(problems, "settings", run.config, {})
    rows = list(run.metrics())
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {
        "name": run.folder.name,
        "problems": problems,
        "title": title_of(run.folder),
        "learns_from_given": run.learns_from_given,
        "finished": RunFolder(run.folder).summary.is_file(),
        "status": run.status().get("said", ""),
        "timeline": _or_told(problems, "events", run.timeline, []),
        "metrics": {name: [row.get(name) for row in rows] for name in names},
        "panels": [
            {"names": list(known), "title": title, "unit": unit}
            for names, title, unit in PANELS
            if (known := [name for name in names if any(name in row for row in rows)])
        ],
        "steps": run.steps,
        "evaluations": evaluations,
        "advice": [asdict(one) for one in advice],
        "config": shareable(config),
    }


def _or_told(problems: list[str], what: str, make: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return make()
    except (ValueError, OSError) as error:
        problems.append(f"{what}: {error}")
        return otherwise


def pulse(run: Run) -> Row:
    """What changes when a run went on: cheap enough to be asked every second."""
    files = RunFolder(run.folder)
    logged = files.metrics.stat().st_size if files.metrics.exists() else 0
    return {
        "logged": logged,
        "steps": run.steps[-1:],
        "evaluations": run.evaluations,
        "status": run.status().get("said", ""),
        "finished": files.summary.is_file(),
    }


def groups(run: Run, step: int) -> Row:
    """The groups of a step with all their responses, without tokens."""
    return {"step": step, "groups": [_group(group) for group in run.groups(step)]}


def tokens(run: Run, step: int, place: int) -> Row:
    """The columns of one response's tokens."""
    return {"columns": run.tokens(step, place)}


def evaluation(run: Run, when: str) -> Row:
    """Scores and all responses of a held-out evaluation."""
    found = run.evaluation(when)
    return {
        "when": when,
        "scores": found.scores,
        "responses": [_evaluated(row, n) for n, row in enumerate(found.responses)],
    }


def pictures(run: Run, where: str, place: int) -> Row:
    """Pictures, clips and sounds of one response as data URLs: what its prompt shows, and what the model drew. `where` is a step or an
    evaluation.

    One that cannot be read has its reason in place of a URL.
    """
    row, folder = _found(run, where, place)
    copies = RunFolder(run.folder).media
    asked = [_kept(copies, part) for part in _media(row) if COPY in part or part["type"] == "image"]
    drawn = [_drawn(folder / Path(one["file"]).name, one["box"]) for one in row.get("made", {}).values()]
    return {"asked": asked, "drawn": drawn}


ROUTES = {
    "overview": Route(overview),
    "pulse": Route(pulse),
    "groups": Route(groups, (int,)),
    "tokens": Route(tokens, (int, int)),
    "evaluation": Route(evaluation, (str,)),
    "pictures": Route(pictures, (str, int)),
}


def answer(runs: Sequence[Run], path: str) -> Any:
    """The answer to a path: `runs`, or the number of a run, a route and its words, e.g. 0/tokens/7/12.

    ValueError for a path that asks nothing known, and for what is not there.
    """
    if path == "runs":
        return [run.folder.name for run in runs]
    number, _, rest = path.partition("/")
    name, *words = rest.split("/")
    route = ROUTES.get(name)
    if route is None or len(words) != len(route.words):
        raise ValueError(f"nothing answers '{path}'; there are: runs, {', '.join(ROUTES)}.")
    if not number.isdecimal() or int(number) >= len(runs):
        raise ValueError(f"no run {number}: their numbers are 0 to {len(runs) - 1}.")
    return route.answer(runs[int(number)], *_typed(path, words, route.words))


def encoded(found: Any) -> bytes:
    """An answer as JSON in ASCII; control characters written out, and null for a number that is not finite."""
    return json.dumps(_plain(found), separators=(",", ":"), allow_nan=False).encode("ascii")


def _typed(path: str, words: Sequence[str], kinds: Sequence[type]) -> list[Any]:
    if any(kind is int and not word.isdecimal() for word, kind in zip(words, kinds, strict=True)):
        raise ValueError(f"'{path}' needs whole numbers from 0.")
    return [kind(word) for word, kind in zip(words, kinds, strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {shown(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else shown(value)


def _group(group: ResponseGroup) -> Row:
    # A response of the data that is a picture ends the messages of its row alone.
    alike = takewhile(
        lambda turns: all(turn == turns[0] for turn in turns),
        zip(*(row["messages"] for row in group.responses), strict=False),
    )
    asked = [turns[0] for turns in alike] or group.responses[0]["messages"]
    return {
        "number": group.number,
        "source": group.source,
        "question": _question(asked),
        "messages": _messages(asked),
        "target": group.target,
        "mean": group.mean,
        "statuses": group.statuses,
        "responses": [_response(row) for row in group.responses],
    }


def has_tokens(row: Row) -> bool:
    """Whether a response has tokens to look at: pictures that a model draws have none."""
    return any(len(column) for column in row.get("tokens", {}).values() if column is not None)


def _response(row: Row) -> Row:
    found = {name: row[name] for name in SHOWN_OF_RESPONSE if name in row}
    found |= {"said": _messages(spoken(row))} if row.get("said") else {}
    columns = row.get("tokens", {})
    found["advantage"] = _first_chosen(columns.get("advantages"), columns.get("mask"))
    found["has_tokens"] = has_tokens(row)
    found["has_pictures"] = bool(row.get("made")) or any(
        COPY in part or part["type"] == "image" for part in _media(row)
    )
    return found


def _evaluated(row: Row, place: int) -> Row:
    found = _response(row | {"place": place, "prompt_id": row.get("id", str(place))})
    asked = _messages(row["messages"]) if "messages" in row else []
    return found | {
        "source": row.get("source", ""),
        "target": row.get("target"),
        "messages": asked,
        "question": _question(row["messages"]) if asked else "",
    }


def _first_chosen(column: Sequence[float | None] | None, mask: Sequence[bool] | None) -> float | None:
    """The entry of the first token that the policy chose: the advantage, where all tokens of a response share one."""
    if column is None or mask is None:
        return None
    return next((value for value, chosen in zip(column, mask, strict=True) if chosen), None)


def _messages(said: Sequence[Row]) -> list[Row]:
    """Messages with one text each; what else a message has, such as tool calls, is kept beside it."""
    return [
        {"role": one.get("role", ""), "text": _text(one.get("content"))}
        | {
            name: one[name]
            for name in ("tool_calls", "name", "tool_call_id", "reasoning_content")
            if one.get(name)
        }
        for one in said
    ]


def _question(messages: Sequence[Row]) -> str:
    """The last thing a user said."""
    asked = [one for one in messages if one.get("role") == "user"] or messages
    return _text(asked[-1].get("content")).strip()


def _text(content: Any) -> str:
    """Text and, for media, their kind and the last part of their name."""
    if content is None or isinstance(content, str):
        return content or ""
    named = [
        {**part, part["type"]: base_name(part[part["type"]])} if part.get("type") in KINDS else part
        for part in content
    ]
    return readable(named)


def _media(row: Row) -> list[Row]:
    """The parts of a prompt or a conversation that are not text."""
    contents = [one.get("content") for one in (*row.get("messages", ()), *(row.get("said") or ()))]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if part.get("type") in KINDS]


def _found(run: Run, where: str, place: int) -> tuple[Row, Path]:
    """A response of a step or of an evaluation, and the folder that its pictures lie in."""
    files = RunFolder(run.folder)
    if where.isdecimal():
        return run.response(int(where), place), files.trajectories
    rows = run.evaluation(where).responses
    if place >= len(rows):
        raise ValueError(f"no response {place} in evaluation '{where}': it has {len(rows)}.")
    return rows[place], files.evaluation


def _kept(folder: Path, part: Row) -> Row:
    """A medium of a prompt by its copy in the run folder; of runs that kept none a picture by its path."""
    source = part[part["type"]]
    if COPY not in part:
        return _asked(source)
    try:
        return {"url": _copied(copy_of(folder, part)), "name": base_name(source)}
    except (ValueError, OSError) as error:
        return {"name": base_name(source), "missing": str(error)}


def _copied(file: Path) -> str:
    """A copy as a data URL: pictures are decoded and encoded anew, and a sound is what begins as one."""
    data = file.read_bytes()
    if file.suffix == ".ogg":
        if not data.startswith(b"OggS"):
            raise ValueError(f"media/{file.name} is no sound")
        return f"data:audio/ogg;base64,{base64.b64encode(data).decode('ascii')}"
    with require("PIL.Image", "media").open(io.BytesIO(data), formats=("WEBP",)) as found:
        count = getattr(found, "n_frames", 1)
        if count == 1:
            return _url(found.convert("RGB"))
        frames, seconds = [], 0.0
        for n in range(count):
            found.seek(n)
            frames.append(found.convert("RGB"))
            seconds = max(seconds, found.info.get("duration", 0) / 1000)
    return f"data:image/webp;base64,{base64.b64encode(webp(frames, seconds)).decode('ascii')}"


def _asked(source: Any) -> Row:
    """A picture of a prompt, read anew from its file and so never anything but a picture; no address is fetched."""
    try:
        return {"url": _url(picture(source, max_pixels=LARGEST_PICTURE**2)), "name": base_name(source)}
    except (MediaError, ValueError, OSError) as error:
        reason = str(error).replace(str(source), base_name(source))
        return {"name": base_name(source), "missing": reason}


def _drawn(sheet: Path, box: Sequence[int]) -> Row:
    """A picture that a model drew, cut out of its sheet."""
    if not sheet.is_file():
        return {"name": sheet.name, "missing": f"the picture is not there: {sheet.name}"}
    pixels = read_picture(sheet, box, LARGEST_PICTURE)
    return {"url": _url(require("PIL.Image", "media").fromarray(pixels)), "name": sheet.name}


def _url(image: Any) -> str:
    written = io.BytesIO()
    image.save(written, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
