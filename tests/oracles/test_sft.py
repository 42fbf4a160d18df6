"""Supervised fine-tuning against plain transformers: a forward pass with labels per conversation, no packing, no code of ours."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.config import ModelConfig, OptimizerConfig, SFTConfig, UpdateConfig
from lightrft.datasets.conversations import Conversations, demonstration
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double, tiny_model, tiny_processor
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Record

TALKS = [
    ["hi", "yes"],
    ["what is it", "a long answer to that", "and", "no", "so", "that is that"],
    ["x", "y" * 30],
    ["a question of some length", "no", "b", "c"],
]
IGNORED = -100


def conversations():
    """The talks as trajectories, through our own processor and masks."""
    records = []
    for n, talk in enumerate(TALKS):
        turns = [
            {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(talk)
        ]
        records.append(Record(f"t/{n}", turns[:1], turns[1:], "t"))
    prompts, _ = Conversations.of(tiny_processor(), SFTConfig()).prompts(records, str)
    return [demonstration(prompt, place) for place, prompt in enumerate(prompts)]


def labelled():
    """Input ids and labels of each talk, written down from the template by hand: 257 user, 258 assistant, 256 end."""
    encode = tiny_processor().tokenizer.encode
    for talk in TALKS:
        ids, labels = [], []
        for place, text in enumerate(talk):
            spoken = [*encode(text), 256]
            ids += [257 + place % 2, *spoken]
            labels += [IGNORED, *(spoken if place % 2 else [IGNORED] * len(spoken))]
        yield torch.tensor([ids]), torch.tensor([labels])


def expected(model, average):
    """Loss by transformers, and its gradients."""
    losses, tokens = [], []
    for ids, labels in labelled():
        losses.append(model(input_ids=ids, labels=labels).loss)
        tokens.append(int((labels != IGNORED).sum()))
    if average == "sequence":
        loss = torch.stack(losses).mean()
    else:
        loss = sum(mean * n for mean, n in zip(losses, tokens, strict=True)) / sum(tokens)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def found(model, average, tokens_per_micro_batch):
    """The same by our trainer's parts. The gradient is looked at before the update."""
    gradients = {}

    def loss(batch):
        new = logprobs(model, batch, temperature=1.0, max_logits=1000)
        return negative_log_likelihood(new.values, batch, new.entropy)

    def keep(index, norm):
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    batching = Batching(
        UpdateConfig(tokens_per_micro_batch=tokens_per_micro_batch), World(), torch.device("cpu")
    )
    (metrics,) = optimize(
        SingleTrainable(model, OptimizerConfig(learning_rate=0.0), 1),
        batching.updates(conversations(), seed=0),
        loss,
        averaging=Averaging(average, 100),
        batching=batching,
        before_update=keep,
    )
    return metrics["loss"], gradients


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("tokens_per_micro_batch", [1, 64, 10_000])
def test_loss_and_gradient_are_those_of_transformers_with_labels(family, average, tokens_per_micro_batch):
    with keep_double():
        theirs = tiny_model(family, attention="eager").double()
        ours = load_model(ModelConfig(path=f"random:{family}")).double()
        loss, gradients = found(ours, average, tokens_per_micro_batch)
        right, wanted = expected(theirs, average)
    assert loss == pytest.approx(right, abs=1e-6)  # transformers takes the loss itself in float32
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
