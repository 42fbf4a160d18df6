"""What a run of a model that draws costs: time from a short measurement, memory from the plan of one process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import cycle, islice

from rich.table import Table

from lightrft.commands.check.costs import CPU_BATCH, backward, forward, show_memory
from lightrft.commands.check.policy import Policy
from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.commands.plan.pictures import PicturePlan, plan
from lightrft.config import Config
from lightrft.config.plan import Hardware
from lightrft.models.flows import AFTERWARDS
from lightrft.strategy.memory import Phase
from lightrft.trainer.batching import pack
from lightrft.trainer.batching import plan as planned_batches
from lightrft.trainer.division import divide
from lightrft.trainer.rollout import needs_old, training_sampling
from lightrft.trainer.run import evaluation_label
from lightrft.types import Steps
from lightrft.utils.amounts import duration

CPU_PICTURES = 8
"""Most pictures of the measured burst on a CPU, so that the check stays quick."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a picture that is drawn as in training, and of a step of one that is learned from."""

    picture: float
    forward: float
    backward: float
    pictures: int
    rows: int
    """How many were drawn, and learned from, at once."""


def time_and_memory(
    section: Section, config: Config, parts: Parts, questions: Questions, policy: Policy
) -> None:
    """Measures a burst of the engine and one batch of steps; estimates the time of the run and the memory of its phases."""
    options, budget = config.rollout.denoise, config.update.tokens_per_micro_batch
    asked, most = config.rollout.prompts_per_step * config.rollout.group_size, CPU_BATCH
    on_cpu = parts.device.type == "cpu"
    drawn = min(asked, options.max_sequences, CPU_PICTURES if on_cpu else asked)
    burst = measure_burst(config, questions, policy, drawn)
    with policy.memory_plan(Phase.TRAIN):
        found = measure_rows(config, parts, policy, min(budget, most) if on_cpu else budget)
    measured = replace(found, picture=burst / drawn, pictures=drawn)
    section.fact("engine", f"{1 / measured.picture:,.2f} pictures/s, {drawn} at a time (measured)")
    rate = 1 / (measured.forward + measured.backward)
    section.fact("training pass", f"{rate:,.1f} denoising steps/s, {measured.rows} at a time (measured)")
    section.show(times(config, parts, questions, policy, measured))
    here = replace(
        config, strategy=replace(config.strategy, device="cpu" if on_cpu else config.strategy.device)
    )
    hardware = Hardware(devices=1, memory_gib=parts.available / 2**30, reserve=0.0)
    memory(section, plan(here, hardware, 0, 0), parts, config.rollout.limit)


def measure_burst(config: Config, questions: Questions, policy: Policy, pictures: int) -> float:
    """Seconds in which the engine draws so many pictures, as training does."""
    prompts = [questions.processor.open(p) for p in islice(cycle(questions.read), pictures)]
    sampling = replace(training_sampling(config.rollout, config.seed), n=1)

    def burst() -> float:
        began = time.perf_counter()
        policy.sampler.engine.generate(prompts, sampling)
        return time.perf_counter() - began

    return policy.sampler(burst)


def measure_rows(config: Config, parts: Parts, policy: Policy, budget: int) -> Measured:
    """One batch of the steps of what was drawn, forward and backward; no update follows. A first pass warms up."""
    part = planned_batches(divide(policy.samples, budget).pieces, budget)[0]
    batch = pack(part, device=parts.device, layout=policy.kind.layout)
    assert isinstance(batch.inputs, Steps)
    rows = int(batch.inputs.places.numel())
    backward(policy.actor, forward(config, policy, batch))
    marks = [time.perf_counter()]
    loss = forward(config, policy, batch)
    marks.append(time.perf_counter())
    backward(policy.actor, loss)
    marks.append(time.perf_counter())
    return Measured(0.0, (marks[1] - marks[0]) / rows, (marks[2] - marks[1]) / rows, 0, rows)


def times(config: Config, parts: Parts, questions: Questions, policy: Policy, measured: Measured) -> Table:
    """Seconds per phase and for the run."""
    algorithm, options = parts.algorithm, config.rollout.denoise
    pictures = config.rollout.prompts_per_step * config.rollout.group_size
    rows = pictures * options.learned
    again = 1 + config.replay.groups_per_step / config.rollout.prompts_per_step
    passes = int(needs_old(config, algorithm)) + again * int(algorithm.needs_reference)
    rollout = pictures * measured.picture
    score = rows * measured.forward * passes + pictures * policy.judge_seconds
    train = rows * (measured.forward + measured.backward) * config.update.epochs * again
    # Beside the steps of a picture that is drawn, those that noise it anew.
    steps = options.steps + (options.learned if options.noise in AFTERWARDS else 0)
    held = steps if config.evaluate.temperature else options.evaluation_steps or options.steps
    evaluated = len(questions.evaluate) * config.evaluate.samples
    evaluation = evaluated * (measured.picture * held / steps + policy.judge_seconds)
    due = (evaluation_label(config.evaluate, done, config.steps) for done in range(config.steps + 1))
    evaluations = sum(label is not None for label in due)
    table = Table("about", "rollout", "score", "train", "a step", "an evaluation", "the run", box=None, pad_edge=False)  # fmt: skip
    step = rollout + score + train
    table.add_row(
        f"{pictures} pictures of {options.learned} learned steps",
        *(duration(seconds) for seconds in (rollout, score, train, step)),
        duration(evaluation) if evaluations else "-",
        duration(config.steps * step + evaluations * evaluation),
    )
    return table


def memory(section: Section, planned: PicturePlan, parts: Parts, limit: str) -> None:
    """Shows who holds how much in which phase, by the plan of one process, against what was free before the model was loaded; on a CPU what the process
    keeps beside it as well."""
    found = planned.items + (planned.host if parts.device.type == "cpu" else [])
    show_memory(section, found, parts, limit)
