"""What lies where in a run folder: the one place that knows the names of its files.

RUN/format.json             the number of this arrangement, when the run began, and by which version
RUN/.lock                   held by the process that uses the folder
RUN/config.yaml             the settings; config-until-step-000004.yaml: those before a resume changed them
RUN/status.json             what the run does now, or how it ended: `runs/live.py`
RUN/environment.json        versions, command and devices of each start
RUN/events/                 what each rank did, and when: rank-0.jsonl
RUN/metrics.jsonl           a line for each step             RUN/tensorboard/   the same as events
RUN/trajectories/           the responses of a step: step-000007.parquet of the first rank, step-000007.rank-3.parquet
                            (.jsonl in runs of versions before)
                            of models that draw their pictures too: step-000007.png
RUN/media/                  small copies of what the prompts of saved responses show, by their hash
RUN/evaluation/             held-out scores and responses: before.json, before.jsonl, before.png
RUN/summary.json            what the finished run says of itself            RUN/curves.png
RUN/checkpoints/            to go on from                    RUN/capsules/      captured steps
RUN/log.txt, RUN/logs/      the first rank's log; what other ranks printed
RUN/model/                  the finished model as a Hugging Face folder
RUN/adapter/                its adapters as peft writes them, where it learned some
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lightrft import __version__
from lightrft.utils.atomic import write_text

FORMAT = 2
"""The arrangement described above. To be raised when files move, so that an older version says so instead of missing them."""
SAVED_STEP = "saved_step"
"""Key in the scores of a held-out task: the step whose saved responses are those of that evaluation."""
READS = (1, FORMAT)
"""Arrangements that are read; 1 has responses as JSON lines."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name; whether they are there yet is another question."""

    path: Path

    @property
    def format(self) -> Path:
        """The number of the arrangement."""
        return self.path / "format.json"

    def write_format(self, settings: str = "") -> None:
        """Says how the files of this new run are arranged, which version arranged them so, when the run began, and which
        `settings` its config.yaml is about to get."""
        begun = datetime.now().isoformat(timespec="seconds")
        said = {"format": FORMAT, "lightrft": __version__, "begun": begun, "settings": _digest(settings)}
        write_text(self.format, json.dumps(said) + "\n")

    @property
    def begun(self) -> datetime | None:
        """When the run began, by the clock of its first machine; None if the folder does not say so."""
        try:
            return datetime.fromisoformat(_json(self.format)["begun"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def settings_digest(self) -> str:
        """What tells the settings in config.yaml from others; empty if there are none."""
        return _digest(self.config.read_text(encoding="utf-8")) if self.is_run else ""

    @property
    def settings_are_ours(self) -> bool:
        """Whether config.yaml is as the beginning of a run here wrote it."""
        try:
            return bool(_json(self.format)["settings"] == self.settings_digest)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def check_format(self) -> None:
        """ValueError if the run was begun by a version whose run folders are arranged in another way.

        A folder without a number is of a version before there were numbers, whose checkpoints cannot be read.
        """
        if not self.format.is_file():
            if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
                raise ValueError(
                    f"{self.path}: the run was begun by a version of LightRFT whose checkpoints this one cannot read. Go on with that "
                    f"version, or begin a new run from its weights with model.path={self.path / 'model'}."
                )
            return
        try:
            written = dict(_json(self.format))
            number, version = int(written["format"]), str(written["lightrft"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.format}: it does not say how the run's files are arranged ({error}). Write "
                f'{{"format": {FORMAT}, "lightrft": "{__version__}"}} into it if this version wrote the run.'
            ) from None
        if number not in READS:
            raise ValueError(
                f"{self.path}: the run has format {number}, and LightRFT {__version__} reads formats {READS[0]} to {FORMAT}. Use LightRFT "
                f"{version}, which wrote it."
            )

    @property
    def lock(self) -> Path:
        """Held by the process that uses the folder (runs/lock.py)."""
        return self.path / ".lock"

    @property
    def config(self) -> Path:
        """The settings that the run goes on with."""
        return self.path / "config.yaml"

    def config_until(self, step: int) -> Path:
        """The settings of the steps up to this one, which a resume has changed."""
        return self.path / f"config-until-step-{step:06d}.yaml"

    @property
    def status(self) -> Path:
        """What the run does now, or how it ended."""
        return self.path / "status.json"

    @property
    def environment(self) -> Path:
        """What each start of the run ran on."""
        return self.path / "environment.json"

    def events(self, rank: int = 0) -> Path:
        """What a rank did and when, one JSON object each."""
        return self.path / "events" / f"rank-{rank}.jsonl"

    @property
    def all_events(self) -> dict[int, Path]:
        """Rank -> the file of its events, in the order of the ranks."""
        found = {
            int(file.stem.removeprefix("rank-")): file for file in self.events().parent.glob("rank-*.jsonl")
        }
        return dict(sorted(found.items()))

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """A folder of event files."""
        return self.path / "tensorboard"

    @property
    def trajectories(self) -> Path:
        """The folder of saved responses."""
        return self.path / "trajectories"

    def responses(self, step: int, rank: int = 0) -> Path:
        """The saved responses of a rank in a step, as Parquet."""
        return self.trajectories / (f"step-{step:06d}" + f".rank-{rank}" * (rank > 0) + ".parquet")

    def old_responses(self, step: int, rank: int = 0) -> Path:
        """Where versions before saved them, one JSON object each."""
        return self.responses(step, rank).with_suffix(".jsonl")

    def all_responses(self, step: int) -> list[Path]:
        """The files that there are of a step, in the order of their ranks; one for each, the new one where there are both."""
        found = {
            self.rank_of(file): file
            for ending in (".jsonl", ".parquet")
            for file in self.trajectories.glob(f"step-{step:06d}*{ending}")
        }
        return [found[rank] for rank in sorted(found)]

    @staticmethod
    def rank_of(responses: Path) -> int:
        """The rank whose responses a file holds."""
        _, *rank, _ = responses.name.split(".")
        return int(rank[0].removeprefix("rank-")) if rank else 0

    @property
    def saved_steps(self) -> list[int]:
        """The steps whose responses are saved, in order."""
        return sorted(
            {
                int(file.name.split(".")[0].removeprefix("step-"))
                for file in self.trajectories.glob("step-*")
                if file.suffix in (".parquet", ".jsonl")
            }
        )

    def drop_responses_after(self, step: int) -> None:
        """Removes the responses of later steps, which a resumed run takes again, perhaps with fewer ranks."""
        for later in (saved for saved in self.saved_steps if saved > step):
            for file in self.trajectories.glob(f"step-{later:06d}.*"):
                file.unlink()

    @property
    def media(self) -> Path:
        """The folder of small copies of what prompts show."""
        return self.path / "media"

    @property
    def evaluation(self) -> Path:
        """The folder of held-out scores and responses."""
        return self.path / "evaluation"

    @property
    def summary(self) -> Path:
        """What the finished run says of itself."""
        return self.path / "summary.json"

    @property
    def curves(self) -> Path:
        """The course of the run as a picture."""
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> Path:
        """The folder of states to go on from."""
        return self.path / "checkpoints"

    @property
    def capsules(self) -> Path:
        """The folder of captured steps."""
        return self.path / "capsules"

    def capsule(self, step: int) -> Path:
        """The folder of one captured step."""
        return self.capsules / f"step-{step:06d}"

    @property
    def log(self) -> Path:
        """The log of the first rank, and the first failure of whichever rank."""
        return self.path / "log.txt"

    @property
    def rank_logs(self) -> Path:
        """The folder of what ranks other than the first print."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        """The finished model as a Hugging Face folder."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The finished model's adapters as peft writes them, of a run that learned some."""
        return self.path / "adapter"

    @property
    def is_run(self) -> bool:
        """Whether there is a run, begun at least."""
        return self.config.is_file()

    @property
    def has_steps(self) -> bool:
        """Whether a step was written down, or is about to be; settings alone are no run yet: they may have been refused."""
        return self.metrics.exists()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary of the finished run."""
        write_text(self.summary, json.dumps(summary, indent=2))

    def read_summary(self) -> dict[str, Any]:
        """The summary; empty while the run is not finished."""
        return _json(self.summary) if self.summary.is_file() else {}


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of evaluations: of a run, or of `lightrft evaluate`."""

    path: Path

    def report(self, label: str) -> Path:
        """Estimates by task."""
        return self.path / f"{label}.json"

    @property
    def is_finished(self) -> bool:
        """Whether `lightrft evaluate` came to its end here."""
        return self.report("responses").is_file()

    def pictures(self, label: str) -> Path:
        """What held-out responses drew, where a model draws."""
        return self.path / f"{label}.png"

    def responses(self, label: str) -> Path:
        """Every held-out response, one JSON object each."""
        return self.path / f"{label}.jsonl"

    def write(
        self, label: str, estimates: Mapping[str, Any], responses: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        """Writes both files, or the estimates alone, which come last, when the responses are there."""
        if responses is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in responses)
            write_text(self.responses(label), lines)
        write_text(self.report(label), json.dumps(estimates, indent=2))

    def read_report(self, label: str) -> dict[str, Any]:
        """The estimates by task."""
        return _json(self.report(label))

    def read_responses(self, label: str) -> list[dict[str, Any]]:
        """The held-out responses in the order of their prompts; empty if none were written."""
        file = self.responses(label)
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def newest_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, the one whose settings were written last first."""
    found = [path for path in folder.glob("*") if RunFolder(path).is_run]
    return sorted(found, key=lambda path: RunFolder(path).config.stat().st_mtime, reverse=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
