"""The model at step 0: what it writes, and whether engine and trainer agree about those responses."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.panel import Panel
from rich.text import Text

from lightrft.build.data import beyond_context_of_rollout
from lightrft.build.judges import add_judging_models, models_used, most_read, section_of
from lightrft.build.memory import build_memory_plan
from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.config import Config
from lightrft.console.samples import shorten
from lightrft.engines.base import EngineDiedError
from lightrft.engines.external import check_kinds
from lightrft.media.parts import readable
from lightrft.models.kinds import PolicyKind
from lightrft.models.nf4 import numbers
from lightrft.parallel.world import World
from lightrft.rewards.asked import TEXT
from lightrft.rewards.table import JUDGE
from lightrft.strategy.base import Trainable
from lightrft.strategy.memory import MemoryPlan, Phase, Resident
from lightrft.trainer.batching import pack
from lightrft.trainer.mismatch import TOLERANCE, disagreement
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.trainer.sampler import Sampler
from lightrft.types import Trajectory

PROMPTS, SAMPLES = 2, 2
LONGEST_SAMPLE = 128
"""Most tokens of a response sampled for show."""


@dataclass(frozen=True)
class Policy:
    """The model as the run would have it at step 0."""

    kind: PolicyKind
    actor: Trainable
    sampler: Sampler
    memory_plan: MemoryPlan
    judging: Mapping[str, Resident]
    """What judges, in the score phase."""
    samples: Sequence[Trajectory] = ()
    judge_seconds: float = 0.0
    """Time the rewards took for one response."""

    @property
    def typical_length(self) -> float:
        """Mean tokens of the sampled responses."""
        return sum(len(t) for t in self.samples) / len(self.samples)


def samples(section: Section, config: Config, parts: Parts, questions: Questions) -> Policy:
    """Loads the model, and shows what it writes before any training and what the rewards make of that."""
    check_kinds(config.rollout.engine, questions.read, questions.processor.media, parts.device)
    started = time.perf_counter()
    actor = parts.strategy.trainable(questions.kind.source(), config.optimizer, 1)
    engine = parts.make_engine(actor.module, questions.processor, config.rollout)
    count = sum(size for *_, size in numbers(actor.module))
    section.fact(
        "model", f"{count / 1e6:,.1f} million weights, loaded in {time.perf_counter() - started:.1f} s"
    )
    if told := beyond_context_of_rollout(config, questions.longest):
        section.warn(told)
    if TEXT in questions.kind.makes:
        fits_judges(section, config, parts, questions)
    most = min(config.rollout.max_tokens, LONGEST_SAMPLE)
    sampling = replace(training_sampling(config.rollout, config.seed), n=SAMPLES, max_tokens=most)
    spread = [
        questions.processor.open(questions.read[i * len(questions.read) // PROMPTS]) for i in range(PROMPTS)
    ]
    kind, judges = questions.kind, [parts.judge]
    judging = add_judging_models(config, judges, engine, kind.processor, parts.device, kind.makes)
    memory_plan = build_memory_plan({"actor": actor}, engine, judging, parts.device)
    sampler = Sampler(engine, actor, memory_plan, World.current(), config.rollout.max_engine_restarts)
    policy = Policy(questions.kind, actor, sampler, memory_plan, judging)
    memory_plan.begin()
    groups = sampler(lambda: rollout(engine, spread, sampling, questions.processor, turns=questions.turns))
    answers = [t for group in groups for t in group]
    seconds = judged(section, parts, policy, answers) / len(answers)
    for t in answers:
        section.show(shown(t, config.rollout.entries_are))
    cut = sum(t.finish == "length" for t in answers)
    if cut == len(answers) and most == config.rollout.max_tokens:
        section.warn(
            f"all {cut} responses were truncated at rollout.max_tokens={most}. Rewards that look at the end of a response see none: raise it?"
        )
    elif cut:
        section.fact(
            "truncated",
            f"{cut} of {len(answers)} responses at {most} tokens (rollout.max_tokens={config.rollout.max_tokens})",
        )
    return replace(policy, samples=answers, judge_seconds=seconds)


def judged(section: Section, parts: Parts, policy: Policy, answers: Sequence[Trajectory]) -> float:
    """Seconds that the rewards of these responses took."""

    def timed() -> float:
        started = time.perf_counter()
        try:
            parts.judge(answers)
        except EngineDiedError:
            raise  # the sampler starts it again
        except RuntimeError as error:
            section.problem(str(error))
        return time.perf_counter() - started

    return policy.sampler.where_it_judges(parts.judge, timed)


def fits_judges(section: Section, config: Config, parts: Parts, questions: Questions) -> None:
    """Warns if a prompt and a response may be longer than the models that judge can read."""
    for name in sorted(models_used(config, [parts.judge])):
        room, compared = most_read(config, name), name == JUDGE and config.judge.against != "none"
        needed = questions.longest + config.rollout.max_tokens * (2 if compared else 1)
        if room is not None and needed > room:
            section.warn(
                f"the longest prompt and {'two full responses' if compared else 'a full response'} are {needed} tokens, without the judge's own words; the model of reward '{name}' "
                f"can be given {room}. Longer ones have no reward (rewards.on_failure={config.rewards.on_failure}): lower "
                f"rollout.max_tokens, or take a model for longer texts, or set {section_of(name)}.max_length if this one takes them."
            )


def shown(t: Trajectory, entries: str) -> Panel:
    """One response with its prompt, reward and parts; `entries`: what it is long in."""
    question = t.prompt.messages[-1]["content"]
    parts = ", ".join(f"{name} {value:g}" for name, value in t.parts.items())
    said = "\n".join(f"[{m['role']}] {m['content']}" for m in t.said) or t.answer
    text = Text.assemble((shorten(readable(question), 300), "dim"), "\n", shorten(said, 600))
    return Panel(
        text, title=f"reward {t.reward:g} ({parts})  {len(t)} {entries}, {t.finish}", title_align="left"
    )


def mismatch(section: Section, config: Config, parts: Parts, policy: Policy) -> None:
    """Compares the log-probs of the sampled tokens: the engine's, and the trainer's for the same weights."""
    batch = pack(
        [t for t in policy.samples if len(t)],
        share_prompts=config.update.share_prompts,
        device=parts.device,
        layout=policy.kind.layout,
    )
    with policy.memory_plan(Phase.SCORE), torch.no_grad():
        gap = (policy.actor.compute(policy.kind.logprobs, batch, config).values - batch.behavior).abs()
    mean, largest = float(gap.mean()), float(gap.max())
    section.fact(
        "difference",
        f"mean {mean:.2g}, largest {largest:.2g} over {gap.numel()} sampled {config.rollout.entries_are}",
    )
    judge_mismatch(section, config, mean, largest)


def judge_mismatch(section: Section, config: Config, mean: float, largest: float) -> None:
    """Whether engine and trainer agree as far as their arithmetic allows."""
    if config.rollout.samples_from_a_part:
        section.fact(
            "",
            "the engine's log-probs are of the tokens that top_k, first_token_top_k, top_p and min_p leave, the trainer's of all: part of the difference is meant (rollout.keep_sampling_mask=true takes both of what is left)",
        )
    told = disagreement(config, mean, largest)
    if told:
        section.warn(told)
        return
    dtype, name = config.model.dtype, "largest" if config.model.dtype == "float32" else "mean"
    section.ok(
        f"engine and trainer agree: the {name} difference is at most {TOLERANCE[dtype]:g}, the limit for {dtype}."
    )
