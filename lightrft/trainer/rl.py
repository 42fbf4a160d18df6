"""The loop: sample, judge, learn, repeat. Read this first."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from lightrft.algorithms.advantages import explained_variance
from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.correction import mismatch
from lightrft.algorithms.losses import value_loss
from lightrft.algorithms.shaping import overlong_penalty
from lightrft.config import Config, layers
from lightrft.console.progress import Progress
from lightrft.datasets.loader import PromptLoader
from lightrft.engines.base import Engine, EngineDiedError
from lightrft.models.logprobs import LogProbs
from lightrft.models.processor import Processor
from lightrft.models.values import values
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardResult, RewardRunner
from lightrft.runs import trajectories as saved
from lightrft.runs.capsule import Capsules, weights_hash
from lightrft.runs.metrics import Logger
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.in_memory import snapshot
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.balance import balanced
from lightrft.trainer.batching import by_group, dummy_answer, pack, plan, rounds, unpack
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.evaluate import Evaluator
from lightrft.trainer.loop import examination, take_steps, write_model
from lightrft.trainer.metrics import average, describe
from lightrft.trainer.mismatch import cuts, disagreement
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.rollout import needs_old, rollout, training_logprobs, training_sampling
from lightrft.trainer.scaler import RewardScaler
from lightrft.trainer.stragglers import Stragglers
from lightrft.types import Batch, Terms, Trajectory
from lightrft.utils.atomic import explained
from lightrft.utils.device import peak_gib, resident_gib
from lightrft.utils.interrupt import Interrupt
from lightrft.utils.seeding import derive_seed, generator_states, restore_generators

T = TypeVar("T")
Metrics = dict[str, float]
log = logging.getLogger("lightrft")


@dataclass
class RLTrainer:
    """Sample, judge, learn, repeat.

    Every rank runs this same program on its own prompts (SPMD). Ranks meet where gradients are summed, where weights
    are gathered for the engine, and in `world`. Built by app.py; a subclass may override any of the five short methods
    that `train_step` calls.
    """

    config: Config
    run: Path
    world: World
    device: torch.device
    memory_plan: MemoryPlan
    actor: Trainable
    critic: Trainable | None
    reference: Frozen | None
    teacher: Frozen | None
    engine: Engine
    processor: Processor
    prompts: PromptLoader
    judge: RewardRunner
    scaler: RewardScaler
    buffer: RolloutBuffer
    algorithm: Algorithm
    """Its weight of the divergence from the reference moves with the run, if that is set."""
    evaluator: Evaluator
    checkpoints: Checkpoints
    capsules: Capsules
    logger: Logger | None
    """Only on the first rank."""
    progress: Progress
    done: int = 0
    """Steps behind us."""
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    """Label (before, step-000050, after) -> task -> held-out score."""
    started: float = field(default_factory=time.perf_counter)
    """When this process began with the run, on the perf_counter clock."""
    earlier_seconds: float = 0.0
    """Time that the run took before it was resumed."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    stragglers: Stragglers = field(init=False)
    whole: bool = True
    """Whether the weights are those of the last whole step, all of it written down: then they may be saved."""
    _position: dict[str, Any] = field(default_factory=dict)
    _pushed: bool = False
    """Whether the engine was given any weights by this process."""
    _drawn: tuple[int, float] = (0, 0.0)
    """Tokens, and seconds that they took, since it was last asked for."""
    _disagreed: bool = False
    """Whether it was told that engine and trainer do not agree."""
    _reference_moved: bool = False
    """Whether the reference is no longer the model the run began with, and so belongs into checkpoints."""

    def __post_init__(self) -> None:
        self.stragglers = Stragglers(self.world)

    def train(self) -> None:
        """Runs the steps that are left. Raises Stopped if asked to stop before the last; what was done is saved first."""
        self.memory_plan.begin()
        self._position = self._snapshot()
        take_steps(self, self.config.steps, "train")

    def train_step(self, step: int) -> None:
        """One step: everything between two sets of weights."""
        start = time.perf_counter()
        self.push_weights()
        fresh, metrics = self.collect(step)
        draw = random.Random(derive_seed(self.config.seed, "filter", step, self.world.rank))
        groups = fresh + self.buffer.sample(step, draw)
        trajectories = [t for group in groups for t in group]
        metrics |= self.score(trajectories)
        self.buffer.add(step, fresh)
        chosen = [t for group in groups for t in self.algorithm.response_filter(group, draw)]
        metrics |= self.update(step, balanced(chosen, self.world))
        self.compare(metrics)
        self.follow(step, metrics)
        self.buffer.mark_stale()
        self.done = step
        metrics |= self.stragglers.seconds(self.memory_plan, time.perf_counter() - start)
        metrics |= {
            "memory/rss_gib": self.world.max(resident_gib()),
            "memory/peak_gib": self.world.max(peak_gib()),
        }
        self.record(step, metrics, trajectories)
        self._position, self.whole = self._snapshot(), True
        self.examine()
        if self.checkpoints.due(step) and step < self.config.steps:
            self.save()
        self.interrupt.check()

    def push_weights(self) -> None:
        """The engine samples from the actor's present weights; called by all ranks."""
        if self._pushed and self.engine.weight_version == self.actor.version:
            return
        with self.memory_plan(Phase.SYNC), self.actor.adapters_merged():
            self.engine.load_weights(self.actor.weights())
            self.engine.weight_version = self.actor.version
            self._pushed = True

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the engine may draw answers, from the actor's present weights."""
        self.push_weights()
        with self.memory_plan(Phase.ROLLOUT), self.actor.adapters_merged(), self.world.independent():
            yield

    def ask(self, draw: Callable[[], T]) -> T:
        """What `draw` gives, called where the engine may draw answers; again if the engine died and was started anew.

        RuntimeError, with all work saved, if it has died more than rollout.max_engine_restarts times.
        """
        found: list[T] = []
        for attempt in range(self.config.rollout.max_engine_restarts + 1):
            died: EngineDiedError | None = None
            with self.sampling():
                try:
                    found = found or [draw()]
                except EngineDiedError as error:
                    died = error
            if not self.world.max(died is not None):
                break
            if attempt == self.config.rollout.max_engine_restarts:
                continue
            with self.world.independent():
                if died is not None:
                    log.warning("the engine died and is started again: %s", died)
                    died.restart()
            self._pushed = False
        else:
            raise RuntimeError(
                f"the engine died {self.config.rollout.max_engine_restarts + 1} times in one rollout (rollout.max_engine_restarts={self.config.rollout.max_engine_restarts}), "
                f"at last: {died or 'on another rank'}"
            )
        return found[0]

    def draw_groups(self, step: int, draws: int, count: int) -> list[list[Trajectory]]:
        """Whole groups for a step: those that waited to be answered to the end, and of `count` new questions."""
        config, paused = self.config.rollout, self.buffer.take_unfinished()
        prompts, before = self.prompts.draw(count), _tokens(paused)
        start = self.memory_plan.seconds.get(Phase.ROLLOUT, 0.0)
        self.progress.phase("rollout")
        new = self.ask(
            lambda: rollout(
                self.engine,
                prompts,
                training_sampling(config, derive_seed(self.config.seed, step, draws, 0), self.world),
                self.processor,
                # Numbered over the run and over ranks, so that no two groups are ever taken for one.
                first_group=((step - 1) * config.max_sampling_rounds + draws - 1) * config.prompts_per_step,
                unfinished=[t for group in paused for t in group if t.finish == "paused"],
                most_now=config.max_tokens_per_step,
                progress=self._sampled,
            )
        )
        groups = paused + new
        tokens, seconds = self._drawn
        seconds += self.memory_plan.seconds.get(Phase.ROLLOUT, 0.0) - start
        self._drawn = tokens + _tokens(groups) - before, seconds
        unfinished = [any(t.finish == "paused" for t in group) for group in groups]
        self.buffer.unfinished = [g for g, waits in zip(groups, unfinished, strict=True) if waits]
        return [g for g, waits in zip(groups, unfinished, strict=True) if not waits]

    def judged(self, groups: list[list[Trajectory]], ahead: int = 0) -> RewardResult:
        """The groups with their rewards; meanwhile, the answers of step `ahead` are drawn, unless it is 0."""
        answers = [t for group in groups for t in group]
        pool = ThreadPoolExecutor(max_workers=1)
        try:
            judging = pool.submit(self.judge, answers) if ahead else None
            if ahead:
                self.buffer.prefetched = self.draw_groups(ahead, 1, self.share)
            self.progress.phase("score")
            if judging is None:
                return self.judged_by(self.judge, answers)
            with self.memory_plan(Phase.SCORE), self.world.independent():
                return judging.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def judged_by(self, judge: RewardRunner, answers: Sequence[Trajectory]) -> RewardResult:
        """Where what judges is at hand: the models of the score phase, or the engine if the policy judges itself."""
        if judge.by_policy:
            return self.ask(lambda: judge(answers))
        with self.memory_plan(Phase.SCORE), self.world.independent():
            return judge(answers)

    @property
    def share(self) -> int:
        """Questions of a step on this rank."""
        return self.config.rollout.prompts_per_step // self.world.size

    def collect(self, step: int) -> tuple[list[list[Trajectory]], Metrics]:
        """Judged groups worth learning from, `prompts_per_step / world.size` on this rank, and what is known of all drawn.

        With `algorithm.group_filter` other than all, questions are drawn again until there are enough groups, at most
        `rollout.max_sampling_rounds` times; groups that were drawn too much wait for the next step if that is set. With
        `rollout.max_tokens_per_step` there are as many as have been answered to the end, at least one, a step's worth on average.
        Where a reward failed there are fewer, and the step is a little smaller.
        """
        config, need = self.config.rollout, self.share
        kept = self.buffer.take_carried_over()
        drawn: list[list[Trajectory]] = []
        counts: Metrics = {}
        draws, left_out = 0, 0
        ahead = step + 1 if config.overlap_rewards and step < self.config.steps else 0
        keep_all = self.algorithm.config.group_filter == "all"
        while True:
            asking = draws == 0 or (draws < config.max_sampling_rounds and not keep_all)
            if not asking and (self.world.max(len(kept)) or not self.world.max(len(self.buffer.unfinished))):
                break
            draws += asking
            groups = self.buffer.take_prefetched() if draws == 1 else []
            if not self.world.max(
                len(groups)
            ):  # else the others have drawn, and this rank's answers are all paused
                groups = self.draw_groups(step, draws, need if asking else 0)
            judged, ahead = self.judged(groups, ahead), 0
            counts = average([counts, {k: v for k, v in judged.metrics.items() if k.startswith("counts/")}])
            alive = by_group(judged.kept)
            drawn += alive
            worthy = [group for group in alive if self.algorithm.group_filter(group)]
            left_out += len(alive) - len(worthy)
            kept += worthy
            self._penalise_length(alive)
            if self.world.all(len(kept) >= need):
                break
        counts = self.world.sum_by_name(counts)
        if not self.world.max(len(kept)):
            raise RuntimeError(
                f"step {step}: no group of answers is left to learn from after {draws} draws of {need} questions "
                f"(algorithm.group_filter={self.algorithm.config.group_filter}, rollout.max_sampling_rounds={config.max_sampling_rounds}, "
                f"{int(counts.get('counts/dropped_responses', 0))} answers dropped by failing rewards"
                f"{f', rollout.max_tokens_per_step={config.max_tokens_per_step}' * bool(config.max_tokens_per_step)}). "
                "Raise rollout.max_sampling_rounds or rollout.group_size, take easier or harder questions, or set algorithm.group_filter=all."
            )
        metrics = describe(drawn, self.world) | counts
        metrics |= self._of_rollout(drawn)
        metrics["rollout/sampling_rounds"] = float(draws)
        num_kept = len(kept)
        # No more wait than the next step needs, so that none is older than one step.
        most = len(kept) if keep_all else need
        kept, surplus = kept[:most], kept[most : most + need] if config.extra_groups == "carry_over" else []
        if self.algorithm.needs_greedy:
            self._judge_greedy(step, [*kept, *surplus])
            kept, surplus = ([g for g in groups if _knows_greedy(g)] for groups in (kept, surplus))
        left_out += num_kept - len(kept) - len(surplus)
        if config.extra_groups == "carry_over":
            self.buffer.carried_over = surplus
            metrics["rollout/groups_carried_over"] = float(self.world.sum(torch.tensor(len(surplus))))
        metrics["rollout/groups_filtered_out"] = float(self.world.sum(torch.tensor(left_out)))
        metrics |= self.scaler.update([t for group in drawn for t in group])
        if self.algorithm.config.truncated == "mask":
            for t in (t for group in [*kept, *surplus] for t in group if t.finish == "length"):
                t.mask = [False] * len(t)
        return kept, metrics

    def _of_rollout(self, drawn: Sequence[Sequence[Trajectory]]) -> Metrics:
        """How fast answers were drawn in this step, and by which weights those were that are judged now."""
        answers = [t for group in drawn for t in group]
        seconds = max(self.world.max(self._drawn[1]), 1e-9)
        sums = [self._drawn[0], _tokens(drawn), sum(t.stale for t in answers)]
        fresh, tokens, stale = self.world.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        oldest = min((float(t.weight_version) for t in answers), default=float(self.engine.weight_version))
        metrics = {
            "rollout/tokens_per_second": fresh / seconds,
            "rollout/oldest_weight_version": -self.world.max(-oldest),
        }
        self._drawn = 0, 0.0
        if self.config.rollout.max_tokens_per_step or self.config.rollout.overlap_rewards:
            metrics["rollout/off_policy_fraction"] = stale / max(tokens, 1.0)
            metrics["rollout/groups_unfinished"] = float(
                self.world.sum(torch.tensor(len(self.buffer.unfinished)))
            )
        return metrics

    def _judge_greedy(self, step: int, groups: list[list[Trajectory]]) -> None:
        """Tells each answer the reward of the most likely one, unless that reward fails.

        Groups that waited know it already: from the weights that sampled them.
        """
        new = [group for group in groups if not _knows_greedy(group)]
        sampling = training_sampling(self.config.rollout, seed=0)
        greedy = self.ask(
            lambda: rollout(
                self.engine,
                [group[0].prompt for group in new],
                replace(sampling, n=1, temperature=0.0),
                self.processor,
                progress=self._sampled,
            )
        )
        judged = self.judged_by(self.judge, [t for (t,) in greedy]).kept
        self._penalise_length([judged])
        for likely in judged:
            for t in new[likely.group]:  # a group's number is its place here
                t.greedy_reward, t.greedy_parts = likely.reward, likely.parts
        if not self.world.max(any(map(_knows_greedy, groups))):
            raise RuntimeError(
                f"step {step}: the reward failed for the greedy answers to all {len(groups)} questions, so there is no baseline "
                "(algorithm.advantage=greedy_baseline). See the failures above, or set algorithm.advantage=reinforce."
            )

    @torch.no_grad()
    def score(self, trajectories: list[Trajectory]) -> Metrics:
        """Fills the columns: log-probs of whoever is asked for, values, then rewards, advantages and returns."""
        metrics: Metrics = {}
        filled: list[str] = []
        self.progress.phase("score")
        with self.memory_plan(Phase.SCORE):
            # Once an answer of earlier weights is among them, none may do without: a column is for all answers or for none.
            if self.needs_old or not self.world.all(all("old" not in t.columns for t in trajectories)):
                waiting = [t for group in self.buffer.carried_over for t in group]
                new = [t for t in [*trajectories, *waiting] if "old" not in t.columns]
                filled += ["old", "entropy"]
                self._fill(new, self._sampled_at, *filled)
                for t in new:  # what older weights sampled has the log-probs it had then
                    t.columns["old"][: t.stale] = torch.tensor(t.behavior[: t.stale])
            for name, model in (("ref", self.reference), ("teacher", self.teacher)):
                if model is not None:
                    self._fill(trajectories, partial(self._judged_by, model), name)
                    filled.append(name)
            if self.critic is not None:
                self._fill(trajectories, partial(self._valued_by, self.critic), "values")
                filled.append("values")
            whole = pack(trajectories, inputs=False)
            for name in filled if not trajectories else ():  # all answers of this rank were dropped
                setattr(whole, name, torch.zeros(0))
            whole.scores = self.scaler.transform(trajectories)
            if self.algorithm.needs_greedy:
                whole.greedy = self.scaler.transform(trajectories, greedy=True)
            self.algorithm.compute_advantages(whole, self.world.sum)
            if whole.values is not None:
                assert whole.returns is not None
                metrics["critic/explained_variance"] = explained_variance(
                    whole.values, whole.returns, whole.mask, self.world.sum
                )
            for name in ("rewards", "advantages", "returns"):
                unpack(getattr(whole, name), trajectories, name)
        return metrics

    def _fill(
        self, answers: Sequence[Trajectory], compute: Callable[[Batch], tuple[torch.Tensor, ...]], *names: str
    ) -> None:
        """Gives each answer the columns `names`, which `compute` finds for a packed batch."""
        for t in (t for t in answers if not len(t)):  # in no batch
            t.columns |= {name: torch.zeros(0) for name in names}
        share_prompts = self.config.update.share_prompts
        for part, batch, counts in rounds(
            self._plan(answers), self.blank, self.world, share_prompts=share_prompts, device=self.device
        ):
            for name, column in zip(names, compute(batch), strict=True):
                if counts:
                    unpack(column, part, name)
            if self.world.size == 1:
                self.interrupt.raise_if_stopped()

    def _sampled_at(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._logprobs(self.actor, batch)
        return found.values, found.entropy

    def _judged_by(self, model: Frozen, batch: Batch) -> tuple[torch.Tensor]:
        return (self._logprobs(model, batch).values,)

    def _valued_by(self, critic: Trainable, batch: Batch) -> tuple[torch.Tensor]:
        return (self._values(critic, batch),)

    def update(self, step: int, trajectories: list[Trajectory]) -> Metrics:
        """Learns from the answers; capsules of the step are written on the way if they are wanted."""
        self.progress.phase("train")
        self.whole = False
        updates: list[Metrics] = []
        criticism: list[Metrics] = []
        captured = False

        def before_update(index: int, norm: float) -> None:
            nonlocal captured
            spiked = self.capsules.spike(norm)
            wanted = spiked or (index == 0 and self.capsules.wanted(step))
            if wanted and not captured and self.world.size == 1:  # a capsule is of one process
                captured = True
                self._capture(step, index, trajectories)

        try:
            with self.memory_plan(Phase.TRAIN):
                if self.critic is not None:
                    criticism = list(self.learn_values(self.critic, step, trajectories))
                if step > self.config.critic.warmup_steps:
                    for metrics in self.learn(step, trajectories, before_update=before_update):
                        updates.append(metrics)
        finally:
            if captured:
                self.capsules.record(step, updates, average(updates))
        of_critic = {k: x for k, x in average(criticism).items() if not k.startswith("update/")}
        found = average(updates)
        if updates:
            found["mismatch/perplexity_ratio"] = math.exp(found.pop("mismatch/log_perplexity_ratio"))
        return found | {f"critic/{name}": x for name, x in of_critic.items()}

    def compare(self, metrics: Metrics) -> None:
        """Warns, once, if the engine's log-probs are not those of the trainer. What only a part was drawn from differs anyway."""
        if self._disagreed or "mismatch/max" not in metrics or cuts(self.config.rollout):
            return
        told = disagreement(self.config, metrics["mismatch/mean_abs"], metrics["mismatch/max"])
        if told and self.world.is_first:
            log.warning(
                "%s It is logged as mismatch/*; algorithm.mismatch_correction weighs against it.", told
            )
        self._disagreed = bool(told)

    def follow(self, step: int, metrics: Metrics) -> None:
        """What moves after the update: the weight of the divergence from the reference, and the reference."""
        if self.reference is not None:
            metrics["kl_coefficient"] = self.algorithm.config.kl_coefficient
        self.algorithm = self.algorithm.with_adapted_kl(metrics.get("kl"))
        every = self.algorithm.config.reference_update_steps
        if self.reference is not None and every and step % every == 0:
            with self.memory_plan(Phase.SCORE):
                self.reference.follow(self.actor.weights(), self.algorithm.config.reference_update_rate)
            self._reference_moved = True

    def learn_values(
        self, critic: Trainable, step: int, trajectories: Sequence[Trajectory]
    ) -> Iterator[Metrics]:
        """The gradient steps of the critic; tokens weigh the same."""
        clip = self.config.critic.value_clip
        return optimize(
            critic,
            trajectories,
            lambda batch: value_loss(self._values(critic, batch), batch, clip),
            config=self.config.update,
            averaging=Averaging("token", self.config.rollout.max_tokens),
            world=self.world,
            device=self.device,
            seed=derive_seed(self.config.seed, "critic", step),
            blank=self.blank,
        )

    def learn(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        *,
        first: int = 0,
        before_update: Callable[[int, float], None] = lambda index, norm: None,
    ) -> Iterator[Metrics]:
        """The gradient steps of one training step; also what `lightrft replay` computes again."""
        return optimize(
            self.actor,
            trajectories,
            self.policy_loss,
            config=self.config.update,
            averaging=Averaging(self.algorithm.config.average, self.config.rollout.max_tokens),
            world=self.world,
            device=self.device,
            seed=derive_seed(self.config.seed, "update", step),
            blank=self.blank,
            first=first,
            before_update=before_update,
        )

    def policy_loss(self, batch: Batch) -> Terms:
        """The algorithm's loss of each token under the actor's present weights, (T,)."""
        new = self._logprobs(self.actor, batch)
        terms = self.algorithm.loss(new.values, batch, new.entropy)
        sampled_at = new.values if batch.old is None else batch.old
        gap = mismatch(sampled_at, batch.behavior, batch.mask)
        found = {
            "mismatch/mean_abs": gap,
            "mismatch/max": gap,
            "mismatch/log_perplexity_ratio": batch.behavior - sampled_at.detach(),
        }
        return Terms(terms.loss, terms.metrics | found)

    @cached_property
    def blank(self) -> Trajectory:
        """What this rank computes while others still have answers to compute."""
        return dummy_answer(self.processor.blank())

    @property
    def needs_old(self) -> bool:
        """Whether the log-probs at sampling must be computed by themselves."""
        return needs_old(self.config, self.algorithm)

    def examine(self) -> None:
        """Held-out scores, if they are asked for after the steps done so far and not known yet."""
        label = examination(self.config.evaluate, self.done, self.config.steps)
        if label and label not in self.evaluations:
            self.evaluate(label)

    def evaluate(self, label: str) -> dict[str, float]:
        """Held-out scores by task, kept under `label` and logged."""
        self.progress.phase("evaluate")
        answers = self.ask(lambda: self.evaluator.sample(self.engine, progress=self._sampled))
        self.judged_by(self.evaluator.rewards, [t for group in answers for t in group])
        scores = self.evaluator.report(answers, label)
        self.memory_plan.reset_seconds()
        self.evaluations[label] = scores
        self._position["evaluations"] = dict(self.evaluations)
        if self.logger is not None:
            with explained(self.run):
                self.logger.log(self.done, {f"evaluation/{name}": value for name, value in scores.items()})
        shown = ", ".join(
            f"{name} {value:.1%}" for name, value in scores.items() if name != "mean" or len(scores) > 2
        )
        self.progress.note(f"held-out score ({label}): {shown}")
        return scores

    def record(self, step: int, metrics: Metrics, trajectories: list[Trajectory]) -> None:
        """Metrics and answers of a step, to files and to the terminal."""
        self.progress.step(step, metrics)
        if self.logger is None:
            return
        with explained(self.run):
            self.logger.log(step, metrics)
            every = self.config.log.trajectories_every_steps
            if every and step % every == 0:
                columns = self.config.log.token_columns
                saved.save(self.run, step, trajectories, pieces=self.processor.pieces, columns=columns)

    def save(self) -> None:
        """Everything needed to go on from the last whole step."""
        self.progress.phase("save")
        STATUS.set_phase("save")
        learners = {"actor": self.actor} | ({} if self.critic is None else {"critic": self.critic})
        models = {name: model.tensor_state() for name, model in learners.items()}
        if self.reference is not None and self._reference_moved:
            models["reference"] = self.reference.tensor_state()
        state = {
            **self._position,
            "numbers": {name: model.scalar_state() for name, model in learners.items()},
            "generators": self.world.gather(self._position["generators"]),
            "buffer": self.world.gather(self.buffer.state(self._position["buffer"])),
        }
        self.checkpoints.save(self._position["done"], state, models)

    def save_model(self) -> None:
        """The Hugging Face folder of the run."""
        write_model(self.actor, self.processor, self.run / "model", self.world)

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what `save` wrote."""
        self.actor.load(state["models"]["actor"], state["numbers"]["actor"])
        if self.critic is not None:
            self.critic.load(state["models"]["critic"], state["numbers"]["critic"])
        if self.reference is not None and "reference" in state["models"]:
            self.reference.load(state["models"]["reference"])
            self._reference_moved = True
        if self.config.algorithm.kl_target:
            self.algorithm = self.algorithm.with_kl_coefficient(state["kl_coefficient"])
        judged_alike = self.scaler.cost in ("", state["scaler"]["cost"])
        self.scaler.load(state["scaler"])
        if judged_alike and len(state["buffer"]) == self.world.size:  # else it begins with no memory
            self.buffer.load(state["buffer"][self.world.rank], self.prompts.completed)
        self.prompts.load(state["prompts"])
        if len(state["generators"]) == self.world.size:
            restore_generators(state["generators"][self.world.rank])
        self.capsules.load(state["capsules"])
        self.done, self.evaluations = state["done"], dict(state["evaluations"])
        if self.done < self.config.steps:  # a finished run that is to go on
            self.evaluations.pop("after", None)
        self.earlier_seconds = state["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, loading and evaluation included, over all resumes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def _snapshot(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "prompts": self.prompts.state(),
            "generators": generator_states(),
            "capsules": self.capsules.state(),
            "kl_coefficient": self.algorithm.config.kl_coefficient,
            "scaler": self.scaler.state(),
            "buffer": self.buffer.snapshot(),
            "evaluations": dict(self.evaluations),
            "seconds": self.seconds,
        }

    def _capture(self, step: int, index: int, trajectories: Sequence[Trajectory]) -> None:
        self.capsules.write(
            step,
            trajectories=trajectories,
            state=snapshot(self.actor),
            config_yaml=layers.to_yaml(replace(self.config, algorithm=self.algorithm.config)),
            weights_hash=weights_hash(self.actor.weights()),
            rng=generator_states(),
            weight_version=self.actor.version,
            start=index,
        )

    def _penalise_length(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Takes the soft overlong penalty off the rewards. Groups are kept or not by what was right, so before this."""
        algorithm, most = self.algorithm.config, self.config.rollout.max_tokens
        if algorithm.overlong_buffer:
            for t in (t for group in groups for t in group):
                t.parts["overlong"] = overlong_penalty(len(t), most, algorithm.overlong_buffer)
                t.reward -= algorithm.overlong_penalty * t.parts["overlong"]

    def _plan(self, trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
        update = self.config.update
        return plan(trajectories, update.tokens_per_micro_batch, share_prompts=update.share_prompts)

    def _logprobs(self, model: Trainable | Frozen, batch: Batch) -> LogProbs:
        return model.compute(training_logprobs, batch, self.config)

    def _values(self, critic: Trainable, batch: Batch) -> torch.Tensor:
        return critic.compute(values, batch, self.config.model.attention == "separate")

    def _sampled(self, finished: int, total: int) -> None:
        self.progress.answers(finished, total)
        self.world.raise_if_failed()
        self.interrupt.raise_if_stopped()


def _tokens(groups: Sequence[Sequence[Trajectory]]) -> int:
    return sum(len(t) for group in groups for t in group)


def _knows_greedy(group: Sequence[Trajectory]) -> bool:
    return not math.isnan(group[0].greedy_reward)
