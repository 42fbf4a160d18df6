"""Mixtures of experts in training: the load-balancing loss of an update, what the log says of routers, and the experts to replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightrft.algorithms.routing import evenness, load_balancing
from lightrft.engines.base import EngineError
from lightrft.models.experts import Routers
from lightrft.models.logprobs import LogProbs
from lightrft.trainer.batching import Batching, rows_of
from lightrft.types import Batch, Inputs, Trajectory

Update = tuple[int, list[Trajectory]]
Compute = Callable[[Batch], LogProbs]


@dataclass
class RouterWatch:
    """Follows the routers of the policy through its updates; does nothing where it has none.

    The loss of an update is over every token that is read to sample another one, on all ranks: prompts too, once for each response to
    them, as if each response had its prompt to itself. So it is what transformers finds for the same sequences, however they are packed.
    The last token of a response is left out: sampling never reads it, so that nobody knows which experts it would have had.
    """

    routers: Routers | None
    batching: Batching
    coefficient: float
    """Weight of the load-balancing loss; 0: none."""
    replays: bool
    """Whether experts are replayed."""
    _target: tuple[Tensor, float] | None = None
    """(M, E), the load of the present update on all ranks, and its tokens."""
    _load: list[Tensor] = field(default_factory=list)
    _changed: list[Tensor] = field(default_factory=list)
    _losses: list[Tensor] = field(default_factory=list)

    def surveyed(self, updates: Iterable[Update], compute: Compute) -> Iterator[Update]:
        """Updates as they are given, of each of which the load is known when it comes; called by all ranks.

        Where all experts are to be replayed their load is counted; else a pass without gradients finds it, under the weights as they are,
        so an update must be made before the next is asked for.
        """
        for index, answers in updates:
            if self.coefficient and self.routers is not None:
                rows = rows_of(answers)
                known = self.batching.world.all(all(map(_is_known, rows)))
                load = self._counted(rows) if known else self._found(rows, compute)
                numbers = torch.cat([load.flatten(), load.new_tensor([sum(map(_read, rows))])])
                *_, tokens = everywhere = self.batching.world.sum(numbers)
                self._target = everywhere[:-1].view_as(load), float(tokens)
            yield index, answers

    def _counted(self, answers: Sequence[Trajectory]) -> Tensor:
        """(M, E) of this rank, by the experts of its responses."""
        assert self.routers is not None
        load = self._nothing()
        for experts in (t.experts for t in answers if t.experts is not None):
            each = experts.long().transpose(0, 1).flatten(1)
            load.scatter_add_(1, each, torch.ones_like(each, dtype=load.dtype))
        return load

    @torch.no_grad()
    def _found(self, answers: Sequence[Trajectory], compute: Compute) -> Tensor:
        """(M, E) of this rank, or of its tokens of what its team computes."""
        load = self._nothing()
        for _part, batch, _counts in self.batching.rounds(answers):
            found = compute(batch).router_load
            assert found is not None
            load += found.cpu()
        return load

    def _nothing(self) -> Tensor:
        assert self.routers is not None
        return torch.zeros(len(self.routers.layers), self.routers.num_experts, dtype=torch.float64)

    def loss(self, told: LogProbs) -> Tensor | None:
        """What a micro-batch adds to the loss, weighted; None without. Notes what its routers told."""
        if told.router_load is None:
            return None
        self._load.append(told.router_load)
        if told.router_changed is not None:
            self._changed.append(told.router_changed)
        if told.router_mass is None or self._target is None:
            return None
        load, tokens = self._target
        found = load_balancing(load.to(told.router_mass.device), told.router_mass, tokens)
        self._losses.append(found.detach())
        return self.coefficient * found

    def metrics(self) -> dict[str, float]:
        """Metrics of the update that was made; forgets it. Called by all ranks."""
        if self.routers is None:
            return {}
        world = self.batching.world
        load = world.sum(sum((one.cpu() for one in self._load), self._nothing()))
        found = evenness(load)
        if self.coefficient:
            found["router/aux_loss"] = float(world.sum(_sum(self._losses)))
        if self.replays:
            changed, replayed = world.sum(_sum(self._changed, 2)).tolist()
            found["router/replayed"] = replayed / max(1.0, float(load.sum()))
            found["router/replay_changed"] = changed / max(1.0, replayed)
        self._load, self._changed, self._losses = [], [], []
        return found


def _read(t: Trajectory) -> int:
    """Tokens that are read to sample another one."""
    return len(t.prompt.token_ids) + len(t) - 1 if len(t) else 0


def _is_known(t: Trajectory) -> bool:
    return _read(t) == (0 if t.experts is None else len(t.experts))


def _sum(parts: Sequence[Tensor], *shape: int) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64)
    return sum((part.detach().cpu().double() for part in parts), total)


def keep_experts(part: Sequence[Trajectory], batch: Batch, experts: Tensor, dtype: torch.dtype) -> None:
    """Gives each response the experts (N, M, K) that a pass over their batch chose, to be replayed."""
    assert isinstance(batch.inputs, Inputs)
    told = experts.to("cpu", dtype)
    for t, (a, b), (c, d) in zip(part, batch.inputs.prompt_spans, batch.inputs.response_spans, strict=True):
        t.experts = torch.cat([told[a:b], told[c : d - 1]]) if c < d else None


def check_told(answers: Sequence[Trajectory], engine: str) -> None:
    """EngineError if an engine has sampled responses without telling the experts that it chose."""
    silent = sum(1 for t in answers if t.origin == "sampled" and t.experts is None and len(t))
    if silent:
        raise EngineError(
            f"rollout.routing_replay=sampling: rollout.engine={engine} gave {silent} of {len(answers)} responses without the experts of their tokens. "
            "Set rollout.routing_replay=old, or an engine that tells them."
        )
