"""The gradient steps of one training step, and what moves after them: the weight of the KL term, and the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.constraint import values_loss
from lightrft.algorithms.correction import mismatch
from lightrft.algorithms.requirements import correction_of
from lightrft.config import Config
from lightrft.config.rollout import OFF
from lightrft.models.experts import balancing_weight, routers_of
from lightrft.models.kinds import Compute
from lightrft.models.logprobs import LogProbs
from lightrft.models.values import values
from lightrft.models.words import training_logprobs
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.batching import Batching, batch_tokens, rows_of
from lightrft.trainer.metrics import average
from lightrft.trainer.mismatch import Agreement
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.routers import RouterWatch
from lightrft.trainer.skipping import Idle, without_advantage, without_mask
from lightrft.trainer.survey import surveyed
from lightrft.types import Batch, Terms, Trajectory
from lightrft.utils.seeding import derive_seed

Metrics = dict[str, float]


@dataclass
class Learner:
    """Teaches the critic and the actor from scored responses."""

    config: Config
    memory_plan: MemoryPlan
    batching: Batching
    algorithm: Algorithm
    """The present one: its weight of the divergence from the reference moves with the run, if that is set."""
    actor: Trainable
    critic: Trainable | None
    reference: Frozen | None
    logprobs: Compute = training_logprobs
    """What the actor says of a batch, as its kind has it (models/kinds.py)."""
    reference_moved: bool = False
    """Whether the reference is no longer the model the run began with, and so belongs into checkpoints."""
    agreement: Agreement = field(init=False)
    routers: RouterWatch = field(init=False)

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.config, self.batching.world, correction_of(self.algorithm))
        replays = self.config.rollout.routing_replay != OFF
        weight = balancing_weight(self.config.algorithm.router_aux_coefficient, self.actor.module)
        self.routers = RouterWatch(routers_of(self.actor.module), self.batching, weight, replays)

    @property
    def learners(self) -> dict[str, Trainable]:
        """The models that learn, by name."""
        return {"actor": self.actor} | ({} if self.critic is None else {"critic": self.critic})

    @property
    def followers(self) -> dict[str, Frozen]:
        """The models that have followed one that learns, by name."""
        return {"reference": self.reference} if self.reference is not None and self.reference_moved else {}

    def update(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        *,
        updates: list[Metrics],
        before_update: Callable[[int, float | None], None],
    ) -> Metrics:
        """Learns from the responses; what each update of the actor reports is added to `updates` as it comes. By all ranks."""
        criticism: list[Metrics] = []
        with self.memory_plan(Phase.TRAIN):
            if self.critic is not None:
                criticism = list(self.learn_values(self.critic, step, trajectories))
            if step > self.config.critic.warmup_steps:
                for metrics in self.learn(step, trajectories, before_update=before_update):
                    updates.append(metrics)  # noqa: PERF402  # those that came are there if a later one fails
        of_critic = {
            k: x for k, x in average(criticism).items() if not k.startswith(("update/", "counts/tokens_read"))
        }
        found = average(updates)
        if "mismatch/log_perplexity_ratio" in found:  # the mean of logarithms is taken first
            found["mismatch/perplexity_ratio"] = math.exp(found.pop("mismatch/log_perplexity_ratio"))
        if "mismatch/square" in found:
            square = found.pop("mismatch/square")
            found["mismatch/effective_samples"] = (
                found["mismatch/ratio"] ** 2 / square if square > 0 else math.nan
            )
            found["mismatch/chi_square"] = square - 1
        return found | {f"critic/{name}": x for name, x in of_critic.items()}

    def learn(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        *,
        first: int = 0,
        before_update: Callable[[int, float | None], None] = lambda _index, _norm: None,
    ) -> Iterator[Metrics]:
        """The gradient steps of the actor; also what `lightrft replay` computes again, from update number `first` on."""
        seed = derive_seed(self.config.seed, "update", step)
        every = self.config.log.trajectories_every_steps
        for metrics in optimize(
            self.actor,
            self._updates(trajectories, seed=seed, first=first),
            self.policy_loss,
            averaging=Averaging(self.algorithm.config.average, self.config.rollout.max_tokens),
            batching=self.batching,
            before_update=before_update,
            keep_tokens=self.config.log.token_columns and every > 0 and step % every == 0,
            idle=self.idle,
        ):
            yield metrics | self.routers.metrics()

    @property
    def idle(self) -> Idle | None:
        """Whether a scored response has no part in the gradient of the actor; None where every one is to be read."""
        if (
            not self.config.update.skip_zero_advantage
            or self.algorithm.whole_groups
            or self.routers.coefficient
        ):
            return None  # the balance of experts is over all tokens
        return without_advantage if self.algorithm.zero_without_advantage else without_mask

    def work(self, group: Sequence[Trajectory]) -> int:
        """Tokens that an update reads of a group."""
        rows, idle = rows_of(group), self.idle
        if idle is None or self.critic is not None:  # the critic learns from all
            return batch_tokens(rows)
        return batch_tokens([t for t in rows if not idle(t)])

    def _updates(
        self, trajectories: Sequence[Trajectory], *, seed: int, first: int
    ) -> Iterator[tuple[int, list[Trajectory]]]:
        """The updates of the actor, looked at by the loss before their gradients if it asks for that."""
        updates = self.batching.updates(trajectories, seed=seed, first=first)
        updates = self.routers.surveyed(updates, self._present)
        if self.algorithm.survey is None:
            return updates
        return surveyed(
            updates, lambda batch: self._present(batch).values, self.algorithm.survey, self.batching
        )

    def _present(self, batch: Batch) -> LogProbs:
        return self.actor.compute(self.logprobs, batch, self.config)

    def learn_values(
        self, critic: Trainable, step: int, trajectories: Sequence[Trajectory]
    ) -> Iterator[Metrics]:
        """The gradient steps of the critic; tokens weigh the same."""
        clip, exact = self.config.critic.value_clip, self.config.model.attention == "separate"
        seed = derive_seed(self.config.seed, "critic", step)
        return optimize(
            critic,
            self.batching.updates(trajectories, seed=seed),
            lambda batch: values_loss(critic.compute(values, batch, exact), batch, clip),
            averaging=Averaging("token", self.config.rollout.max_tokens),
            batching=self.batching,
        )

    def policy_loss(self, batch: Batch) -> Terms:
        """The algorithm's loss of each token under the actor's present weights, (T,)."""
        new = self.actor.compute(self.logprobs, batch, self.config)
        batch.divergence, batch.step_weights, batch.moved = new.divergence, new.weights, new.moved
        terms = self.algorithm.loss(new.values, batch, new.entropy)
        sampled_at = new.values if batch.old is None else batch.old
        gap = mismatch(sampled_at, batch.behavior, batch.mask)
        found = {
            "mismatch/mean_abs": gap,
            "mismatch/max": gap,
            "mismatch/log_perplexity_ratio": batch.behavior - sampled_at.detach(),
        }
        told = {"new": new.values.detach(), "entropy": new.entropy.detach(), "weight": batch.weights}
        return Terms(terms.loss, terms.metrics | found, terms.ratios, told, self.routers.loss(new))

    def follow(self, step: int, metrics: Mapping[str, float]) -> Metrics:
        """Moves what moves after the update: the weights of the divergence from the reference and of the entropy, and the reference."""
        row, found = self.algorithm.config, dict[str, float]()
        if row.entropy_target:
            found["entropy_coefficient"] = row.entropy_coefficient
        coefficient = row.kl_coefficient
        self.algorithm = self.algorithm.with_adapted_kl(metrics.get("kl"))
        self.algorithm = self.algorithm.with_adapted_entropy(metrics.get("entropy"))
        if self.reference is None:
            return found
        every = self.algorithm.config.reference_update_steps
        if every and step % every == 0:
            with self.memory_plan(Phase.SCORE), self.actor.averaged():
                self.reference.follow(self.actor.weights(), self.algorithm.config.reference_update_rate)
            self.reference_moved = True
        return found | {"kl_coefficient": coefficient}

    def state(self) -> dict[str, Any]:
        """The learner's state besides the models, for the checkpoint."""
        return {
            "kl_coefficient": self.algorithm.config.kl_coefficient,
            "entropy": [self.algorithm.entropy_held, self.algorithm.config.entropy_coefficient],
            "reference_moved": self.reference_moved,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        if self.config.algorithm.kl_target:
            self.algorithm = self.algorithm.with_kl_coefficient(state["kl_coefficient"])
        if self.config.algorithm.entropy_target and "entropy" in state:
            self.algorithm = self.algorithm.with_entropy(*state["entropy"])
        self.reference_moved = state["reference_moved"]
