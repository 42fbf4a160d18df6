"""Teams of ranks that compute a batch together: the log-probs, gradients, weights and metrics of those that compute alone."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close

from lightrft.algorithms.requirements import build_for
from lightrft.algorithms.segments import segment_mean
from lightrft.build import sft
from lightrft.build.models import check_models
from lightrft.build.rl import build_run
from lightrft.build.tables import STRATEGIES
from lightrft.config import (
    Config,
    ModelConfig,
    OptimizerConfig,
    SFTConfig,
    StrategyConfig,
    UpdateConfig,
    layers,
)
from lightrft.models.attention import ATTENTION
from lightrft.models.load import load_processor
from lightrft.models.logprobs import logprobs, text_config
from lightrft.models.sequence import Share, check_shared
from lightrft.models.source import Source
from lightrft.models.tiny import tiny_config, tiny_model
from lightrft.models.values import ValueModel, values
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import Batching, by_group, pack
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Batch, Terms
from lightrft.utils.imports import resolve
from tests.distributed.launch import together
from tests.distributed.test_strategies import needs_deepspeed
from tests.e2e.runs import MEASURED
from tests.oracles.test_supports import given_supports

UNEVEN = [(21, [7, 1, 0, 19]), (1, [5, 3]), (40, [0]), (3, [2])]
"""Prompts and answers: several groups, answers of no token and of one, 98 tokens read."""
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 39,
}
"""Other frequencies once there is a token at place 39."""


@dataclass(frozen=True)
class Case:
    """A model and a batch."""

    family: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)
    shape: Sequence[tuple[int, Sequence[int]]] = field(default_factory=lambda: UNEVEN)
    prepare: Callable[[Any], nn.Module] = lambda model: model
    double: bool = True
    share_prompts: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    replies: bool = False
    """Whether others say some of the tokens, as an environment does."""
    supports: bool = False
    """Whether most tokens were drawn among a part of the vocabulary."""


def adapted(model: Any) -> nn.Module:
    """With adapters that already do something."""
    torch.manual_seed(3)
    found = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    return found.double() if model.dtype == torch.float64 else found


def checkpointed(model: Any) -> nn.Module:
    """Layers are computed again in the backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def critic(model: Any) -> nn.Module:
    """With a head to one number."""
    found = ValueModel(model.model, text_config(model))
    torch.manual_seed(3)
    nn.init.normal_(found.head.weight)
    return found


CASES = {
    "llama": Case("llama"),
    "qwen2": Case("qwen2"),
    "qwen3": Case("qwen3"),
    "qwen3 in float32": Case("qwen3", double=False),
    "llama in float32": Case("llama", double=False),
    "sliding windows": Case("gemma3"),
    "one key head for two ranks": Case("llama", {"num_key_value_heads": 1}),
    "three key heads for two ranks": Case(
        "qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96}
    ),
    "an untied head": Case("qwen2", {"tie_word_embeddings": False}),
    "frequencies that depend on the longest answer": Case(
        "llama", {"rope_parameters": LONG_ROPE}, shape=[(3, [37]), (2, [2])]
    ),
    "prompts not shared": Case("qwen3", share_prompts=False),
    "separate attention": Case("llama", options={"exact_attention": True}),
    "a first token with another temperature": Case("llama", options={"first_token_temperature": 0.3}),
    "a small part of the vocabulary at a time": Case("llama", options={"max_logits": 300}),
    "adapters": Case("qwen3", prepare=adapted),
    "adapters, layers computed again": Case("llama", prepare=lambda m: checkpointed(adapted(m))),
    "layers computed again": Case("llama", prepare=checkpointed),
    "an even number of tokens": Case("llama", shape=[(4, [4, 6])]),
    "one token": Case("llama", shape=[(1, [1])]),
    "all answers on one rank": Case("llama", shape=[(2, [1]), (4, [1, 0])]),
    "a critic": Case("qwen3", prepare=critic),
    "replies between what was chosen": Case("qwen3", replies=True),
    "replies, a first token with another temperature": Case(
        "llama", replies=True, options={"first_token_temperature": 0.3}
    ),
    "drawn among a part": Case("qwen3", supports=True),
    "replies, drawn among a part, a small part of the vocabulary at a time": Case(
        "llama", replies=True, supports=True, options={"max_logits": 300}
    ),
    "experts": Case("qwen3_moe", double=False, options={"balances": True}),
    "a critic of conversations": Case("qwen3", replies=True, prepare=critic),
}


def any_shape(seed: int) -> Case:
    """A batch of any number of tokens: padding, and who holds which token, differ from one to the next."""
    draw = random.Random(seed)
    shape = [
        (draw.randrange(1, 12), [draw.randrange(0, 9) for _ in range(draw.randrange(1, 4))])
        for _ in range(draw.randrange(1, 4))
    ]
    return Case("qwen3", {"num_hidden_layers": 1}, shape=shape)


ALL = CASES | {f"a batch of any shape, {seed}": any_shape(seed) for seed in range(12)}


def objective(batch: Batch, value: Tensor, entropy: Tensor) -> Tensor:
    """Reaches every log-prob and entropy with a weight of its own, and whole answers by the mean of theirs."""
    place = torch.arange(value.numel(), dtype=value.dtype)
    by_answer = segment_mean(value, batch.segments, batch.num_sequences, mask=batch.mask).exp()
    return (
        (value * torch.cos(place)).sum() + (entropy * torch.sin(1 + place)).sum() + by_answer.square().sum()
    )


def measured(case: Case, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Log-probs, entropies and this rank's part of the gradient of each parameter."""
    model.zero_grad()
    if isinstance(model, ValueModel):
        (found,) = values(model, batch)
        columns = {"value": found, "entropy": torch.zeros_like(found)}
    else:
        options = {"temperature": 0.7, "max_logits": 10**9, **case.options}
        result = logprobs(model, batch, **options)
        columns = {"value": result.values, "entropy": result.entropy}
    total = objective(batch, *columns.values())
    if case.options.get("balances"):
        assert result.router_mass is not None
        total = total + (result.router_mass * torch.arange(result.router_mass.numel())).sum()
        with torch.no_grad():
            told = logprobs(model, batch, **options)
        assert told.experts is not None
        columns["experts"] = told.experts.double()
        assert told.squares is not None
        columns["squares"] = told.squares
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: column.detach() for name, column in columns.items()} | gradients


def compare(case: Case, team: Any) -> dict[str, float]:
    """The largest difference between computing alone and together, of columns and of gradients."""
    model: Any = tiny_model(case.family, attention=ATTENTION, **case.changes)
    model = case.prepare(model.double() if case.double else model)
    trajectories = tiny_trajectories(case.shape, seed=1)
    for t in trajectories if case.replies else ():
        t.mask = [place % 3 != 1 for place in range(len(t))]
    if case.supports:
        given_supports(trajectories)
    batch = pack(trajectories, share_prompts=case.share_prompts)
    assert batch.inputs is not None
    of_team = for_team(batch, team)
    if case.replies:
        assert of_team.inputs is not None
        assert batch.inputs.chosen is not None
        rows = torch.tensor(Share.of(of_team.inputs, of_team.inputs.chosen).predict.numel())
        dist.all_reduce(rows)
        assert (
            int(rows) == batch.inputs.chosen.numel() < batch.num_tokens
        )  # of which the head computes logits
    with keep_double() if case.double else nullcontext():
        wanted, found = measured(case, model, batch), measured(case, model, of_team)
    assert wanted.keys() == found.keys(), wanted.keys() ^ found.keys()
    worst = {"columns": 0.0, "gradients": 0.0}
    for name, expected in wanted.items():
        kind = "columns" if name in ("value", "entropy", "experts", "squares") else "gradients"
        if kind == "gradients":
            dist.all_reduce(found[name])
        # Of a single token, queries have no gradient but rounding.
        gap = (found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
        worst[kind] = max(worst[kind], float(gap))
    return worst


def for_team(batch: Batch, team: Any) -> Batch:
    """The same batch for a team."""
    assert batch.inputs is not None
    return replace(batch, inputs=replace(batch.inputs, team=team))


def compare_all() -> dict[str, dict[str, float]]:
    """Each case's largest differences."""
    team = World.current(2).team
    return {name: compare(case, team) for name, case in ALL.items()}


@pytest.fixture(scope="module")
def differences():
    return together(compare_all, 2, seconds=240)[0]


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_together_get_the_logprobs_and_gradients_of_one(differences, name):
    limit = 1e-12 if ALL[name].double else 2e-6
    assert differences[name]["columns"] < limit
    assert differences[name]["gradients"] < limit


SHAPE = [(6, [5, 3, 9, 1]), (4, [2, 7]), (9, [1]), (3, [12, 4, 4])]
OPTIONS = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5, schedule="linear", eps=1e-4
)
"""eps: AdamW divides by the gradient, so that rounding in one of nearly 0 would become a whole step."""


def policy_loss(model: Any, batch: Batch) -> Terms:
    """Reaches whole answers, as in GSPO: all tokens of an answer are needed by each rank."""
    new = model.compute(partial(logprobs, temperature=0.7, max_logits=2000), batch)
    mean = segment_mean(new.values, batch.segments, batch.num_sequences, mask=batch.mask)[batch.segments]
    return Terms(
        -batch.advantages * (mean - mean.detach()).exp() - 0.01 * new.entropy, {"entropy": new.entropy}
    )


def learned(backend: str, sequence_parallel: int = 1) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and reports after two steps of two updates each; answers are uneven, one rank has none in a step."""
    torch.manual_seed(0)
    world, model_config = World.current(sequence_parallel), ModelConfig(path="random:qwen3")
    strategy = STRATEGIES[backend](StrategyConfig(backend=backend), torch.device("cpu"))
    model = strategy.trainable(Source(model_config), OPTIONS, 4)
    config = UpdateConfig(num_minibatches=2, tokens_per_micro_batch=24)
    blank = dummy_answer(load_processor(model_config).blank())
    batching, reports = Batching(config, world, torch.device("cpu"), blank), []
    for step in range(2):
        answers = tiny_trajectories(SHAPE, seed=step)
        draw = torch.Generator().manual_seed(step)
        for t in answers:
            t.columns["advantages"] = torch.randn(len(t), generator=draw)
        owners = [0, 0, 1, 0] if step != 1 else [0, 0, 0, 0]
        groups = zip(by_group(answers), owners, strict=True)
        own = [t for group, owner in groups if owner % world.size == world.rank for t in group]
        reports += optimize(
            model,
            batching.updates(own, seed=step),
            partial(policy_loss, model),
            averaging=Averaging("sequence", 16),
            batching=batching,
        )
    with model.adapters_merged():
        return {name: weight.detach().clone() for name, weight in model.weights()}, reports


def same_as_one_process(ranks: list[Any]) -> None:
    """The weights and reports of each rank are those of one process."""
    weights, reports = learned("single")
    for theirs, their_reports in ranks:
        assert theirs.keys() == weights.keys()
        for name, weight in weights.items():
            assert_close(theirs[name], weight, atol=1e-6, rtol=0, msg=name)
        for name in ("loss", "grad_norm", "entropy"):
            wanted = [report[name] for report in reports]
            assert [report[name] for report in their_reports] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_two_teams_of_two_learn_what_one_process_learns():
    same_as_one_process(together(learned, 4, "fsdp", 2, seconds=240))


@needs_deepspeed
@pytest.mark.parametrize("backend", ["zero1", "zero3"])
def test_a_team_learns_what_one_process_learns_under_deepspeed(backend):
    same_as_one_process(together(learned, 2, backend, 2, seconds=240))


PPO = ["tiny", "ppo", "--rollout.prompts-per-step", "8", "--rewards.workers", "0", "--update.num-minibatches", "2",
       "--update.tokens-per-micro-batch", "48", "--steps", "2", "--evaluate.before-and-after=false"]  # fmt: skip
SFT = ["sft_tiny", "--steps", "2", "--evaluate.limit", "5"]
QUIET = [
    "--log.tensorboard=false",
    "--log.curves=false",
    "--log.progress=false",
    "--strategy.backend",
    "fsdp",
]


def steps_of(build: Any, kind: Any, flags: list[str], team: int) -> list[dict[str, float]]:
    """What the first rank writes down of two steps in a team of this size."""
    config = layers.load([*flags, *QUIET, "--strategy.sequence-parallel", str(team)], kind)
    with tempfile.TemporaryDirectory() as run, contextlib.ExitStack() as stack:
        made = build(config, Path(run), stack, started=time.perf_counter())
        made.begin()
        for step in (1, 2):
            made.take(step)
        file = Path(run, "metrics.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    return [{k: x for k, x in row.items() if not k.startswith(MEASURED)} for row in rows]


def whole_steps(team: int) -> list[dict[str, float]]:
    """PPO with a reference and a critic, then supervised fine-tuning with a held-out loss."""
    found = steps_of(build_run, Config, PPO, team)
    return found + steps_of(sft.build_run, SFTConfig, SFT, team)


def both() -> tuple[list[dict[str, float]], ...]:
    """Each rank for itself, and together."""
    return whole_steps(1), whole_steps(2)


def test_whole_steps_of_a_team_have_the_metrics_of_ranks_that_compute_alone():
    (apart, as_team), _ = together(both, 2, seconds=280)
    assert len(apart) == len(as_team) >= 4
    for one, other in zip(apart, as_team, strict=True):
        for row in (one, other):
            row.pop("update/rank_balance", None)  # the work of a team is even by itself
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_processes_that_make_no_whole_teams_are_refused():
    with pytest.raises(ValueError, match=r"strategy.sequence_parallel=2: 1 process cannot"):
        World.current(2)


def test_heads_that_cannot_be_shared_out_are_refused_with_the_sizes_that_work():
    check_shared(3, {"model.path": tiny_config("smollm")})
    with pytest.raises(ValueError, match=r"the 3 attention heads of critic.path .* Set it to one of 1, 3\."):
        check_shared(2, {"model.path": tiny_config("llama"), "critic.path": tiny_config("smollm")})


def test_models_that_see_are_refused():
    with pytest.raises(ValueError, match=r"model.path names a model that reads more than text"):
        check_shared(2, {"model.path": tiny_config("llava")})


def test_a_run_says_that_heads_cannot_be_shared_before_weights_load(tmp_path):
    config = layers.load(
        ["tiny", "--model.path", "random:smollm", "--strategy.sequence-parallel", "2"], Config
    )
    with pytest.raises(ValueError, match="3 attention heads of model.path"):
        check_models(config, build_for(config, resolve))
