"""One step of reinforcement learning. Read this first.

The engine gets the policy's present weights and samples responses to new prompts, which rewards judge (`collect`). All models
that look at the responses say their log-probs and values, from which rewards become advantages (`score`). Then the policy,
and the critic if there is one, learn from them in gradient steps (`update`). What does not fit into a step waits in the
buffer for the next one. trainer/run.py takes step after step, and writes down, evaluates and saves.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightrft.config import Config
from lightrft.models.processor import Processor
from lightrft.parallel.world import World
from lightrft.strategy.base import Frozen, Trainable
from lightrft.trainer.balance import balanced
from lightrft.trainer.batching import rows_of
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.capture import Capture
from lightrft.trainer.collect import Collector
from lightrft.trainer.diversity import DiversityWatch
from lightrft.trainer.evaluate import Evaluator
from lightrft.trainer.flight import Group
from lightrft.trainer.learn import Learner
from lightrft.trainer.run import Evaluation, Journal, Metrics, Part, RankPart
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.score import Scorer
from lightrft.types import Trajectory, Use
from lightrft.utils.seeding import derive_seed


@dataclass
class RLTrainer:
    """Sample, judge, learn, repeat.

    Every rank runs this same program on its own prompts (SPMD). Ranks meet where gradients are summed, where weights
    are gathered for the engine, and in `world`. Put together by build/assemble.py; a subclass may override any of the five
    short methods push_weights, collect, score, update and record.
    """

    config: Config
    """The settings of the run."""
    world: World
    """This rank among all of the run."""
    sampler: Sampler
    """The engine with the policy's present weights, in the phase in which it may sample."""
    collector: Collector
    """Judged groups for a step: what to sample, when to sample again."""
    buffer: RolloutBuffer
    """Groups that outlive their step."""
    scorer: Scorer
    """Log-probs of actor, reference and teacher; values; rewards to advantages."""
    learner: Learner
    """Gradient steps of critic and actor; the reference that follows."""
    capture: Capture
    """Capsules of the steps that are to be replayed."""
    evaluator: Evaluator
    """Held-out scores."""
    journal: Journal
    """Where the run writes down what happens."""
    processor: Processor
    """The tokenizer, and what reads media for some models."""
    watch: DiversityWatch
    """Warns where pictures become the same, of models that draw."""
    parts: Mapping[str, Part]
    """Everything that goes into checkpoints besides models, the same on all ranks."""
    rank_parts: Mapping[str, RankPart]
    """Parts of the run of which every rank has its own state, by name."""
    whole: bool = field(default=True, init=False)
    """Whether the weights are those of the last whole step; whoever writes the step down sets it again."""

    def __post_init__(self) -> None:
        self.sampler.push = self.push_weights  # a subclass's way holds wherever the engine samples

    def train_step(self, step: int) -> tuple[Metrics, list[Trajectory]]:
        """One step: everything between two sets of weights. Its metrics, and the responses it learned from, then those it did not."""
        self.sampler.settle()
        self.push_weights()
        fresh, metrics = self.collect(step)
        draw = random.Random(derive_seed(self.config.seed, "filter", step, self.world.rank))
        groups = fresh + self.buffer.sample(step, draw)
        trajectories = [t for group in groups for t in group]
        metrics |= self.score(trajectories)
        self.buffer.add(step, fresh)
        # Advantages compare whole groups, so responses are chosen after they are scored.
        chosen = [t for group in groups for t in self.learner.algorithm.response_filter(group, draw)]
        if self.learner.algorithm.compares_chosen:
            self.scorer.compare(chosen, self.learner.algorithm)
        mark_use(trajectories, chosen)
        metrics |= self.update(step, balanced(chosen, self.world, self.learner.work))
        self.learner.agreement.check(metrics, from_a_part=self.buffer.any_from_a_part(groups))
        metrics |= self.learner.follow(step, metrics)
        self.buffer.mark_stale()
        return metrics, trajectories + self.collector.unused

    def push_weights(self) -> None:
        """The engine samples from the actor's present weights; called by all ranks."""
        self.sampler.push_weights()

    def collect(self, step: int) -> tuple[list[Group], Metrics]:
        """Judged groups worth learning from, this rank's share, and what is known of all sampled."""
        return self.collector.collect(step)

    def score(self, trajectories: list[Trajectory]) -> Metrics:
        """Fills the columns: log-probs of whoever is asked for, values, then rewards, advantages and returns."""
        waiting = [t for group in self.buffer.carried_over for t in group]
        return self.scorer.score(trajectories, self.learner.algorithm, waiting)

    def update(self, step: int, trajectories: list[Trajectory]) -> Metrics:
        """Learns from the responses; capsules of the step are written on the way if they are wanted."""
        self.journal.progress.phase("train")
        self.whole = False
        with self.capture.of(step, trajectories) as (before_update, updates):
            return self.learner.update(step, trajectories, updates=updates, before_update=before_update)

    def record(self, step: int, metrics: Metrics, trajectories: list[Trajectory]) -> None:
        """Metrics and responses of a step, to files."""
        self.journal.log(step, metrics)
        self.journal.sample(step, trajectories, self.config.log.sample_groups)
        self.watch.check(metrics)
        every = self.config.log.trajectories_every_steps
        if every and step % every == 0:
            self.journal.save(step, trajectories, self.processor, self.config.log)

    def evaluate(self, label: str) -> Evaluation:
        """Held-out scores by task; every response goes into the run folder under `label`."""
        engine, progress = self.sampler.engine, self.sampler.progress
        groups = self.sampler(lambda: self.evaluator.sample(engine, progress=progress))
        self.sampler.judged(self.evaluator.rewards, [t for group in groups for t in group])
        scores = self.evaluator.report(groups, label)
        shown = ", ".join(
            f"{name} {value:.1%}" for name, value in scores.items() if name != "mean" or len(scores) > 2
        )
        return Evaluation("evaluation", scores, f"held-out score ({label}): {shown}")

    @property
    def actor(self) -> Trainable:
        """The policy as it learns; what the run is about."""
        return self.learner.actor

    @property
    def model(self) -> Trainable:
        """The model that the run is about."""
        return self.learner.actor

    @property
    def learners(self) -> Mapping[str, Trainable]:
        """The models that learn, by the names they have in checkpoints."""
        return self.learner.learners

    @property
    def followers(self) -> Mapping[str, Frozen]:
        """The frozen models that are no longer those that the run began with, by name."""
        return self.learner.followers


def mark_use(scored: Sequence[Trajectory], chosen: Sequence[Trajectory]) -> None:
    """Notes which of the scored responses are learned from."""
    selected = {id(t) for t in chosen}
    for t in scored:
        learned: Use = "trained" if any(t.mask) or not t.mask else "masked"
        t.use = learned if id(t) in selected else "unselected"
    for row in rows_of(scored):
        row.learned = {}  # of an earlier step, if it is replayed
