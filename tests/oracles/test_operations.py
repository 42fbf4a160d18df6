"""The operations that a run counts against those that torch counts while the model computes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.operations import operations_of
from lightrft.models.source import Source
from lightrft.utils.peaks import teraflops_of


def counted(module, tokens, *, backward):
    """What torch counts of one sequence; attention by whole products, as the eager implementation computes it."""
    with FlopCounterMode(display=False) as counter:
        logits = module(input_ids=torch.arange(tokens)[None] % 64).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("path", ["random:llama", "random:qwen3", "random:gemma3"])
def test_passes_take_what_torch_counts(path, rank):
    module = (
        Source(ModelConfig(path=path, lora=LoraConfig(rank=rank))).full().double()
    )  # products that torch counts
    module.config.get_text_config()._attn_implementation = "eager"
    found, tokens = operations_of(module), 48
    assert found is not None
    square = tokens * tokens  # eager attention computes what the mask hides, too
    assert found.forward(tokens, tokens, square) == pytest.approx(
        counted(module, tokens, backward=False), rel=0.01
    )
    if rank == 0:
        assert found.learned == 1.0
        # The first block need not know its embeddings' gradient less the product's two: all of the backward pass is there.
        assert found.update(tokens, tokens, square) == pytest.approx(
            counted(module, tokens, backward=True), rel=0.01
        )
    else:
        assert 0 < found.learned < 0.5


def test_a_model_without_words_has_no_operations_of_words():
    assert operations_of(torch.nn.Linear(4, 4)) is None


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("another", None),
    ],
)
def test_devices_are_known_by_name(name, rate):
    assert teraflops_of(name) == rate
