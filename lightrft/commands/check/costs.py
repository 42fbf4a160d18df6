"""What a run costs: time and memory from a short measurement, and disk."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from statistics import median

import torch
from rich.table import Table
from torch import Tensor

from lightrft.algorithms.algorithm import Algorithm
from lightrft.build.models import critic_source, teacher_model
from lightrft.build.tables import OWN_LIMIT
from lightrft.commands.check.policy import LONGEST_SAMPLE, Policy
from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.commands.plan import models_of
from lightrft.commands.plan.memory import SHOWN, Item, Lengths, Models, engine_of, items, passes, sums
from lightrft.config import Config
from lightrft.models.describe import without_weights
from lightrft.models.nf4 import numbers, whole_bytes
from lightrft.models.supports import repeated
from lightrft.models.values import critic_size
from lightrft.runs.folder import check_new
from lightrft.strategy.base import Trainable
from lightrft.strategy.memory import Phase
from lightrft.trainer.batching import batch_tokens, pack, plan
from lightrft.trainer.rollout import needs_old, training_sampling
from lightrft.trainer.run import evaluation_label
from lightrft.types import Batch, Inputs, Prompt, Trajectory
from lightrft.utils.amounts import duration, size
from lightrft.utils.device import device_bytes, release_memory
from lightrft.utils.paths import expanded

SPEED_TOKENS = 16
"""Tokens of each response sampled to measure the speed of the engine."""
CPU_BATCH = 512
"""Most tokens of the measured training batch on a CPU, so that the check stays quick; time and memory are scaled up."""
NEARLY_FULL = 0.85


@dataclass(frozen=True)
class Speed:
    """What the engine did in a short burst at the concurrency of a step."""

    tokens_per_second: float
    start_seconds: float
    """Time to read one prompt."""
    concurrency: int


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over a training batch."""

    tokens: int
    """Read by the model."""
    forward_seconds: float
    backward_seconds: float
    activation_bytes: int
    """Held between the two."""


def time_and_memory(
    section: Section, config: Config, parts: Parts, questions: Questions, policy: Policy
) -> None:
    """Measures a burst of the engine and one training batch; estimates the time of the run and the memory of its phases."""
    planned = Planned.of(config, parts, questions)
    speed = measure_engine(config, questions, policy, concurrency=planned.running)
    capped = config.rollout.max_tokens > LONGEST_SAMPLE and all(t.finish == "length" for t in policy.samples)
    typical = config.rollout.max_tokens if capped else max(1, round(policy.typical_length))
    usual = step_answers(config, questions, policy, typical)
    full = step_answers(config, questions, policy, config.rollout.max_tokens)
    with policy.memory_plan(Phase.TRAIN):
        measured = measure_pass(config, parts, policy, usual)
    section.fact(
        "engine",
        f"{speed.tokens_per_second:,.0f} tokens/s with {speed.concurrency} responses at a time (measured)",
    )
    rate = measured.tokens / (measured.forward_seconds + measured.backward_seconds)
    section.fact(
        "training pass", f"{rate:,.0f} tokens/s, prompts included (measured on {measured.tokens} tokens)"
    )
    if parts.algorithm.needs_optimal_values:
        asked, samples = len(questions.train), config.algorithm.value_samples
        told = f"{samples} responses to each of {asked:,} training prompts: {asked * samples:,} before the first step"
        section.fact("values", told)
    lengths = [usual] if typical == config.rollout.max_tokens else [usual, full]
    estimate_time(section, config, parts, questions, policy, speed, measured, lengths)
    estimate_memory(section, config, parts, planned, measured, full)


@dataclass(frozen=True)
class Planned:
    """What `lightrft plan` knows of this run on one process."""

    models: Models
    items: list[Item]
    """What takes memory, but for passes over batches."""
    running: int
    """Responses of a step that the engine decodes at a time."""

    @classmethod
    def of(cls, config: Config, parts: Parts, questions: Questions) -> Planned:
        """Plans with what is free on the device and the longest prompt."""
        models = models_of(config, parts.algorithm)
        lengths = Lengths(questions.longest, config.rollout.max_tokens)
        on_cpu, free = parts.device.type == "cpu", parts.available
        asked = config.rollout.prompts_per_step * config.rollout.group_size
        most = engine_of(config, models, lengths, 1, on_cpu=on_cpu, device_bytes=free).most_running
        measures = parts.algorithm.needs_optimal_values
        found = items(config, models, lengths, 1, on_cpu=on_cpu, device_bytes=free, measures=measures)
        return cls(models, found, min(asked, most or asked))


def measure_engine(config: Config, questions: Questions, policy: Policy, *, concurrency: int) -> Speed:
    """A burst of as many responses as a step decodes at a time."""
    roll = config.rollout
    prompts = list(islice(cycle(questions.read), -(-concurrency // roll.group_size)))
    sampling = replace(
        training_sampling(roll, config.seed), max_tokens=min(roll.max_tokens, SPEED_TOKENS), ignore_eos=True
    )
    engine, seen = policy.sampler.engine, [(time.perf_counter(), 0)]

    def burst() -> float:
        seen[:] = [(time.perf_counter(), 0)]  # anew if the engine died and was started again
        engine.generate(
            prompts, sampling, lambda _finished, tokens: seen.append((time.perf_counter(), tokens))
        )
        return time.perf_counter() - seen[0][0]

    total = policy.sampler(burst)
    tokens = len(prompts) * roll.group_size * sampling.max_tokens
    steps = [(later - earlier, new - old) for (earlier, old), (later, new) in pairwise(seen)]
    most = max((made for _, made in steps), default=0)
    steady = [seconds for seconds, made in steps[1:] if made == most]
    rate = most / median(steady) if steady else tokens / total
    start = max(0.0, total - tokens / rate) / len(prompts)
    return Speed(rate, start, concurrency)


def step_answers(config: Config, questions: Questions, policy: Policy, length: int) -> list[Trajectory]:
    """The responses of one step, made up: real prompts, every response `length` sampled tokens long, with what these were drawn among."""
    tokens = list(islice(cycle([x for t in policy.samples for x in t.token_ids]), length))
    support = repeated(policy.samples, length)
    prompts = list(
        islice(
            cycle(spread(questions.read, config.rollout.prompts_per_step)), config.rollout.prompts_per_step
        )
    )
    return [
        Trajectory(
            prompt=p,
            group=g,
            token_ids=tokens,
            mask=[True] * length,
            behavior=[0.0] * length,
            finish="stop",
            support=support,
        )
        for g, p in enumerate(prompts)
        for _ in range(config.rollout.group_size)
    ]


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """About `count` of them, evenly from the whole list."""
    return list(prompts[:: max(1, len(prompts) // count)])


def measure_pass(config: Config, parts: Parts, policy: Policy, answers: Sequence[Trajectory]) -> Pass:
    """One training batch forward and backward; no update follows. A first pass over it warms up and shows its memory."""
    budget = (
        min(config.update.tokens_per_micro_batch, CPU_BATCH)
        if parts.device.type == "cpu"
        else config.update.tokens_per_micro_batch
    )
    share = config.update.share_prompts
    part = plan(answers, budget, share_prompts=share)[0]
    batch = pack(part, share_prompts=share, device=parts.device, layout=policy.kind.layout)
    assert isinstance(batch.inputs, Inputs)
    before = settled_bytes(parts.device)
    loss = forward(config, policy, batch)
    held = max(0, settled_bytes(parts.device) - before)
    backward(policy.actor, loss)
    times = [time.perf_counter()]
    loss = forward(config, policy, batch)
    times.append(time.perf_counter())
    backward(policy.actor, loss)
    times.append(time.perf_counter())
    return Pass(batch.inputs.token_ids.numel(), times[1] - times[0], times[2] - times[1], held)


def forward(config: Config, policy: Policy, batch: Batch) -> Tensor:
    """A loss with everything behind it that a backward pass needs; the device is done with it."""
    loss = -policy.actor.compute(policy.kind.logprobs, batch, config).values.mean()
    float(loss.detach())
    return loss


def backward(actor: Trainable, loss: Tensor) -> None:
    """Gradients, and the device is done with them."""
    actor.backward(loss)
    actor.gradient_norm()


def settled_bytes(device: torch.device) -> int:
    """Memory in use, after freed blocks went back."""
    release_memory(device)
    return device_bytes(device)


def tokens_read(answers: Sequence[Trajectory], config: Config) -> list[int]:
    """Tokens the model reads in each batch of these responses."""
    share = config.update.share_prompts
    return [
        batch_tokens(batch, share_prompts=share)
        for batch in plan(answers, config.update.tokens_per_micro_batch, share_prompts=share)
    ]


def estimate_time(
    section: Section,
    config: Config,
    parts: Parts,
    questions: Questions,
    policy: Policy,
    speed: Speed,
    measured: Pass,
    lengths: Sequence[Sequence[Trajectory]],
) -> None:
    """Seconds per phase and for the run, for responses as long as the sampled ones and for the longest."""
    algorithm = parts.algorithm
    critics = int(algorithm.needs_critic)  # taken to be as large as the actor
    again = (
        1 + config.replay.groups_per_step / config.rollout.prompts_per_step
    )  # responses learned from, per new one
    once = int(needs_old(config, algorithm))
    passes = once + again * (int(algorithm.needs_reference) + critics)
    passes += (
        again
        * teacher_parameters(config, algorithm)
        / sum(count for *_, count in numbers(policy.actor.module))
    )
    columns = ["about", "rollout", "score", "train", "a step", "an evaluation", "the run"]
    if algorithm.needs_optimal_values:
        columns.insert(1, "values, once")
    table = Table(*columns, box=None, pad_edge=False)
    due = (evaluation_label(config.evaluate, done, config.steps) for done in range(config.steps + 1))
    evaluations = sum(label is not None for label in due)
    asked = len(questions.evaluate) * config.evaluate.samples
    for answers in lengths:
        length, read = len(answers[0]), sum(tokens_read(answers, config))
        generate = (
            len(answers) * length / speed.tokens_per_second
            + config.rollout.prompts_per_step * speed.start_seconds
        )
        score = read / measured.tokens * measured.forward_seconds * passes + policy.judge_seconds * len(
            answers
        )
        train = (
            read
            / measured.tokens
            * (measured.forward_seconds + measured.backward_seconds)
            * config.update.epochs
            * (1 + critics)
            * again
        )
        most = min(length, config.evaluate.max_tokens or config.rollout.max_tokens)
        evaluation = asked * (most / speed.tokens_per_second + speed.start_seconds + policy.judge_seconds)
        step = generate + score + train
        before = [values_seconds(config, questions, policy, speed, length)] * algorithm.needs_optimal_values
        run = sum(before) + config.steps * step + evaluations * evaluation
        words = f"{length} tokens per response"
        table.add_row(
            words,
            *(duration(s) for s in (*before, generate, score, train, step)),
            duration(evaluation) if evaluations else "-",
            duration(run),
        )
    section.show(table)


def values_seconds(config: Config, questions: Questions, policy: Policy, speed: Speed, length: int) -> float:
    """What measuring the values of all training prompts takes, before the first step."""
    asked = len(questions.train)
    answers = asked * config.algorithm.value_samples
    return answers * (length / speed.tokens_per_second + policy.judge_seconds) + asked * speed.start_seconds


def estimate_memory(
    section: Section,
    config: Config,
    parts: Parts,
    planned: Planned,
    measured: Pass,
    full: Sequence[Trajectory],
) -> None:
    """Shows who holds how much in which phase, by the plan of one process, against what was free before the model was loaded."""
    models, found = planned.models, list(planned.items)
    largest = max(tokens_read(full, config))
    own = -(-largest // config.strategy.sequence_parallel)
    kept = measured.activation_bytes * own // measured.tokens
    scores = needs_old(config, parts.algorithm) or models.reference is not None or models.teacher is not None
    found += passes(config, models, largest, scores=scores, measured=kept)
    show_memory(section, found, parts, OWN_LIMIT)


def show_memory(section: Section, held: list[Item], parts: Parts, limit: str) -> None:
    """Shows who holds how much in which phase, and whether that fits into what was free; `limit`: the engine's own option to lower."""
    table = Table("about", *(phase.value for phase in SHOWN), box=None, pad_edge=False)
    for item in held:
        table.add_row(item.name, *(size(item.bytes) if phase in item.phases else "" for phase in SHOWN))
    needed = sums(held)
    table.add_row("sum", *(size(needed[phase]) for phase in SHOWN), style="bold")
    section.show(table)
    judge_memory(
        section, needed=max(needed.values()), available=parts.available, place=str(parts.device), limit=limit
    )


def teacher_parameters(config: Config, algorithm: Algorithm) -> int:
    """Size of the teacher, 0 without one."""
    if not algorithm.needs_teacher:
        return 0
    return sum(p.numel() for p in without_weights(teacher_model(config)).parameters())


def judge_memory(
    section: Section, *, needed: int, available: int, place: str, limit: str = OWN_LIMIT
) -> None:
    """Whether the largest phase fits into what is free."""
    told = f"the largest phase needs about {size(needed)}; {size(available)} are free on {place}"
    if needed > available:
        section.problem(
            f"{told}. Lower update.tokens_per_micro_batch or {limit}, set model.gradient_checkpointing=true, "
            "or train adapters (layer lora)."
        )
    elif needed > NEARLY_FULL * available:
        section.warn(f"{told}: nearly all of it.")
    else:
        section.ok(f"{told}.")


def disk(section: Section, config: Config, parts: Parts, policy: Policy) -> None:
    """Whether the run folder can be made and holds the checkpoints."""
    module = policy.actor.module
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    learned += critic_size(critic_source(config).config) if parts.algorithm.needs_critic else 0
    model = whole_bytes(module) + policy.kind.beside
    moved = 0
    if config.algorithm.reference_update_steps:  # the reference, in float32 where it follows slowly
        exact = config.algorithm.reference_update_rate < 1
        moved = sum(p.numel() * (4 if exact else p.element_size()) for p in module.parameters())
    checkpoint = 12 * learned + moved  # weights and both moments of AdamW, in float32
    at_once = config.checkpoint.keep_last + 1 + len(config.log.capture_steps)
    section.fact(
        "a checkpoint",
        f"{size(checkpoint)}; at most {config.checkpoint.keep_last} are kept, and one more while it is written",
    )
    run = expanded(config.run or "runs", "run")
    if config.run:
        try:
            check_new(run, "train")
        except ValueError as error:
            section.problem(str(error))
    there = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        section.problem(f"run={run}: {there} is not a folder that can be written to. Set run to another one.")
        return
    judge_disk(
        section, needed=checkpoint * at_once + model, free=shutil.disk_usage(there).free, place=str(there)
    )


def judge_disk(section: Section, *, needed: int, free: int, place: str) -> None:
    """Whether checkpoints, capsules that are asked for, and the final model fit."""
    told = f"checkpoints, capsules and the model take about {size(needed)}; {size(free)} are free in {place}"
    if needed > free:
        section.problem(
            f"{told}. Free some, set run to a folder on another disk, or lower checkpoint.keep_last."
        )
    elif needed > NEARLY_FULL * free:
        section.warn(f"{told}: nearly all of it.")
    else:
        section.ok(f"{told}.")
