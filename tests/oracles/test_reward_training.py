"""Training of a reward model against plain transformers: padded rows, one pair beside the other, no code of ours."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch.nn.functional import logsigmoid, softplus
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from lightrft.algorithms.preference import PREFERENCE_LOSSES
from lightrft.config import LoraConfig, ModelConfig, OptimizerConfig, RewardTrainingConfig, UpdateConfig
from lightrft.datasets.comparisons import Side, siblings
from lightrft.models.reward_source import RewardSource
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import optimize
from lightrft.trainer.preferences import Preferences
from lightrft.types import Prompt

PADDING = 259


def prompts(shape, outputs=("score",)):
    """Prompts of random tokens; `shape`: the grades of the responses of each."""
    draw = random.Random(0)

    def tokens(least, most):
        return [draw.randrange(1, 250) for _ in range(draw.randint(least, most))]

    def side(said, rated):
        return Side(said, rated, [False] * (len(said) - 1) + [True])

    return [
        Prompt(
            f"p{n}",
            tokens(3, 30),
            [],
            [side(tokens(1, 25), dict(zip(outputs, g, strict=True))) for g in grades],
            "x",
        )
        for n, grades in enumerate(shape)
    ]


PAIRS = [[(1.0,), (0.0,)]] * 6


def model(outputs=("score",)):
    source = RewardSource(ModelConfig(path="random:llama"), outputs=outputs, padding=PADDING)
    return source.full().double()


def plain(asked, loss, folder, outputs=("score",)):
    """Loss and gradients of transformers' own class: all rows padded to one length, `loss` of their values by prompt."""
    module = model(outputs)
    module.config.save_pretrained(folder)
    theirs = AutoModelForSequenceClassification.from_config(
        module.config, attn_implementation="eager"
    ).double()
    theirs.load_state_dict(module.state_dict())
    rows = [p.token_ids + side.token_ids for p in asked for side in p.target]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PADDING] * (width - len(row)) for row in rows])
    found = theirs(input_ids=ids, attention_mask=(ids != PADDING).long()).logits
    result = torch.stack([loss(v) for v in found.split([len(p.target) for p in asked])]).mean()
    result.backward()
    return float(result.detach()), {n: p.grad for n, p in theirs.named_parameters()}


def ours(asked, tokens, share_prompts=True, order=None, outputs=("score",), module=None, **settings):
    """The same by our trainer's parts."""
    module, gradients = module or model(outputs), {}
    config = RewardTrainingConfig(outputs=list(outputs), **settings)
    function = partial(PREFERENCE_LOSSES[config.loss], **config.options)
    objective = Preferences(config, function)

    def keep(index, norm):
        gradients.update({n: p.grad.clone() for n, p in module.named_parameters() if p.requires_grad})

    update = UpdateConfig(tokens_per_micro_batch=tokens, share_prompts=share_prompts)
    batching = Batching(update, World(), torch.device("cpu"), whole_groups=True, outputs=outputs)
    trainable = SingleTrainable(module, OptimizerConfig(learning_rate=0.0), 1)
    answers = [t for n, p in enumerate(asked) for t in siblings(p, n)]
    if order is not None:
        random.Random(order).shuffle(answers)
    (metrics,) = optimize(
        trainable,
        batching.updates(answers, seed=0),
        partial(objective.loss, trainable),
        averaging=objective.averaging,
        batching=batching,
        before_update=keep,
    )
    return metrics["loss"], gradients


def assert_same(found, right):
    assert found[0] == pytest.approx(right[0], abs=1e-6)  # weights of tokens are float32
    for name, gradient in right[1].items():
        assert_close(found[1][name], gradient, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def pair_loss(tmp_path_factory):
    with keep_double():
        return plain(prompts(PAIRS), lambda v: -logsigmoid(v[0, 0] - v[1, 0]), tmp_path_factory.mktemp("m"))


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("tokens", [10_000, 110, 30, 1])
def test_the_loss_of_pairs_is_that_of_transformers_whatever_fits_a_micro_batch(
    pair_loss, tokens, share_prompts
):
    """A budget of 30 tokens would cut pairs, and leave those without a partner without a loss."""
    with keep_double():
        assert_same(ours(prompts(PAIRS), tokens, share_prompts), pair_loss)


@pytest.mark.parametrize("order", range(3))
def test_neither_the_order_of_pairs_nor_that_of_their_sides_matters(pair_loss, order):
    with keep_double():
        assert_same(ours(prompts(PAIRS), 110, order=order), pair_loss)


def test_under_adapters_the_loss_is_the_same_and_their_gradient_that_of_what_they_stand_beside(pair_loss):
    """New adapters add nothing, as B is 0: dL/dA is 0, and dL/dB is alpha / rank * dL/dW @ A^T. The head learns whole."""
    lora = LoraConfig(rank=2, alpha=6, targets=["all-linear"])
    config = ModelConfig(path="random:llama", lora=lora)
    with keep_double():  # weights are drawn in it for all models of this file
        module = RewardSource(config, outputs=("score",), padding=PADDING).full().double()
        loss, gradients = ours(prompts(PAIRS), 110, module=module)
    weights = dict(module.named_parameters())
    assert loss == pytest.approx(pair_loss[0], abs=1e-6)
    for name, found in gradients.items():
        plain_name = name.removeprefix("base_model.model.").replace(".lora_B.default", "")
        if "lora_A" in name:
            assert not found.any(), name
            continue
        right = pair_loss[1][plain_name]
        if "lora_B" in name:
            right = 3 * right @ weights[name.replace("lora_B", "lora_A")].T
        assert_close(found, right, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert sum("lora_B" in name for name in gradients) > 10
    assert "base_model.model.score.weight" in gradients


def test_grades_are_learned_as_numbers_and_signs_where_there_are_some(tmp_path):
    """By regression, of two outputs that each lack some grades; a prompt weighs the same with one grade as with five."""
    nan, outputs = float("nan"), ("general", "cost")
    shape = [[(0.5, nan), (0.25, 0.5)], [(nan, -0.25), (0.75, nan), (0.125, 0.0)], [(nan, nan), (nan, 0.5)]]
    asked, turn = prompts(shape, outputs), iter(shape)

    def loss(v):
        found, marks = v.new_zeros(()), next(turn)
        for k in range(2):
            known = [(row[k], g[k]) for row, g in zip(v, marks, strict=True) if g[k] == g[k]]
            found = found + sum((r - g) ** 2 for r, g in known) / max(1, len(known))
        signed = [(row[1], g[1]) for row, g in zip(v, marks, strict=True) if g[1] == g[1] and g[1] != 0]
        return found + 2 * sum(softplus(-r if g > 0 else r) for r, g in signed) / len(signed)

    with keep_double():
        right = plain(asked, loss, tmp_path / "m", outputs)
        for tokens in (10_000, 40, 1):
            assert_same(ours(asked, tokens, outputs=outputs, loss="regression", signed=["cost"]), right)


def test_rankings_weigh_as_much_as_pairs_and_outputs_add_up(tmp_path):
    """Three prompts: a pair, a ranking of three, and one that only the signed cost grades."""
    nan, outputs = float("nan"), ("general", "cost")
    asked = prompts(
        [[(1.0, nan), (0.0, nan)], [(2.0, 1.0), (1.0, -1.0), (0.0, nan)], [(nan, 2.0), (nan, -2.0)]], outputs
    )

    def loss(v):
        if len(v) == 3:
            general = sum(softplus(v[b, 0] - v[a, 0]) for a, b in ((0, 1), (0, 2), (1, 2))) / 3
            cost = softplus(v[1, 1] - v[0, 1]) + softplus(-v[0, 1]) + softplus(v[1, 1])
            return general + cost
        if v is first[0]:
            return softplus(v[1, 0] - v[0, 0])
        return softplus(v[1, 1] - v[0, 1]) + softplus(-v[0, 1]) + softplus(v[1, 1])

    first = []

    def in_turn(v):
        if not first:
            first.append(v)
        return loss(v)

    with keep_double():
        right = plain(asked, in_turn, tmp_path / "m", outputs)
        for tokens in (10_000, 40):
            assert_same(ours(asked, tokens, outputs=outputs, signed=["cost"]), right)


def test_a_prompt_that_is_drawn_twice_weighs_twice(tmp_path):
    asked = prompts(PAIRS)
    with keep_double():
        twice = ours([*asked[:2], asked[0]], 110)[0]
        one, other = (ours([p], 110)[0] for p in asked[:2])
    assert twice == pytest.approx((2 * one + other) / 3, abs=1e-6)
