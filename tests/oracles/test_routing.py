"""Mixtures of experts: the load-balancing loss beside transformers' own, and replayed experts beside the engine that chose them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from lightrft.algorithms.routing import evenness, load_balancing
from lightrft.config import NativeEngineConfig, UpdateConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.experts import OWN, routers_of
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.tiny import EXPERTS, tiny_model
from lightrft.parallel.world import World
from lightrft.testing import tiny_processor, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import Batching, pack
from lightrft.trainer.responses import begun, continued, extend
from lightrft.trainer.routers import RouterWatch, keep_experts
from lightrft.types import Batch, Sampling, Trajectory

SHAPE = [(5, [4, 6, 1]), (3, [2, 7]), (9, [3])]
"""Lengths of prompts, and of the responses to each."""
COEFFICIENT = 0.1


def widened(family: str, factor: float = 20.0) -> Any:
    """A tiny mixture whose routers have clear opinions: as they are made, all experts are nearly equally likely."""
    module = tiny_model(family, attention=ATTENTION)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("gate.weight"):
                weight.mul_(factor)
    return module


def transformers_loss(
    module: Any, responses: list[Trajectory]
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Every response with its prompt to itself, padded; the last token of each masked out, as it samples no other."""
    inner = tiny_model(module.config.model_type, attention="sdpa")
    inner.load_state_dict(module.state_dict())
    rows = [[*t.prompt.token_ids, *t.token_ids] for t in responses]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    told = inner(input_ids=ids, attention_mask=mask, output_router_logits=True)
    counted = torch.tensor([[1] * (len(row) - 1) + [0] * (longest - len(row) + 1) for row in rows])
    config = inner.config
    experts = config.num_local_experts if config.model_type == "mixtral" else config.num_experts
    loss = load_balancing_loss_func(told.router_logits, experts, config.num_experts_per_tok, counted)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in inner.named_parameters()}


def our_loss(
    module: Any, responses: list[Trajectory], *, budget: int = 1024, share_prompts: bool = True
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one update as the trainer makes it, in micro-batches of `budget` tokens; and its gradient."""
    config = UpdateConfig(tokens_per_micro_batch=budget, share_prompts=share_prompts)
    batching = Batching(config, World(), torch.device("cpu"))
    watch = RouterWatch(routers_of(module), batching, COEFFICIENT, replays=False)

    def compute(batch: Batch) -> LogProbs:
        return logprobs(module, batch, temperature=1.0, max_logits=0, balances=True)

    module.zero_grad()
    for _, answers in watch.surveyed([(0, responses)], compute):
        for _part, batch, _counts in batching.rounds(answers):
            part = watch.loss(compute(batch))
            assert part is not None
            part.backward()
    gradient = {name: p.grad / COEFFICIENT for name, p in module.named_parameters() if p.grad is not None}
    return watch.metrics()["router/aux_loss"], gradient


@pytest.mark.parametrize("family", EXPERTS)
def test_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    module, responses = widened(family), tiny_trajectories(SHAPE)
    value, right = transformers_loss(module, responses)
    for budget, share_prompts in ((1024, True), (12, True), (16, False)):
        found, gradient = our_loss(module, responses, budget=budget, share_prompts=share_prompts)
        assert found == pytest.approx(float(value), rel=1e-5)
        assert (
            float(value) > 1.01 * module.config.num_experts_per_tok / 1
        )  # it says something: even would be K
        for name, grad in gradient.items():
            assert_close(
                grad, torch.zeros_like(grad) if right[name] is None else right[name], atol=2e-6, rtol=1e-4
            )


def test_experts_to_be_replayed_are_counted_instead_of_found_by_a_pass() -> None:
    module, responses = widened("qwen3_moe"), tiny_trajectories(SHAPE)
    value, gradient = our_loss(module, responses)
    batch = pack(responses)
    with torch.no_grad():
        told = logprobs(module, batch, temperature=1.0, max_logits=0)
    assert told.experts is not None
    keep_experts(responses, batch, told.experts, torch.uint8)
    assert [len(t.experts) for t in responses] == [len(t.prompt.token_ids) + len(t) - 1 for t in responses]
    passes: list[bool] = []
    module.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    module.model.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    again, counted = our_loss(module, responses)
    assert passes == [True]  # no pass without gradients came before
    assert again == pytest.approx(value)
    for name, grad in gradient.items():
        assert_close(counted[name], grad, atol=1e-7, rtol=1e-5)


def test_a_layer_that_is_computed_again_does_the_same_again() -> None:
    """Gradient checkpointing: the second time its routers have to be told the same experts, and add to the loss once."""
    responses, plain = tiny_trajectories(SHAPE), widened("qwen3_moe")
    draw = torch.Generator().manual_seed(0)
    for t in responses:
        rows = len(t.prompt.token_ids) + len(t) - 1
        first = torch.randint(8, (rows, 2, 1), generator=draw)
        t.experts = torch.cat([first, (first + 3) % 8], -1).to(torch.uint8)
    value, gradient = our_loss(plain, responses)
    saving = widened("qwen3_moe")
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    saving.train()
    again, found = our_loss(saving, responses)
    assert again == value
    for name, grad in gradient.items():
        assert_close(found[name], grad, atol=0, rtol=0)


def sampled(module: Any, *, tells: bool = True) -> list[Trajectory]:
    processor = tiny_processor()
    engine = NativeEngine(
        module, frozenset(), processor.text, NativeEngineConfig(prefill_tokens=8), tells_experts=tells
    )
    prompts = [tiny_prompt(n, seed=n) for n in (7, 3, 5)]
    found = engine.generate(prompts, Sampling(n=3, max_tokens=9, seed=1, ignore_eos=True))
    return [
        begun(prompt, place, one, processor)
        for place, (prompt, group) in enumerate(zip(prompts, found, strict=True))
        for one in group
    ]


def gap(module: Any, responses: list[Trajectory]) -> float:
    """Largest distance of the trainer's log-probs from the engine's."""
    with torch.no_grad():
        found = logprobs(module, pack(responses), temperature=1.0, max_logits=0).values
    return float((found - torch.tensor([x for t in responses for x in t.behavior])).abs().max())


@pytest.mark.parametrize("family", EXPERTS)
def test_replay_holds_log_probs_together_although_ties_of_routers_fall_otherwise(family: str) -> None:
    """Four experts that a router holds for equally good, of which two are taken, and a trainer whose sums differ from the engine's by 1e-6."""
    module = widened(family)
    named = dict(module.named_parameters())
    gates = [p for name, p in named.items() if name.endswith("mlp.gate.weight")]
    with torch.no_grad():
        for weight in (p for name, p in named.items() if ".experts." in name):
            weight.mul_(5)
        for gate in gates:
            gate.view(-1, 4, gate.shape[1])[:] = gate[::4][:, None]
            gate[::2] *= 1 + 1e-6
    responses = sampled(module)
    with torch.no_grad():
        for gate in gates:
            gate[::2] *= 1 - 2e-6
    assert gap(module, responses) < 1e-5
    for t in responses:
        t.experts = None
    assert gap(module, responses) > 1e-4


def test_what_is_replayed_is_told_from_what_the_router_would_have_chosen() -> None:
    module = widened("qwen3_moe")
    responses = sampled(module)
    watch = RouterWatch(
        routers_of(module), Batching(UpdateConfig(), World(), torch.device("cpu")), 0.0, replays=True
    )
    watch.loss(logprobs(module, pack(responses), temperature=1.0, max_logits=0))
    found = watch.metrics()
    assert (found["router/replayed"], found["router/replay_changed"]) == (1.0, 0.0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("gate.weight"):
                p.copy_(p.flip(0))  # each expert gets the logit of another
    watch.loss(logprobs(module, pack(responses), temperature=1.0, max_logits=0))
    assert watch.metrics()["router/replay_changed"] > 0.3


def test_an_answer_in_two_calls_has_the_experts_of_one() -> None:
    """The second reads again what the first has sampled, and what was known of that stays."""
    module, processor = widened("qwen3_moe"), tiny_processor()
    engine = NativeEngine(module, frozenset(), processor.text, NativeEngineConfig(), tells_experts=True)
    prompt, sampling = tiny_prompt(6), Sampling(max_tokens=10, ignore_eos=True)
    (whole,) = engine.generate([prompt], sampling)[0]
    (first,) = engine.generate([prompt], replace(sampling, max_tokens=4))[0]
    for keeping in (False, True):
        if keeping:
            with engine.keeping():
                (kept,) = engine.generate([prompt], replace(sampling, max_tokens=4))[0]
                t = begun(prompt, 0, kept, processor)
                (rest,) = engine.generate([continued(t, 6)], sampling)[0]
            assert len(rest.experts) == 6
        else:
            t = begun(prompt, 0, first, processor)
            (rest,) = engine.generate([continued(t, 6)], sampling)[0]
            assert len(rest.experts) == 15
        extend(t, rest, processor)
        assert t.token_ids == whole.token_ids
        assert whole.experts is not None
        assert t.experts is not None
        assert t.experts.tolist() == whole.experts.tolist()
        assert t.experts.shape == (15, 2, 2)
        assert t.experts.dtype == torch.uint8


def test_a_token_of_unknown_experts_chooses_its_own() -> None:
    """As what an environment said last, which no engine has read."""
    module = widened("qwen3_moe")
    responses = sampled(module)
    short = responses[4]
    assert short.experts is not None
    short.experts = short.experts[:-3]
    responses[5].experts = None
    inputs: Any = pack(responses).inputs
    (c, d), (e, f) = inputs.response_spans[4:6]
    assert (inputs.experts[d - 4 : d] == OWN).all()
    assert (inputs.experts[e:f] == OWN).all()
    assert (inputs.experts[c : d - 4] != OWN).all()
    assert gap(module, responses) < 1e-5


def test_loads_by_hand() -> None:
    load = torch.tensor([[6.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    mass = torch.tensor([3.0, 2.0, 2.0, 1.0])  # of 4 tokens in 2 layers
    # 4 * sum of (8, 4, 2, 2) / 8 * (3, 2, 2, 1) / 8
    assert float(load_balancing(load, mass, 4)) == pytest.approx(4 * (24 + 8 + 4 + 2) / 64)
    found = evenness(load)
    assert found["router/busiest_expert"] == pytest.approx((3 + 1) / 2)
    assert found["router/idle_experts"] == pytest.approx(2 / 8)
    assert found["router/load_entropy"] == pytest.approx((0.4056390622 + 1) / 2)
