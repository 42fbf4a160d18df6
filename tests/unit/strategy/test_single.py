import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lightrft.config import LoraConfig, ModelConfig, OptimizerConfig, StrategyConfig
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.strategy.in_memory import InMemory, restore, snapshot
from lightrft.strategy.schedules import schedule
from lightrft.strategy.single import Single, SingleFrozen, SingleTrainable, WithoutAdapters
from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import pack


def rates(total, **options):
    rate = schedule(OptimizerConfig(**options), total)
    return [round(rate(update), 6) for update in range(total)]


def two_weights(dtype=torch.float32):
    """A matrix of ones (2, 2) and a bias of ones."""
    layer = nn.Linear(2, 2).to(dtype)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer


def trainable(module, **options):
    return SingleTrainable(module, OptimizerConfig(**{"max_grad_norm": 0.0, **options}), total_updates=10)


def give_gradients(module, weight, bias=0.0):
    module.weight.grad = torch.full_like(module.weight, weight)
    module.bias.grad = torch.full_like(module.bias, bias)


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_the_constant_schedule_stays_at_the_peak():
    assert rates(4) == [1, 1, 1, 1]


def test_warm_up_reaches_the_peak_at_its_last_step():
    assert rates(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_would_be_at_zero_one_update_after_the_last():
    """The last one learns."""
    assert rates(5, schedule="linear") == [1, 0.8, 0.6, 0.4, 0.2]
    assert rates(1, schedule="linear") == [1]


@pytest.mark.parametrize(
    ("name", "peer"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_schedules_are_those_of_transformers(name, peer):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=1.0)
    theirs = peer(optimizer, num_warmup_steps=0, num_training_steps=9).lr_lambdas[0]
    assert rates(9, schedule=name) == [round(theirs(update), 6) for update in range(9)]


def test_linear_after_warm_up_falls_to_the_final_fraction():
    assert rates(7, schedule="linear", warmup_steps=2, final_fraction=0.2) == [
        0.5,
        1,
        1,
        0.84,
        0.68,
        0.52,
        0.36,
    ]


def test_cosine_is_half_way_in_the_middle():
    assert rates(4, schedule="cosine") == [1, 0.853553, 0.5, 0.146447]


def test_cosine_falls_towards_the_final_fraction():
    assert rates(3, schedule="cosine", final_fraction=0.1) == [1, 0.775, 0.325]


def test_a_schedule_asked_beyond_its_end_stays_there():
    assert schedule(OptimizerConfig(schedule="linear", final_fraction=0.3), 4)(100) == pytest.approx(0.3)


def test_a_warm_up_longer_than_the_run_only_rises():
    assert rates(3, schedule="cosine", warmup_steps=10) == [0.1, 0.2, 0.3]


def test_a_single_update_is_taken_at_the_peak():
    assert rates(1, schedule="linear") == [1]


def test_the_rate_of_each_update_is_the_schedules():
    model = trainable(two_weights(), learning_rate=0.5, warmup_steps=2)
    seen = []
    for _ in range(3):
        seen.append(model.learning_rate())
        give_gradients(model.module, 1.0)
        model.step(model.gradient_norm())
    assert seen == [0.25, 0.5, 0.5]


# -- one update --------------------------------------------------------------------------------------------------------


def test_the_first_adam_step_moves_each_weight_by_the_learning_rate():
    model = trainable(two_weights(), learning_rate=0.1)
    give_gradients(model.module, 3.0, -0.5)
    assert model.step(model.gradient_norm())
    assert_close(model.module.weight.data, torch.full((2, 2), 0.9))
    assert_close(model.module.bias.data, torch.full((2,), 1.1))
    assert model.version == 1


def test_weight_decay_leaves_biases_and_norms_alone():
    module = load_model(ModelConfig(path="random:qwen2"))  # biases on queries, keys and values
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    model = trainable(module, learning_rate=0.1, weight_decay=0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    model.step(0.0)
    for name, p in module.named_parameters():
        kept = 1.0 if "norm" in name or "bias" in name else 1 - 0.1 * 0.5
        assert_close(p.data, before[name] * kept, msg=name)
    assert any("bias" in name for name in before)


def test_a_long_gradient_is_scaled_down_to_the_clip_norm():
    model = trainable(two_weights(), learning_rate=0.1, max_grad_norm=1.0, betas=[0.0, 0.0])
    give_gradients(model.module, 4.0, 0.0)
    norm = model.gradient_norm()
    assert norm == 8.0
    model.step(norm)
    assert_close(model.optimizer.state[model.module.weight]["exp_avg"], torch.full((2, 2), 0.5))


def test_a_short_gradient_is_not_scaled_up():
    model = trainable(two_weights(), learning_rate=0.1, max_grad_norm=100.0, betas=[0.0, 0.0])
    give_gradients(model.module, 4.0, 0.0)
    model.step(model.gradient_norm())
    assert_close(model.optimizer.state[model.module.weight]["exp_avg"], torch.full((2, 2), 4.0))


def test_backward_adds_up():
    model = trainable(two_weights())
    for _ in range(3):
        model.backward(model.module(torch.ones(1, 2)).sum())
    assert_close(model.module.weight.grad, torch.full((2, 2), 3.0))


def test_no_gradient_at_all_has_norm_zero_and_changes_nothing():
    model = trainable(two_weights(), learning_rate=0.1, weight_decay=0.1)
    assert model.gradient_norm() == 0.0
    assert model.step(0.0)
    assert_close(model.module.weight.data, torch.ones(2, 2))


def test_a_module_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter"):
        trainable(two_weights().requires_grad_(False))


# -- bad gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_is_skipped_and_leaves_weights_and_optimizer_alone(bad):
    model = trainable(two_weights(), learning_rate=0.1, max_grad_norm=1.0)
    give_gradients(model.module, 1.0)
    model.step(model.gradient_norm())
    weight, average = (
        model.module.weight.detach().clone(),
        model.optimizer.state[model.module.weight]["exp_avg"].clone(),
    )
    give_gradients(model.module, bad)
    assert not model.step(model.gradient_norm())
    assert torch.equal(model.module.weight, weight)
    assert torch.equal(model.optimizer.state[model.module.weight]["exp_avg"], average)
    assert model.module.weight.grad is None
    assert model.version == 1


def test_too_many_bad_steps_in_a_row_stop_the_run_and_a_good_one_forgives():
    model = trainable(two_weights(), learning_rate=0.1, max_bad_steps=3)
    for _ in range(2):
        for _ in range(2):
            assert not model.step(math.nan)
        give_gradients(model.module, 1.0)
        assert model.step(model.gradient_norm())
    model.step(math.nan)
    model.step(math.nan)
    with pytest.raises(FloatingPointError, match="max_bad_steps=3"):
        model.step(math.nan)


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def test_bfloat16_weights_learn_through_float32_masters():
    """Steps of 1e-4 around 1.0 are far below bfloat16's spacing of 0.004, and still add up."""
    model = trainable(two_weights(torch.bfloat16), learning_rate=1e-4)
    for _ in range(40):
        model.backward(model.module(torch.ones(1, 2, dtype=torch.bfloat16)).sum())
        model.step(model.gradient_norm())
    master = model.tensor_state()["weights/weight"]
    assert master.dtype == torch.float32
    assert_close(master, torch.full((2, 2), 1 - 40e-4), atol=1e-5, rtol=0)
    assert model.module.weight.dtype == torch.bfloat16
    assert torch.equal(model.module.weight.data, master.bfloat16())
    assert float(model.module.weight.detach()[0, 0]) < 1


def test_gradients_of_micro_batches_are_summed_in_float32():
    """256 + 1 + 1 + ... stays at 256 in bfloat16."""
    model = trainable(two_weights(torch.bfloat16), learning_rate=0.0)
    for size in [256.0, *[1.0] * 20]:
        model.backward(model.module(torch.full((1, 2), size, dtype=torch.bfloat16)).sum())
    assert model.gradient_norm() == pytest.approx(math.sqrt(4 * 276.0**2 + 2 * 21.0**2))


def test_a_bfloat16_model_accumulates_the_float32_sum_of_its_micro_batches():
    def loss(module, answers):
        return logprobs(module, pack(answers), temperature=1.0, max_logits=10**9).values.sum()

    parts = [tiny_trajectories([(5, [4, 4])], seed=seed) for seed in range(6)]
    module = load_model(ModelConfig(path="random:llama", dtype="bfloat16"))
    expected = {}
    for part in parts:
        module.zero_grad()
        loss(module, part).backward()
        for name, p in module.named_parameters():
            expected[name] = expected.get(name, 0) + p.grad.float()
    module.zero_grad()
    model = trainable(module)
    for part in parts:
        model.backward(loss(module, part))
    total = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert model.gradient_norm() == pytest.approx(total, rel=1e-5)
    for p, (name, gradient) in zip(model.optimizer.param_groups[0]["params"], expected.items(), strict=False):
        assert_close(p.grad, gradient, msg=name)
        break  # the embedding, used twice: as table and as head


# -- saving and going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_loaded_state_goes_on_bit_for_bit(dtype, rank):
    settings = ModelConfig(path="random:llama", dtype=dtype, lora=LoraConfig(rank=rank))
    options = OptimizerConfig(learning_rate=1e-2, schedule="cosine", weight_decay=0.1)

    def learn(model, steps):
        for step in steps:
            batch = pack(tiny_trajectories([(5, [4, 4])], seed=step))
            model.backward(logprobs(model.module, batch, temperature=1.0, max_logits=10**9).values.sum())
            model.step(model.gradient_norm())

    torch.manual_seed(0)
    whole = SingleTrainable(load_model(settings), options, 6)
    torch.manual_seed(0)
    first = SingleTrainable(load_model(settings), options, 6)
    learn(whole, range(6))
    learn(first, range(3))
    torch.manual_seed(1)
    second = SingleTrainable(load_model(settings), options, 6)
    restore(second, snapshot(first))
    learn(second, range(3, 6))
    assert second.version == whole.version == 6
    assert second.learning_rate() == whole.learning_rate()
    for (name, mine), (_, other) in zip(
        second.module.state_dict().items(), whole.module.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, other), name


def test_a_state_of_another_model_is_refused():
    state = snapshot(trainable(two_weights()))
    with pytest.raises(ValueError, match="another model"):
        restore(trainable(nn.Linear(2, 2, bias=False)), state)


def test_a_state_of_another_size_is_refused():
    state = snapshot(trainable(two_weights()))
    with pytest.raises(ValueError, match="another model"):
        restore(trainable(nn.Linear(3, 2)), state)


# -- residents and references ------------------------------------------------------------------------------------------


def test_the_residents_know_their_size_before_and_after_the_first_step():
    model = trainable(two_weights(torch.bfloat16))
    parts = model.parts()
    for _ in range(2):
        assert parts["weights"].nbytes() == 6 * 2
        assert parts["optimizer"].nbytes() == 6 * 4 * 3  # masters and two moments
        model.backward(model.module(torch.ones(1, 2, dtype=torch.bfloat16)).sum())
        model.step(model.gradient_norm())


def test_the_frozen_model_has_no_gradients():
    frozen = Single(StrategyConfig(), torch.device("cpu")).frozen(Source(ModelConfig(path="random:llama")))
    assert not any(p.requires_grad for p in frozen.module.parameters())
    numbers = frozen.compute(lambda module: sum(p.numel() for p in module.parameters()))
    assert frozen.parts()["weights"].nbytes() == 4 * numbers


def test_only_a_model_with_adapters_is_its_own_reference():
    with pytest.raises(ValueError, match="adapters"):
        WithoutAdapters(trainable(two_weights()))


# -- a reference that follows ------------------------------------------------------------------------------------------


def frozen(module):
    return SingleFrozen(module.requires_grad_(False), torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_becomes_the_policy_or_goes_part_of_the_way(dtype):
    reference, policy = frozen(two_weights(dtype)), two_weights(dtype)
    with torch.no_grad():
        policy.weight.fill_(3.0)
    reference.follow(iter(policy.state_dict().items()), 0.25)
    assert reference.module.weight.unique().tolist() == [1.5]
    assert reference.module.bias.unique().tolist() == [1.0]
    reference.follow(iter(policy.state_dict().items()), 1.0)
    assert reference.module.weight.unique().tolist() == [3.0]


def test_many_small_steps_are_not_lost_in_bfloat16_nor_by_a_checkpoint():
    reference, policy = frozen(two_weights(torch.bfloat16)), two_weights(torch.bfloat16)
    with torch.no_grad():
        policy.weight.fill_(2.0)
    for step in range(500):
        reference.follow(iter(policy.state_dict().items()), 0.001)
        if step == 250:
            state = {name: weight.clone() for name, weight in reference.tensor_state().items()}
            reference = frozen(two_weights(torch.bfloat16))
            reference.load(InMemory(state))
    expected = 2 - 0.999**500
    assert abs(float(reference.module.weight[0, 0]) - expected) < 0.005, (
        "its own type has steps of 0.008 here"
    )
    assert float(reference.tensor_state()["weights/weight"][0, 0]) == pytest.approx(expected, abs=1e-4)


def test_a_reference_that_became_the_policy_forgets_its_average():
    reference, policy = frozen(two_weights(torch.bfloat16)), two_weights(torch.bfloat16)
    reference.follow(iter(policy.state_dict().items()), 0.5)
    with torch.no_grad():
        policy.weight.fill_(3.0)
    reference.follow(iter(policy.state_dict().items()), 1.0)
    assert reference.tensor_state()["weights/weight"].unique().tolist() == [3.0]


def test_a_reference_with_a_weight_that_the_policy_lacks_cannot_follow():
    reference, policy = frozen(two_weights(torch.float32)), two_weights(torch.float32)
    with pytest.raises(ValueError, match="no weight 'bias'"):
        reference.follow(iter([("weight", policy.weight)]), 1.0)
