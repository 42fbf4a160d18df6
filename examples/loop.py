"""GRPO in one file, over the parts of LightRFT: sample, judge, compare, learn. The same step as trainer/rl.py takes, without its options.

python examples/loop.py --steps 20
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from lightrft.algorithms.algorithm import build
from lightrft.build.memory import build_memory_plan
from lightrft.config import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    StrategyConfig,
    TaskConfig,
    UpdateConfig,
)  # fmt: skip
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import prepare
from lightrft.engines.native import native_engine
from lightrft.models.load import load_processor
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.processor import Processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import Phase
from lightrft.strategy.single import Single
from lightrft.tasks.table import load_task
from lightrft.trainer.batching import Batching, pack, unpack
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.rollout import rollout
from lightrft.trainer.sampler import Sampler
from lightrft.types import Batch, Sampling, Terms, Trajectory
from lightrft.utils.imports import resolve
from lightrft.utils.seeding import derive_seed

MAX_TOKENS = 8
"""Of a response."""


def answers_of(trajectories: Sequence[Trajectory]) -> str:
    """A few responses with their rewards, for people."""
    return "  ".join(f"{t.answer!r} {t.reward:g}" for t in trajectories[:3])


def logprobs_of(model: Trainable | Frozen, batch: Batch) -> LogProbs:
    """Log-probs and entropy of every response token under the present weights, each (T,)."""
    return model.compute(partial(logprobs, temperature=1.0, max_logits=4_194_304), batch)


def task_of(processor: Processor) -> tuple[PromptLoader, RewardRunner]:
    """Prompts in the model's tokens, drawn endlessly, and the rewards that judge their responses."""
    task = load_task("tiny")
    prompts, _ = prepare(task.load("train", TaskConfig(), "", 0), processor, TaskConfig())
    judge = RewardRunner({task.name: task.rewards}, RewardConfig(workers=0))
    return PromptLoader([(prompts, 1.0)], seed=0), judge


def grpo(steps: int, group_size: int = 8, prompts_per_step: int = 8) -> list[float]:
    """Trains the tiny model on its task, and gives the mean reward of each step."""
    torch.manual_seed(0)
    device, world = torch.device("cpu"), World()

    model_config = ModelConfig(path="random:llama")
    processor = load_processor(model_config)
    loader, judge = task_of(processor)

    # The models: an actor that learns, a reference that does not, and an engine that samples with the actor's weights.
    strategy = Single(StrategyConfig(), device)
    actor = strategy.trainable(Source(model_config), OptimizerConfig(learning_rate=3e-3), total_updates=steps)
    reference = strategy.frozen(Source(model_config, learns=False))
    engine = native_engine(actor.module, processor, RolloutConfig())
    phases = build_memory_plan({"actor": actor, "reference": reference}, engine, {}, device)
    phases.begin()
    sampler = Sampler(engine, actor, phases, world)

    # GRPO: rewards against the mean of the group, in units of its deviation; clipped ratios; KL to the reference in the loss.
    algorithm = build(AlgorithmConfig(kl="k3", kl_coefficient=0.001), resolve)
    batching = Batching(UpdateConfig(tokens_per_micro_batch=1024), world, device)

    def loss(batch: Batch) -> Terms:
        new = logprobs_of(actor, batch)
        return algorithm.loss(new.values, batch, new.entropy)

    def fill(name: str, trajectories: Sequence[Trajectory], compute: Callable[[Batch], torch.Tensor]) -> None:
        """One column of every trajectory, micro-batch by micro-batch."""
        with torch.no_grad():
            for part, batch, _ in batching.rounds(trajectories):
                unpack(compute(batch), part, name)

    means: list[float] = []
    for step in range(1, steps + 1):
        # 1. Sample: each prompt's responses are a group, numbered over the whole run.
        sampling = Sampling(n=group_size, max_tokens=MAX_TOKENS, seed=derive_seed(0, step))
        asked, first = loader.draw(prompts_per_step), step * prompts_per_step
        groups = sampler(partial(rollout, engine, asked, sampling, processor, first_group=first))
        trajectories = [t for group in groups for t in group]
        # 2. Judge: the reward of every response.
        sampler.judged(judge, trajectories)
        # 3. Compare: log-probs of the reference, and advantages within each group.
        with phases(Phase.SCORE):
            fill("ref", trajectories, lambda batch: logprobs_of(reference, batch).values)
            whole = pack(trajectories, inputs=False)
            algorithm.compute_advantages(whole, world.sum)
            assert whole.advantages is not None
            unpack(whole.advantages, trajectories, "advantages")
        # 4. Learn: one update from all of them, every token weighing the same.
        with phases(Phase.TRAIN):
            updates = batching.updates(trajectories, seed=step)
            (metrics,) = optimize(
                actor, updates, loss, averaging=Averaging("token", MAX_TOKENS), batching=batching
            )
        means.append(sum(t.reward for t in trajectories) / len(trajectories))
        print(
            f"step {step:3d}  reward {means[-1]:.3f}  KL {metrics['kl']:.4f}  entropy {metrics['entropy']:.3f}  "
            f"gradient {metrics['grad_norm']:.2f}   {answers_of(trajectories)}"
        )
        assert math.isfinite(metrics["loss"])
    judge.close()
    return means


def main() -> None:
    """Reads the one option there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    grpo(parser.parse_args().steps)


if __name__ == "__main__":
    main()
