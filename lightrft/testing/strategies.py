"""What every strategy must do, as a list of checks against one process with plain AdamW: for ours, and for the author of another.

All ranks call them together; each computes the same, so that sums over ranks are multiples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.base import Strategy, Trainable
from lightrft.strategy.footprint import ADAM, EXACT
from lightrft.strategy.in_memory import restore
from lightrft.strategy.single import Single
from lightrft.testing.batches import tiny_trajectories
from lightrft.testing.checks import Checked, lacks, run_checks
from lightrft.trainer.batching import pack, to_device

OPTIONS = OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.5, eps=1e-4)
"""eps: AdamW divides by the gradient, so that rounding in one of nearly 0 would become a whole step."""
UPDATES = 4


@dataclass(frozen=True)
class StrategyBench:
    """A strategy, and the model that it is to make."""

    strategy: Strategy
    source: Source
    tolerance: float

    def trainable(self) -> Trainable:
        """A model made by the strategy."""
        return self.strategy.trainable(self.source, OPTIONS, UPDATES)

    def oracle(self) -> Trainable:
        """Model of the same source in this process alone."""
        alone = Single(StrategyConfig(), torch.device("cpu"))
        return alone.trainable(self.source, OPTIONS, UPDATES)

    def close(self, found: Tensor, right: Tensor, what: str) -> None:
        """LackingError unless the numbers agree to the tolerance."""
        lacks(
            found.shape != right.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(right.shape)}"
        )
        apart = float((found.detach().cpu().float() - right.detach().cpu().float()).abs().max())
        lacks(not apart <= self.tolerance, f"{what}: {apart:.2g} off")

    def same(self, found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
        """LackingError unless names and tensors agree."""
        lacks(set(found) != set(right), f"other names: {sorted(set(found) ^ set(right))[:4]}")
        for name, tensor in right.items():
            self.close(found[name], tensor, name)


def _loss(model: Trainable, seed: int = 0) -> Tensor:
    batch = to_device(pack(tiny_trajectories([(4, [3, 2]), (5, [4])], seed=seed)), _device(model))
    return -model.compute(_logprobs, batch).sum()


def _logprobs(module: nn.Module, batch: Any) -> Tensor:
    return logprobs(module, batch, temperature=1.0, max_logits=2000).values


def _device(model: Trainable) -> torch.device:
    return next(model.module.parameters()).device


def _weights(model: Trainable) -> dict[str, Tensor]:
    with model.adapters_merged():
        return {name: tensor.detach().clone() for name, tensor in model.weights()}


def _learn(model: Trainable, seed: int, share: float = 1.0) -> bool:
    model.backward(_loss(model, seed) * share)
    return model.step(model.gradient_norm())


def weights_come_whole_under_their_hugging_face_names(bench: StrategyBench) -> None:
    bench.same(_weights(bench.trainable()), _weights(bench.oracle()))


def compute_gives_what_the_model_gives(bench: StrategyBench) -> None:
    bench.close(_loss(bench.trainable()), _loss(bench.oracle()), "the loss")


def gradients_are_summed_over_calls_and_ranks(bench: StrategyBench) -> None:
    mine, right = bench.trainable(), bench.oracle()
    for seed in (1, 2):
        mine.backward(_loss(mine, seed))
        right.backward(_loss(right, seed))
    expected, found = right.gradient_norm() * World.current().size, mine.gradient_norm()
    lacks(not math.isclose(found, expected, rel_tol=1e-3), f"a norm of {found:g} instead of {expected:g}")


def a_step_is_that_of_adamw_with_a_clipped_norm(bench: StrategyBench) -> None:
    mine, right, ranks = bench.trainable(), bench.oracle(), World.current().size
    for seed in (1, 2):
        lacks(not _learn(mine, seed, 1 / ranks), "no update with a finite norm")
        _learn(right, seed)
    lacks(mine.version != 2, f"version {mine.version} after two steps")
    bench.same(_weights(mine), _weights(right))


def a_norm_that_is_not_finite_changes_nothing(bench: StrategyBench) -> None:
    mine = bench.trainable()
    before = _weights(mine)
    mine.backward(_loss(mine))
    mine.gradient_norm()  # always asked for before a step, which is then told that it was no number
    lacks(mine.step(math.nan), "an update with a norm of nan")
    lacks(mine.version != 0, f"version {mine.version} without an update")
    bench.same(_weights(mine), before)
    lacks(not _learn(mine, 1), "no update after one that was left out")


def a_state_goes_back_and_learning_goes_on_from_it(bench: StrategyBench) -> None:
    mine, again = bench.trainable(), bench.trainable()
    _learn(mine, 1)
    held = World.current().gather({name: _whole(tensor) for name, tensor in mine.tensor_state().items()})
    whole = {name: tensor for part in held for name, tensor in part.items()}
    kinds = {name.partition("/")[0] for name in whole}
    lacks(not {"weights", "exp_avg", "exp_avg_sq"} <= kinds, f"its state holds {sorted(kinds)}")
    restore(again, {"tensors": whole, "numbers": mine.scalar_state()})
    lacks(again.version != 1, f"version {again.version} of a model that had learned once")
    for model in (mine, again):
        _learn(model, 2)
    bench.same(_weights(again), _weights(mine))


def a_frozen_model_computes_and_follows(bench: StrategyBench) -> None:
    mine, frozen = bench.trainable(), bench.strategy.frozen(bench.source)
    batch = to_device(pack(tiny_trajectories([(4, [3])])), _device(mine))
    bench.close(frozen.compute(_logprobs, batch), mine.compute(_logprobs, batch), "its log-probs")
    _learn(mine, 1)
    with mine.adapters_merged():
        frozen.follow(mine.weights(), 1.0)
    bench.close(frozen.compute(_logprobs, batch), mine.compute(_logprobs, batch), "after following")


def what_is_measured_leaves_the_weights_that_learn(bench: StrategyBench) -> None:
    mine = bench.trainable()
    lacks(
        not callable(getattr(mine, "averaged", None)),
        "no method `averaged`, in which it is evaluated and saved",
    )
    _learn(mine, 1)
    before = _weights(mine)
    with mine.averaged():
        lacks(mine.is_averaged, "it says is_averaged, and AdamW keeps no average")
        bench.same(_weights(mine), before)
    found = _weights(mine)
    changed = [name for name, weight in before.items() if not torch.equal(found[name], weight)]
    lacks(bool(changed), f"{changed[:4]} are others after it was measured")


def residents_are_named(bench: StrategyBench) -> None:
    names = set(bench.trainable().parts())
    lacks(not {"weights", "optimizer"} <= names, f"its residents are {sorted(names)}")


def what_a_process_holds_is_stated(bench: StrategyBench) -> None:
    stated = getattr(bench.strategy, "footprint", None)
    lacks(not callable(stated), "no static method `footprint`, so that `lightrft plan` cannot count it")
    assert stated is not None
    sizes, ranks = Numbers.of(bench.oracle().module), World.current().size
    found = stated(getattr(bench.strategy, "config", StrategyConfig()), sizes, ranks, learns=True)
    shards = bench.strategy.shards
    lacks(found.sharded != shards, f"its footprint says sharded={found.sharded}, and itself shards={shards}")
    whole, pieces = EXACT * sizes.weights, found.weights * (ranks // found.copies if shards else 1)
    lacks(not 0.9 * whole <= pieces <= 2 * whole, f"{pieces} bytes of weights in all instead of {whole}")


@dataclass(frozen=True)
class Numbers:
    """Sizes of a module in float32, see strategy/footprint.py: Sizes."""

    weights: int
    learned: int
    inside: int
    largest_block: int
    optimizer_state: int
    width: int = EXACT

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.width * self.weights

    @property
    def learned_narrow(self) -> int:
        """None: float32 needs no copy in float32."""
        return 0

    @classmethod
    def of(cls, module: nn.Module) -> Numbers:
        """The sizes of a module; its blocks are the members of its longest list of modules."""
        lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        blocks = [sum(p.numel() for p in block.parameters()) for block in max(lists, key=len, default=[])]
        learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
        weights = sum(p.numel() for p in module.parameters())
        return cls(weights, learned, sum(blocks), max(blocks, default=0), ADAM * learned)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


CHECKS = (
    weights_come_whole_under_their_hugging_face_names,
    compute_gives_what_the_model_gives,
    gradients_are_summed_over_calls_and_ranks,
    a_step_is_that_of_adamw_with_a_clipped_norm,
    a_norm_that_is_not_finite_changes_nothing,
    a_state_goes_back_and_learning_goes_on_from_it,
    a_frozen_model_computes_and_follows,
    what_is_measured_leaves_the_weights_that_learn,
    residents_are_named,
    what_a_process_holds_is_stated,
)


def check_strategy(strategy: Strategy, source: Source, *, tolerance: float = 2e-5) -> Checked:
    """Every check of a strategy, and what is lacking in words; print it, or assert its `ok`. Called by all ranks.

    `source`: a small model in float32 without adapters or dropout, as ModelConfig(path="random:llama"). `tolerance`: of
    weights and log-probs, absolute.
    """
    return run_checks(CHECKS, StrategyBench(strategy, source, tolerance))
