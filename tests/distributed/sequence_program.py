"""One rank of a team of two: the same batches alone and together, and how far log-probs and gradients are apart.

Prints a JSON object: case -> the largest differences, relative to the largest number of each tensor.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft.algorithms.segments import segment_mean
from lightrft.models.attention import ATTENTION
from lightrft.models.logprobs import logprobs, text_config
from lightrft.models.tiny import tiny_model
from lightrft.models.values import ValueModel, values
from lightrft.strategy.world import World
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.replay import pack
from lightrft.types import Batch

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
    "a first token with another temperature": Case("llama", options={"first_temperature": 0.3}),
    "a small part of the vocabulary at a time": Case("llama", options={"max_logits": 300}),
    "adapters": Case("qwen3", prepare=adapted),
    "adapters, layers computed again": Case("llama", prepare=lambda m: checkpointed(adapted(m))),
    "layers computed again": Case("llama", prepare=checkpointed),
    "an even number of tokens": Case("llama", shape=[(4, [4, 6])]),
    "one token": Case("llama", shape=[(1, [1])]),
    "all answers on one rank": Case("llama", shape=[(2, [1]), (4, [1, 0])]),
    "a critic": Case("qwen3", prepare=critic),
}


def any_shape(seed: int) -> Case:
    """A batch of any number of tokens: padding, and who holds which token, differ from one to the next."""
    draw = random.Random(seed)
    shape = [
        (draw.randrange(1, 12), [draw.randrange(0, 9) for _ in range(draw.randrange(1, 4))])
        for _ in range(draw.randrange(1, 4))
    ]
    return Case("qwen3", {"num_hidden_layers": 1}, shape=shape)


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
        found = values(model, batch)
        columns = {"value": found, "entropy": torch.zeros_like(found)}
    else:
        options = {"temperature": 0.7, "max_logits": 10**9, **case.options}
        result = logprobs(model, batch, **options)
        columns = {"value": result.values, "entropy": result.entropy}
    objective(batch, *columns.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: column.detach() for name, column in columns.items()} | gradients


def compare(case: Case, team: Any) -> dict[str, float]:
    """The largest difference between computing alone and together, of columns and of gradients."""
    model: Any = tiny_model(case.family, attention=ATTENTION, **case.changes)
    model = case.prepare(model.double() if case.double else model)
    batch = pack(tiny_trajectories(case.shape, seed=1), share_prompts=case.share_prompts)
    assert batch.inputs is not None
    together = replace_inputs(batch, team)
    with keep_double() if case.double else nullcontext():
        wanted, found = measured(case, model, batch), measured(case, model, together)
    assert wanted.keys() == found.keys(), wanted.keys() ^ found.keys()
    worst = {"columns": 0.0, "gradients": 0.0}
    for name, expected in wanted.items():
        kind = "columns" if name in ("value", "entropy") else "gradients"
        if kind == "gradients":
            dist.all_reduce(found[name])
        # Of a single token, queries have no gradient but rounding.
        gap = (found[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
        worst[kind] = max(worst[kind], float(gap))
    return worst


def replace_inputs(batch: Batch, team: Any) -> Batch:
    """The same batch for a team."""
    assert batch.inputs is not None
    return replace(batch, inputs=replace(batch.inputs, team=team))


def main(rank: int, meet: str) -> None:
    """Runs all cases; the first rank prints."""
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    team = dist.new_group([0, 1])
    shapes = {f"shape {seed}": any_shape(seed) for seed in range(12)}
    found = {name: compare(case, team) for name, case in (CASES | shapes).items()}
    if World.current().is_first:
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
