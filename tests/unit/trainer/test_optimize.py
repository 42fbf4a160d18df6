"""Updates: how many, in which order, what is reported, and what a bad one does."""

import math

import pytest
import torch
from torch import nn

from lightrft.config import ModelConfig, OptimizerConfig, UpdateConfig
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.scaling import LossScale
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Terms


class One(nn.Module):
    """A model with a single weight, so that gradients are numbers one can write down."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))


def trainable(**options):
    return SingleTrainable(
        One(), OptimizerConfig(**{"learning_rate": 0.1, "max_grad_norm": 0.0, **options}), total_updates=8
    )


def run(
    model,
    answers,
    loss,
    *,
    average="token",
    max_tokens=10,
    seed=0,
    first=0,
    before=lambda i, n: None,
    keep=False,
    **update,
):
    batching = Batching(UpdateConfig(**update), World(), torch.device("cpu"))
    return list(
        optimize(
            model,
            batching.updates(answers, seed=seed, first=first),
            loss,
            averaging=Averaging(average, max_tokens),
            batching=batching,
            before_update=before,
            keep_tokens=keep,
        )
    )


def token_losses(model):
    """A loss of w for every token, and its own number as a diagnostic."""

    def loss(batch):
        tokens = torch.arange(batch.num_tokens, dtype=torch.float32)
        return Terms(model.module.w.expand(batch.num_tokens), {"number": tokens, "number/max": tokens})

    return loss


@pytest.mark.parametrize("budget", [1, 1000])
@pytest.mark.parametrize("keep", [False, True])
def test_what_a_loss_tells_of_tokens_goes_to_the_responses_they_are_of(keep, budget):
    """Whatever the packing, and only if asked for."""
    answers = tiny_trajectories([(2, [3, 1]), (1, [2])])
    for t in answers:
        t.behavior = [float(10 * t.group + n) for n in range(len(t))]
    model = trainable()

    def loss(batch):
        told = {"doubled": 2 * batch.behavior, "weight": batch.weights}
        return Terms(model.module.w.expand(batch.num_tokens), tokens=told)

    run(model, answers, loss, keep=keep, tokens_per_micro_batch=budget)
    for t in answers:
        expected = {"doubled": [2 * x for x in t.behavior], "weight": pytest.approx([1 / 6] * len(t))}
        assert {name: column.tolist() for name, column in t.learned.items()} == (expected if keep else {})


def test_the_weights_of_an_update_sum_to_one():
    """Whatever the packing: the loss is w itself, and so its gradient is 1."""
    for average in ("token", "sequence"):
        for budget in (1, 7, 1000):
            model = trainable()
            (row,) = run(
                model,
                tiny_trajectories([(2, [3, 1]), (2, [5])]),
                token_losses(model),
                average=average,
                tokens_per_micro_batch=budget,
            )
            assert row["loss"] == pytest.approx(1.0)
            assert row["grad_norm"] == pytest.approx(1.0)


def test_the_fixed_average_divides_by_the_room_for_an_answer():
    model = trainable()
    (row,) = run(model, tiny_trajectories([(2, [3, 1])]), token_losses(model), average="fixed", max_tokens=10)
    assert row["loss"] == pytest.approx((3 + 1) / (2 * 10))


def test_tokens_outside_the_mask_count_for_nothing():
    model = trainable()
    answers = tiny_trajectories([(2, [3, 3])])
    answers[0].mask = [True, False, False]
    seen = []

    def loss(batch):
        seen.append(batch.weights.tolist())
        return token_losses(model)(batch)

    run(model, answers, loss, average="sequence")
    assert seen == [[0.5, 0, 0, pytest.approx(1 / 6), pytest.approx(1 / 6), pytest.approx(1 / 6)]]


def test_empty_answers_neither_stop_nor_weigh_an_update():
    model = trainable()
    (row,) = run(model, tiny_trajectories([(2, [0, 3]), (2, [0])]), token_losses(model), average="sequence")
    assert row["loss"] == pytest.approx(1.0)


def test_an_update_of_empty_answers_changes_nothing_and_reports_zero():
    model = trainable(weight_decay=0.5)
    (row,) = run(model, tiny_trajectories([(2, [0, 0])]), token_losses(model))
    assert row["loss"] == row["grad_norm"] == 0
    assert float(model.module.w.detach()) == 1.0


def test_epochs_and_minibatches_multiply():
    model = trainable()
    rows = run(model, tiny_trajectories([(2, [1, 1])] * 3), token_losses(model), epochs=2, num_minibatches=3)
    assert len(rows) == 6
    assert model.version == 6


def test_each_epoch_sees_every_answer_once_in_an_order_of_its_own():
    model = trainable()
    seen = []

    def loss(batch):
        seen.extend(batch.groups.tolist())
        return token_losses(model)(batch)

    run(model, tiny_trajectories([(2, [1])] * 8), loss, epochs=2, num_minibatches=8)
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert seen[:8] != seen[8:]


def test_the_seed_alone_decides_who_meets():
    def order(seed):
        model, seen = trainable(), []

        def loss(batch):
            seen.append(sorted(batch.groups.tolist()))
            return token_losses(model)(batch)

        run(model, tiny_trajectories([(2, [1])] * 8), loss, num_minibatches=4, seed=seed)
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_updates_before_the_first_wanted_are_left_out():
    model, whole = trainable(), trainable()
    answers = tiny_trajectories([(2, [n]) for n in range(1, 7)])
    expected = run(whole, answers, token_losses(whole), epochs=2, num_minibatches=2)
    rows = run(model, answers, token_losses(model), epochs=2, num_minibatches=2, first=3)
    assert len(rows) == 1
    assert rows[0]["number"] == expected[3]["number"]


def test_before_an_update_its_number_and_norm_are_told_and_the_weights_are_old():
    model = trainable()
    told = []

    def before(index, norm):
        told.append((index, norm, float(model.module.w.grad), model.version))

    run(model, tiny_trajectories([(2, [1, 1])]), token_losses(model), epochs=3, before=before)
    assert told == [(0, 1.0, 1.0, 0), (1, 1.0, 1.0, 1), (2, 1.0, 1.0, 2)]


def test_diagnostics_are_means_over_the_mask_of_all_micro_batches():
    model = trainable()
    answers = tiny_trajectories([(2, [3]), (2, [2])])
    answers[0].mask = [False, True, True]
    (row,) = run(model, answers, token_losses(model), tokens_per_micro_batch=1)
    assert row["number"] == pytest.approx((1 + 2 + 0 + 1) / 4)
    assert row["number/max"] == 2
    assert row["learning_rate"] == 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_skips_the_update_and_is_counted(bad):
    model = trainable()

    def loss(batch):
        return Terms(model.module.w * torch.full((batch.num_tokens,), bad))

    norms = []
    rows = run(model, tiny_trajectories([(2, [2])]), loss, epochs=2, before=lambda i, n: norms.append(n))
    assert [row["counts/skipped_updates"] for row in rows] == [1, 1]
    assert all(math.isnan(n) for n in norms)
    assert float(model.module.w.detach()) == 1.0
    assert model.version == 0


def test_a_bad_gradient_under_a_good_loss_skips_the_update_too():
    model = trainable()

    def loss(batch):
        return Terms((model.module.w - 1).sqrt().expand(batch.num_tokens))

    (row,) = run(model, tiny_trajectories([(2, [2])]), loss)
    assert row["loss"] == 0
    assert row["counts/skipped_updates"] == 1
    assert float(model.module.w.detach()) == 1.0


@pytest.mark.parametrize("scaled", [False, True])
def test_bad_updates_in_a_row_end_in_an_error(scaled):
    """With a scaled loss too: no scale explains a loss that is no number."""
    model = trainable(max_bad_steps=2)
    if scaled:
        model._learner.scaling = LossScale()

    def loss(batch):
        return Terms(model.module.w * torch.full((batch.num_tokens,), math.nan))

    with pytest.raises(FloatingPointError):
        run(model, tiny_trajectories([(2, [2])]), loss, epochs=3)
    if scaled:
        assert model.scaling.value == LossScale().value, "and nothing is told about the scale"


def test_a_model_learns_to_prefer_what_it_is_rewarded_for():
    model = SingleTrainable(
        load_model(ModelConfig(path="random:llama")), OptimizerConfig(learning_rate=1e-2), 20
    )
    answers = tiny_trajectories([(5, [4, 4])])

    def loss(batch):
        new = logprobs(model.module, batch, temperature=1.0, max_logits=10**9).values
        wanted = torch.tensor([1.0, -1.0])[batch.segments]
        return Terms(
            -wanted * new,
            {"good": torch.where(wanted > 0, new, 0.0), "bad": torch.where(wanted < 0, new, 0.0)},
        )

    rows = run(model, answers, loss, epochs=20)
    assert rows[-1]["good"] > rows[0]["good"] + 1
    assert rows[-1]["bad"] < rows[0]["bad"] - 1
