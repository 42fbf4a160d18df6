"""What cannot change an update of supervised fine-tuning: how conversations are packed, and in which order they come."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.config import ModelConfig, OptimizerConfig, UpdateConfig
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize

SHAPE = [(5, [7]), (1, [1]), (9, [12]), (3, [4]), (2, [30]), (6, [6])]


def conversations(seed):
    """Random ones, each with a turn in the middle that is not learned."""
    answers = tiny_trajectories(SHAPE, seed=seed)
    for t in answers:
        third = len(t) // 3
        t.mask = [not third <= place < 2 * third for place in range(len(t))]
    return answers


def update(answers, average, **options):
    """Loss and gradients of one update in float64."""
    gradients = {}
    with keep_double():
        model = load_model(ModelConfig(path="random:llama")).double()

        def loss(batch):
            new = logprobs(model, batch, temperature=1.0, max_logits=options.get("logits_per_chunk", 10**6))
            return negative_log_likelihood(new.values, batch, new.entropy)

        batching = Batching(UpdateConfig(**options), World(), torch.device("cpu"))
        (metrics,) = optimize(
            SingleTrainable(model, OptimizerConfig(), 1),
            batching.updates(answers, seed=0),
            loss,
            averaging=Averaging(average, 100),
            batching=batching,
            before_update=lambda index, norm: gradients.update(
                {name: p.grad.clone() for name, p in model.named_parameters()}
            ),
        )
    return metrics["loss"], gradients


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 3),
    order=st.permutations(range(len(SHAPE))),
    average=st.sampled_from(["token", "sequence"]),
    tokens=st.sampled_from([1, 20, 45, 1000]),
    chunk=st.sampled_from([50, 10**6]),
    share=st.booleans(),
)
def test_micro_batches_packing_and_order_change_nothing(seed, order, average, tokens, chunk, share):
    answers = conversations(seed)
    loss, gradients = update(answers, average, tokens_per_micro_batch=10**4)
    other_loss, others = update(
        [answers[place] for place in order],
        average,
        tokens_per_micro_batch=tokens,
        logits_per_chunk=chunk,
        share_prompts=share,
    )
    assert_close(other_loss, loss, atol=1e-6, rtol=0)  # weights are float32
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, atol=1e-6, rtol=0)
