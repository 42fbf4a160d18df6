"""Fused kernels of liger-kernel: refused by name where they cannot be had, and equal to transformers' operations where they can.

The kernels themselves run on a CUDA device (tests/accelerator), or anywhere in triton's interpreter: install liger-kernel, and
TRITON_INTERPRET=1 pytest tests/unit/models/test_kernels.py.
"""

import os
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.config import ModelConfig
from lightrft.models.attention import ATTENTION
from lightrft.models.describe import without_weights
from lightrft.models.kernels import check_kernels, check_known, fuse, use_kernels
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.testing import tiny_model, tiny_trajectories
from lightrft.trainer.batching import pack

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or find_spec("liger_kernel") is None,
    reason="needs liger-kernel and TRITON_INTERPRET=1",
)


def test_on_a_cpu_they_are_refused_and_auto_leaves_the_model_as_it_is():
    cpu = torch.device("cpu")
    with pytest.raises(
        ValueError,
        match="model.kernels=liger: these kernels are for NVIDIA and AMD GPUs, and this run computes on cpu",
    ):
        check_kernels(ModelConfig(kernels="liger"), cpu)
    check_kernels(ModelConfig(kernels="auto"), cpu)
    model = tiny_model("llama", attention=ATTENTION)
    use_kernels(model, ModelConfig(kernels="auto"))
    assert not any("forward" in vars(part) for part in model.modules())
    with pytest.raises(ValueError, match="model.kernels=liger: .* this run computes on cpu"):
        load_model(ModelConfig(path="random:llama", kernels="liger"), trainable=False)


def test_what_has_no_weights_is_only_described_and_what_holds_them_computes_nothing():
    asked = ModelConfig(path="random:llama", kernels="liger")
    assert Source(asked).empty("meta").lm_head.weight.is_meta
    assert not any(Source(asked).empty().lm_head.weight.stride())
    assert Source(asked).whole()["lm_head.weight"].any()


def test_a_family_without_known_parts_is_refused_by_its_shape_alone():
    with pytest.raises(
        ValueError, match="model.kernels=liger: no part of teacher.path=random:x is known here"
    ):
        check_known(
            AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2)),
            "teacher.path=random:x",
        )
    for family in ("llama", "qwen3", "gemma3"):
        check_known(without_weights(ModelConfig(path=f"random:{family}")), f"model.path=random:{family}")


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="needs a machine without it")
def test_where_they_are_not_installed_the_command_is_told():
    with pytest.raises(
        ValueError, match="model.kernels=liger: it is not installed. Try: pip install .*liger-kernel"
    ):
        check_kernels(ModelConfig(kernels="liger"), torch.device("cuda"))


@pytest.fixture
def interpretable(monkeypatch):
    """What triton's interpreter lacks: numbers that are no integers as tensors, and two functions that devices bring."""
    import numpy as np
    from liger_kernel.ops import geglu, rms_norm
    from triton import language as tl
    from triton.runtime import interpreter

    def converted(argument, plain=interpreter._implicit_cvt):
        if not isinstance(argument, float):
            return plain(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: 1.0 / tl.sqrt(x))
    monkeypatch.setattr(geglu, "tanh", lambda x: 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@interpreted
@pytest.mark.usefixtures("interpretable")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_they_compute_what_transformers_computes(family):
    """In float32: the interpreter multiplies the bits of bfloat16 as if they were integers."""
    batch, found = pack(tiny_trajectories([(13, [5, 3]), (4, [7])])), []
    for fused in (False, True):
        model = tiny_model(family, attention=ATTENTION)
        if fused:
            assert fuse(model) >= 2 * 4  # of each of two layers: two norms, attention, MLP
        values = logprobs(model, batch, temperature=0.7, max_logits=10_000).values
        values.sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten().float() for p in model.parameters()])))
    (right, slope), (values, gradient) = found
    assert float((values - right).abs().max()) < 1e-5
    assert float((gradient - slope).norm() / slope.norm()) < 1e-5
