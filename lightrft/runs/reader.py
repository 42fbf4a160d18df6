"""Everything that a run saved, read back: the one reader, for the terminal, for notebooks and for programs of one's own."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightrft.media.parts import readable
from lightrft.runs import live, trajectories
from lightrft.runs.advice import Advice, advise
from lightrft.runs.curves import PANELS
from lightrft.runs.facts import Facts
from lightrft.runs.layout import SAVED_STEP, EvaluationFolder, RunFolder
from lightrft.runs.metrics import learned_from_given, read_metrics, series
from lightrft.utils.shown import shown

Row = dict[str, Any]
USES = ("trained", "masked", "unselected", "filtered_out", "extra", "waiting", "failed", "held_out")
ORIGINS = ("carried_over", "replayed", "given")
ZERO_VARIANCE = "zero_variance"
STATUSES = (*USES, *ORIGINS, ZERO_VARIANCE)
"""What the step did with a response (types.Use), how it came into the step where it was not sampled in it (types.Origin), and whether
all of its group have the same reward."""
MOST_SHOWN = 200
"""Rows of a table in a notebook."""
MOST_ADVISED = 32
"""Responses of the last saved step that advice looks at."""

Where = str | Callable[[Any], bool] | None
"""Which to keep: those of a status, those for which a function is true, or all."""


@dataclass(frozen=True)
class ResponseGroup:
    """The responses to one prompt in one step that were sampled together."""

    number: int
    """Number that the responses of the group have in common."""
    responses: Sequence[Row] = field(repr=False)

    @property
    def question(self) -> str:
        """The last thing a user said in the prompt."""
        return question(self.responses[0])

    @property
    def target(self) -> Any:
        """The reference answer."""
        return self.responses[0]["target"]

    @property
    def source(self) -> str:
        """The task."""
        return str(self.responses[0]["source"])

    @property
    def rewards(self) -> list[float | None]:
        """The reward of each response; None where a reward failed or has not come yet."""
        return [row["reward"] for row in self.responses]

    @property
    def mean(self) -> float:
        """The mean reward; NaN where none is known."""
        known = [reward for reward in self.rewards if reward is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def statuses(self) -> list[str]:
        """Every status of any of its responses, each once."""
        return list(dict.fromkeys(status for row in self.responses for status in row["statuses"]))


@dataclass(frozen=True)
class Evaluated:
    """A held-out evaluation."""

    when: str
    """before, step-000050, after."""
    scores: dict[str, Any]
    """Estimates by task."""
    responses: list[Row] = field(repr=False)
    """One for each held-out prompt and sample, in the order of the prompts; of runs that learn from given responses those saved then."""


class Table(list[Any]):
    """A list that a notebook shows as a table: `columns` says what it shows of each entry, by heading."""

    def __init__(self, rows: Sequence[Any], columns: dict[str, Callable[[Any], Any]]) -> None:
        super().__init__(rows)
        self._columns = columns

    def _repr_html_(self) -> str:
        """All text of models and data is escaped."""
        rows = [[str(cell(row)) for cell in self._columns.values()] for row in self[:MOST_SHOWN]]
        left_out = len(self) - len(rows)
        return _table(list(self._columns), rows) + (f"<p>{left_out} more rows</p>" if left_out else "")


class Run:
    """A run folder, read only: of any command that trains, finished or going on.

    Example: `Run("runs/demo").responses(-1, "zero_variance")`. Steps count from 1; a negative one from the last saved step. ValueError
    for a folder without a run, and for a step, place or evaluation that is not there, naming those that are.
    """

    def __init__(self, folder: Path | str) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ValueError(
                f"Run({folder!r:.80}) is not a folder. Give the folder of a run, e.g. runs/NAME."
            )
        self.folder = Path(folder).expanduser()
        files = RunFolder(self.folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder. Give the folder of a run, e.g. runs/NAME.")
        if not (files.is_run or files.has_steps or files.trajectories.is_dir()):
            raise ValueError(
                f"{self.folder} is not a run folder: it has no {files.config.name}, {files.metrics.name} or {files.trajectories.name}/."
            )

    @property
    def steps(self) -> list[int]:
        """The steps whose responses are saved."""
        return RunFolder(self.folder).saved_steps

    @property
    def learns_from_given(self) -> bool:
        """Whether it learned from given responses (sft, reward, dpo), so that no step has a reward."""
        return learned_from_given(self.metrics())

    def metrics(self) -> Table:
        """A dict for each line of metrics.jsonl, in order; a metric that was not finite is None."""
        rows = read_metrics(self.folder)
        names = ["step", *(name for names, *_ in PANELS for name in names)]
        known = [name for name in names if any(name in row for row in rows)]
        return Table(rows, {name: _getter(name) for name in known})

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric. ValueError if no step logged it, with the names that were."""
        rows = read_metrics(self.folder)
        if not any(name in row for row in rows):
            names = sorted({known for row in rows for known in row} - {"step", "time"})
            raise ValueError(f"no metric {name} in {self.folder}; there are: {', '.join(names) or 'none'}.")
        return series(rows, name)

    def responses(self, step: int = -1, where: Where = None) -> Table:
        """The responses of a step, on all ranks: those trained on in their order, then those that were not.

        Each is a dict, docs/run_folder.md says of what; `place` is its place in the step and `statuses` its STATUSES.
        """
        rows = trajectories.load(self.folder, self._step(step))
        equal = _zero_variance(rows)
        for place, row in enumerate(rows):
            row["place"], row["statuses"] = place, _statuses(row, equal)
        meets = _condition(where)
        columns = {name: _getter(name) for name in ("place", "group", "reward", "length", "finish")}
        told = {"statuses": lambda row: ", ".join(row["statuses"]), "response": lambda row: row["response"]}
        return Table([row for row in rows if meets(row)], columns | told)

    def groups(self, step: int = -1, where: Where = None) -> Table:
        """The ResponseGroups of a step. A status keeps the groups with a response of it, and a function is asked about the group."""
        rows = self.responses(step)
        meets = _condition(where)
        members: dict[int, list[Row]] = {}
        for row in rows:
            members.setdefault(row["group"], []).append(row)
        found = [ResponseGroup(number, siblings) for number, siblings in members.items()]
        columns = {name: _attribute(name) for name in ("number", "source", "question", "target", "mean")}
        told = {"rewards": _attribute("rewards"), "statuses": lambda group: ", ".join(group.statuses)}
        return Table([group for group in found if meets(group)], columns | told)

    def tokens(self, step: int, place: int) -> dict[str, list[Any]]:
        """The columns of a response's tokens, each with an entry for each token (docs/run_folder.md); `place` is its place in the step.

        ValueError if the run saved none.
        """
        return token_columns(self.response(step, place))

    def response(self, step: int, place: int) -> Row:
        """One response by its place in the step, as it is saved; the others are not read. ValueError if it is not there."""
        return trajectories.load_one(self.folder, self._step(step), place)

    def find(
        self,
        status: str = "",
        *,
        step: int | None = None,
        rank: int | None = None,
        group: int | None = None,
    ) -> Table:
        """The saved responses of all steps, or of some: `step`, `place` (what `response` wants), `rank`, `group`, `reward`, `length`,
        `finish`, `statuses`. Reads the index of each file and no response, so that one of a long run is found at once.

        ValueError for a step that is not there and for no status.
        """
        if status:
            _condition(status)
        steps = self.steps if step is None else [self._step(step)]
        found = []
        for one in steps:
            rows = trajectories.index(self.folder, one)
            equal = _zero_variance(rows)
            found += [_found(row, equal) for row in rows]
        wanted = {"rank": rank, "group": group}
        columns = {
            name: _getter(name) for name in ("step", "place", "rank", "group", "reward", "length", "finish")
        }
        told = {"statuses": lambda row: ", ".join(row["statuses"])}
        kept = [
            row
            for row in found
            if all(value is None or row[name] == value for name, value in wanted.items())
            and (not status or status in row["statuses"])
        ]
        return Table(kept, columns | told)

    @property
    def evaluations(self) -> list[str]:
        """The held-out evaluations that are there: before, step-000050, after."""
        order = {"before": 0, "after": 2}
        files = RunFolder(self.folder).evaluation.glob("*.json")
        return sorted((file.stem for file in files), key=lambda when: (order.get(when, 1), when))

    def evaluation(self, when: str = "after") -> Evaluated:
        """Scores and responses of a held-out evaluation."""
        if when not in self.evaluations:
            raise ValueError(
                f"no evaluation '{when}' in {self.folder}; there are: {', '.join(self.evaluations) or 'none'}."
            )
        files = EvaluationFolder(RunFolder(self.folder).evaluation)
        scores = files.read_report(when)
        at = [one[SAVED_STEP] for one in scores.values() if isinstance(one, dict) and SAVED_STEP in one]
        responses = self._held_out(at[0]) if at else files.read_responses(when)
        return Evaluated(when, scores, responses)

    def _held_out(self, step: int) -> list[Row]:
        """What the held-out responses of a step were worth: the model's own where it was asked for some, else those that were given."""
        rows = trajectories.load(self.folder, step, tokens=False) if step in self.steps else []
        own = sorted([row for row in rows if row["origin"] != "given"] or rows, key=lambda row: row["group"])
        parts = [
            next((row["parts"][name] for name in trajectories.RIGHT if name in row["parts"]), None)
            for row in own
        ]
        return [
            {**row, "id": row["prompt_id"]} | ({} if part is None else {"correct": part == 1.0})
            for row, part in zip(own, parts, strict=True)
        ]

    def config(self) -> Row:
        """The settings by dotted name, as config.yaml has them; empty without that file. ValueError if it is not readable."""
        file = RunFolder(self.folder).config
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not readable as YAML ({error}).") from None
        return dict(_flat("", found)) if isinstance(found, dict) else {}

    def status(self) -> Row:
        """What the run does now, or how it ended, as status.json has it; `said`: in one line. Empty where the run does not say."""
        found = live.status(self.folder)
        return {**found, "said": live.described(found)} if found else {}

    def timeline(self, steps: int = live.LAST_STEPS) -> list[Row]:
        """When which rank was in which phase in the last steps, see `runs.live.timeline`."""
        return live.timeline(self.folder, steps)

    def advice(self) -> list[Advice]:
        """What the run's metrics, settings and last saved responses say about how it goes; alarms first, advice only without alarms."""
        return advise(self.facts())

    def facts(self) -> Facts:
        """What `advice` looks at."""
        scores = EvaluationFolder(RunFolder(self.folder).evaluation).read_report
        intervals = [(when, *_interval(scores(when))) for when in self.evaluations]
        known = [(when, low, high) for when, low, high in intervals if low is not None and high is not None]
        some = trajectories.load_some(self.folder, self.steps[-1], MOST_ADVISED) if self.steps else []
        return Facts(self.metrics(), self.config(), known, some)

    def _step(self, step: int) -> int:
        return self.steps[step] if step < 0 and -step <= len(self.steps) else step

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        logged = self.metrics()
        saved = f"responses of {len(self.steps)} steps saved" if self.steps else "no responses saved"
        held_out = f"evaluations: {', '.join(self.evaluations) or 'none'}"
        title = html.escape(shown(self.folder.name, lines=False))
        return f"<h4>{title}</h4><p>{len(logged)} lines of metrics; {saved}; {html.escape(held_out)}</p>{logged._repr_html_()}"


def token_columns(row: Row) -> dict[str, list[Any]]:
    """The saved columns of a response, and those that follow from them: ratio, difference. ValueError if its tokens were not saved."""
    if "tokens" not in row:
        raise ValueError(
            "this run saved no tokens with its responses. Set log.token_columns=true in the next run."
        )
    columns = dict(row["tokens"])
    new, behavior = columns.get("new"), columns.get("behavior")
    if behavior is None:  # a response of the data, which nobody sampled
        return columns
    at_sampling = columns.get("old", new)  # one update a step: the weights that learn are those that sampled
    if new is not None and at_sampling is not None:
        columns["ratio"] = _of(new, at_sampling, columns["mask"], lambda a, b: math.exp(min(a - b, 700.0)))
    if at_sampling is not None:
        columns["difference"] = _of(at_sampling, behavior, columns["mask"], lambda a, b: a - b)
    return columns


def question(row: Row) -> str:
    """The last thing a user said in the prompt of a response."""
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return readable(asked[-1] if asked else row["messages"][-1]["content"]).strip()


def _of(
    left: Sequence[float | None],
    right: Sequence[float | None],
    mask: Sequence[bool],
    function: Callable[[float, float], float],
) -> list[float | None]:
    """The function of two columns; None where one is unknown, or the policy did not choose the token."""
    return [
        function(a, b) if chosen and a is not None and b is not None else None
        for a, b, chosen in zip(left, right, mask, strict=True)
    ]


def _flat(before: str, settings: Row) -> Iterator[tuple[str, Any]]:
    """Settings of sections by dotted name; an empty section stays one."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{before}{name}.", value)
        else:
            yield f"{before}{name}", value


def _interval(scores: Row) -> tuple[float | None, float | None]:
    """Lowest and highest score, as the mean over the tasks; None where one is unknown."""
    found = [one.get("score", {}) for one in scores.values() if isinstance(one, dict)]
    lows, highs = [one.get("low") for one in found], [one.get("high") for one in found]
    if not found or None in lows or None in highs:
        return None, None
    return sum(lows) / len(lows), sum(highs) / len(highs)


def _zero_variance(rows: Sequence[Row]) -> set[int]:
    """The groups whose responses, two at least, have one reward between them."""
    rewards: dict[int, list[float]] = {}
    for row in rows:
        if row["reward"] is not None:
            rewards.setdefault(row["group"], []).append(row["reward"])
    return {group for group, known in rewards.items() if len(known) > 1 and len(set(known)) == 1}


def _statuses(row: Row, equal: set[int]) -> list[str]:
    found = [status for status in (row.get("use"), row.get("origin")) if status in STATUSES]
    return [str(status) for status in found] + [ZERO_VARIANCE] * (row["group"] in equal)


def _found(row: Row, equal: set[int]) -> Row:
    kept = {name: row[name] for name in ("step", "place", "rank", "group", "reward", "length", "finish")}
    return kept | {"statuses": _statuses(row, equal)}


def _condition(where: Where) -> Callable[[Any], bool]:
    if where is None:
        return lambda _row: True
    if not isinstance(where, str):
        return where
    if where not in STATUSES:
        raise ValueError(f"no status '{where}'; choose one of: {', '.join(STATUSES)}.")
    return lambda what: where in (what.statuses if isinstance(what, ResponseGroup) else what["statuses"])


def _getter(name: str) -> Callable[[Any], Any]:
    return lambda row: row.get(name, "")


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda what: getattr(what, name)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of plain text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(shown(cell))}</td>" for cell in row) + "</tr>" for row in rows
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
