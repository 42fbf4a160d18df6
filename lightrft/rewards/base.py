"""The judge: every answer through its task's rewards, weighted and added, failures never passed off as zeros."""

from __future__ import annotations

import logging
import math as numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, TracebackType
from typing import Any

from lightrft.config import RewardConfig, SandboxConfig
from lightrft.media.parts import described
from lightrft.rewards.code import check_sandbox
from lightrft.rewards.discreet import without_words
from lightrft.rewards.function import Answer, PerAnswer, Question, RewardFunction, each
from lightrft.rewards.models import ModelReward, Output
from lightrft.rewards.table import JUDGE, REWARDS, RUNS_PROGRAMS, check_installed, load_reward, load_values
from lightrft.types import Trajectory
from lightrft.utils.errors import RolloutError
from lightrft.utils.imports import resolve
from lightrft.workers.boxes import USUAL
from lightrft.workers.pool import Allowed, Call, Failure, Inline, Pool, Runner, Work

__all__ = ["REWARDS", "RewardError", "RewardFunction", "RewardResult", "RewardRunner", "each", "load_reward"]

log = logging.getLogger("lightrft")
OUR_METRICS = ("mean", "std", "zero_std_fraction", "overlong")
"""What stands under reward/ beside the rewards by name."""
WORK = Work(
    "lightrft.rewards.table:load_values",
    noun="reward",
    limit="rewards.timeout_seconds",
    memory="rewards.memory_gb",
)
"""Reward functions, as worker processes load and name them."""

Found = tuple[dict[tuple[str, int], float], dict[tuple[str, int], str]]
"""(reward, place) -> value, and (reward, place) -> why there is none."""


class RewardError(RolloutError, RuntimeError):
    """A reward failed on an answer, and rewards.on_failure does not allow that."""

    boundary = "reward"


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The answers that have a reward, in their order, and what happened on the way."""

    kept: list[Trajectory]
    metrics: dict[str, float]
    """counts/dropped_responses, and counts/failed/NAME for each reward that failed."""
    dropped: list[Trajectory]
    """The others: a reward failed for them, or for all siblings but one."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some answers (places in the judge's input) for one reward of one task."""

    name: str
    places: tuple[int, ...]


class RewardRunner:
    """Fills `reward` and `parts` of trajectories.

    per_source: task -> {reward name or import path: weight}.
    Each reward gets, in one call per task, whole groups in order (with several workers, one call each for a share of
    the groups). It sees an `Answer`: messages, target, answer, finish and tokens, but no columns and no media.
    Use it as a context manager, or call close(), to end the worker processes.
    """

    def __init__(
        self,
        per_source: Mapping[str, Mapping[str, float]],
        config: RewardConfig,
        models: Mapping[str, Output | None] = MappingProxyType({JUDGE: None}),
        sandbox: SandboxConfig = USUAL,
    ) -> None:
        """`models`: the rewards that are no functions: given by models, here or elsewhere; None for those that are put in later.

        ValueError where a reward runs programs and no sandbox can be had.
        """
        self.config = config
        self.weights = {source: dict(weights) for source, weights in per_source.items()}
        for source, weights in self.weights.items():
            if not weights:
                raise ValueError(
                    f"task '{source}' has no reward. Set rewards.functions, e.g. {{math: 1.0}} or {{'my_rewards.py:score': 1.0}}."
                )
        names = sorted({name for weights in self.weights.values() for name in weights})
        self.labels = _labels(names)
        self.models = {name: output for name, output in models.items() if name in names}
        """Rewards that models give; whoever holds the models puts them in before anything is judged."""
        self.by_policy = False
        """Whether one of them is the policy, by the rollout engine."""
        self.quotes = True
        """Whether the log quotes responses that could not be judged: not those of a server's clients."""
        names = [name for name in names if name not in self.models]
        for name in names:
            if ":" not in name:
                resolve({**REWARDS, **dict.fromkeys(models, None)}, name, "reward")
            check_installed(name)
        if any(name in RUNS_PROGRAMS for name in names):
            check_sandbox(sandbox, config)
        self._runner: Runner[list[float]]
        if config.workers and names:
            allowed = Allowed(config.memory_gb, tuple(config.environment))
            work = replace(WORK, settings=sandbox)
            self._runner = Pool(work, names, config.workers, config.timeout_seconds, allowed)
        else:
            self._runner = Inline({name: load_values(name, sandbox) for name in names})

    def __call__(self, trajectories: Sequence[Trajectory]) -> RewardResult:
        """Judges in place. RewardError naming reward, reason and answer if one fails, unless rewards.on_failure=drop:
        then the failing answers are left out, and whole groups of which fewer than two answers are left. Those whose environment
        failed are left out unasked."""
        asked = [trajectory for trajectory in trajectories if not trajectory.failed]
        views = [stripped(trajectory) for trajectory in asked]
        # Models first: ranks that share an engine are to ask it together, whatever fails on one of them.
        values, failures = self._by_models(asked, views)
        self._stop_at(failures, views)
        more = self._values(self._parts(asked), views)
        values, failures = values | more[0], failures | more[1]
        for place, trajectory in enumerate(asked):
            weights = self.weights[trajectory.prompt.source]
            trajectory.parts = {
                self.labels[name]: values[name, place] for name in weights if (name, place) in values
            }
            if len(trajectory.parts) == len(weights):
                trajectory.reward = sum(weight * values[name, place] for name, weight in weights.items())
        unjudged = {id(asked[place]) for _, place in failures}
        kept = _kept(trajectories, {p for p, t in enumerate(trajectories) if t.failed or id(t) in unjudged})
        metrics = {"counts/dropped_responses": float(len(trajectories) - len(kept))} | self._counted()
        for name, count in Counter(name for name, _ in failures).items():
            metrics[f"counts/failed/{self.labels[name]}"] = float(count)
        if failures:
            _report(failures, views, len(trajectories) - len(kept), quotes=self.quotes)
        staying = {id(trajectory) for trajectory in kept}
        return RewardResult(kept, metrics, [t for t in trajectories if id(t) not in staying])

    def has_judged(self, trajectory: Trajectory) -> bool:
        """Whether each reward of its task has given this response a number, whatever became of its siblings."""
        return not trajectory.failed and len(trajectory.parts) == len(self.weights[trajectory.prompt.source])

    def close(self) -> None:
        """Ends the worker processes."""
        self._runner.close()

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self, trajectories: Sequence[Trajectory]) -> list[Part]:
        by_source: dict[str, list[int]] = {}
        for place, trajectory in enumerate(trajectories):
            by_source.setdefault(trajectory.prompt.source, []).append(place)
        unknown = [source for source in by_source if source not in self.weights]
        if unknown:
            raise ValueError(
                f"there is no reward for responses of task '{unknown[0]}'; the judge knows: {', '.join(self.weights)}."
            )
        parts = []
        for source, places in by_source.items():
            groups = _by_group(places, trajectories)
            share = -(-len(groups) // max(1, self.config.workers))
            chunks = [sum(groups[start : start + share], ()) for start in range(0, len(groups), share)]
            own = [name for name in self.weights[source] if name not in self.models]
            for name in own:
                alone = [(place,) for place in places] if name in RUNS_PROGRAMS else chunks
                parts += [Part(name, chunk) for chunk in alone]
        return parts

    def _by_models(self, trajectories: Sequence[Trajectory], views: Sequence[Answer]) -> Found:
        """Values of the rewards that models give: each model is asked once, as an engine of several ranks wants it, for all outputs."""
        values: dict[tuple[str, int], float] = {}
        failures: dict[tuple[str, int], str] = {}
        for ask, outputs in self._outputs():
            wanted = [[n for n in outputs if n in self.weights[t.prompt.source]] for t in trajectories]
            places = [place for place, names in enumerate(wanted) if names]
            sees = any(output.sees_media for output in outputs.values())
            shown = [seen(trajectories[place]) if sees else views[place] for place in places]
            for place, found in zip(places, ask(shown), strict=True):
                for name in wanted[place]:
                    if isinstance(found, Failure):
                        failures[name, place] = found.reason
                    elif numbers.isfinite(value := outputs[name].of(found)):
                        values[name, place] = value
                    else:
                        failures[name, place] = f"it returned {value}."
        return values, failures

    def model_values(self, trajectories: Sequence[Trajectory]) -> list[dict[str, float]]:
        """What the models among the rewards give each response, by label; nothing where one failed. Fills no trajectory and stops at no
        failure."""
        values, _ = self._by_models(trajectories, [stripped(trajectory) for trajectory in trajectories])
        found: list[dict[str, float]] = [{} for _ in trajectories]
        for (name, place), value in values.items():
            found[place][self.labels[name]] = value
        return found

    def _counted(self) -> dict[str, float]:
        """What the models counted in this call."""
        found = (output.counted() for output in self.models.values() if output is not None)
        return {name: value for counts in found for name, value in counts.items()}

    def _outputs(self) -> list[tuple[ModelReward, dict[str, Output]]]:
        """Each model, with the rewards that are outputs of it."""
        found: dict[int, tuple[ModelReward, dict[str, Output]]] = {}
        for name, output in self.models.items():
            if output is None:
                raise ValueError(f"reward '{name}' is given by a model, and none is loaded here.")
            found.setdefault(id(output.model), (output.model, {}))[1][name] = output
        return list(found.values())

    def _stop_at(self, failures: Mapping[tuple[str, int], str], views: Sequence[Answer]) -> None:
        if failures and self.config.on_failure == "raise":
            raise RewardError(_failed(*next(iter(failures.items())), views))

    def _values(self, parts: Sequence[Part], views: Sequence[Answer]) -> Found:
        """(reward, place) -> value, and (reward, place) -> why there is none."""
        values: dict[tuple[str, int], float] = {}
        failures: dict[tuple[str, int], str] = {}
        outcomes = self._runner.run([Call(part.name, [views[p] for p in part.places]) for part in parts])
        again: list[Part] = []
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, Failure):
                smaller = self._split(part, views) if self.config.on_failure == "drop" else []
                again += smaller
                failures |= {} if smaller else {(part.name, place): outcome.reason for place in part.places}
                continue
            for place, value in zip(part.places, outcome, strict=True):
                if numbers.isfinite(value):
                    values[part.name, place] = value
                else:
                    failures[part.name, place] = f"it returned {value}."
        self._stop_at(failures, views)
        if again:
            more_values, more_failures = self._values(again, views)
            return values | more_values, failures | more_failures
        return values, failures

    def _split(self, part: Part, views: Sequence[Answer]) -> list[Part]:
        """The parts to try again one by one: groups, then answers if the reward looks at one answer at a time."""
        groups = _by_group(part.places, views)
        if len(groups) > 1:
            return [Part(part.name, places) for places in groups]
        if len(part.places) > 1 and isinstance(load_reward(part.name), PerAnswer):
            return [Part(part.name, (place,)) for place in part.places]
        return []


def stripped(trajectory: Trajectory) -> Answer:
    """What a reward may see of a trajectory: of pictures, clips and sounds their names."""
    return _view(trajectory, described(trajectory.prompt.messages))


def seen(trajectory: Trajectory) -> Answer:
    """What a model in this process may see of a trajectory, which reads its pictures, clips and sounds."""
    return _view(trajectory, trajectory.prompt.messages)


def _view(trajectory: Trajectory, messages: list[Any]) -> Answer:
    prompt = trajectory.prompt
    return Answer(
        prompt=Question(prompt.id, messages, prompt.target, prompt.source, prompt.columns),
        group=trajectory.group,
        token_ids=trajectory.token_ids,
        answer=trajectory.answer,
        finish=trajectory.finish,
        said=trajectory.said,
        step_rewards=trajectory.step_rewards,
        made=dict(trajectory.made),
        replied=len(trajectory) - trajectory.num_chosen,
    )


def _by_group(places: Sequence[int], trajectories: Sequence[Trajectory | Answer]) -> list[tuple[int, ...]]:
    groups: dict[int, list[int]] = {}
    for place in places:
        groups.setdefault(trajectories[place].group, []).append(place)
    return [tuple(members) for members in groups.values()]


def _kept(trajectories: Sequence[Trajectory], failed: set[int]) -> list[Trajectory]:
    left = Counter(t.group for place, t in enumerate(trajectories) if place not in failed)
    broken = {trajectories[place].group for place in failed}
    return [
        t
        for place, t in enumerate(trajectories)
        if place not in failed and (t.group not in broken or left[t.group] >= 2)
    ]


def _report(
    failures: Mapping[tuple[str, int], str], views: Sequence[Answer], dropped: int, *, quotes: bool
) -> None:
    counts = Counter(name for name, _ in failures)
    examples = {
        name: _failed((name, place), reason, views)
        if quotes
        else f"reward '{name}' failed: {without_words(reason)}"
        for (name, place), reason in reversed(list(failures.items()))
    }
    for name, count in counts.items():
        log.warning(
            "%d responses without a value (%d of %d responses are dropped in all); the first: %s",
            count,
            dropped,
            len(views),
            examples[name],
        )


def _failed(key: tuple[str, int], reason: str, views: Sequence[Answer]) -> str:
    name, place = key
    view = views[place]
    return (
        f"reward '{name}' failed on responses of task '{view.prompt.source}': {reason.strip()}\n"
        f"  one of these responses, to {view.prompt.id}: {view.answer[:500]!r}\n"
        "  Fix the reward, or set rewards.on_failure=drop to skip such responses (skips are counted)."
    )


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Short names for metrics: 'acme.rewards:tidy' is 'tidy', unless another reward, or a metric of ours, is called that too."""
    short = Counter(name.rsplit(":", 1)[-1] for name in names) + Counter(dict.fromkeys(OUR_METRICS, 2))
    return {name: name.rsplit(":", 1)[-1] if short[name.rsplit(":", 1)[-1]] == 1 else name for name in names}
