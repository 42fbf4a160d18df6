"""The faster forward passes compute what the modules compute, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lightrft.engines.packed_linear import LLAMA_SHAPED, fast
from lightrft.models.attention import ATTENTION
from lightrft.models.tiny import FAMILIES
from lightrft.testing import tiny_model

POSITIONS = torch.arange(9)[None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_hidden_states_stay_the_same(family: str, dtype: torch.dtype) -> None:
    module = tiny_model(family, attention=ATTENTION).to(dtype)
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    tokens = torch.arange(9)[None]
    expected = module(tokens, position_ids=POSITIONS, layout=Whole()).logits
    with fast(module):
        got = module(tokens, position_ids=POSITIONS, layout=Whole()).logits
    tolerance = 1e-5 if dtype == torch.float32 else 0.05 * float(expected.abs().max())
    assert_close(got, expected, atol=tolerance, rtol=0)


def test_llama_shaped_layers_are_recognised() -> None:
    for family in ("llama", "qwen2", "qwen3"):
        module = tiny_model(family, attention=ATTENTION)
        assert type(module.model.layers[0]).__name__ in LLAMA_SHAPED
        with fast(module):
            assert "forward" in module.model.layers[0].__dict__
            assert "forward" in module.lm_head.__dict__


def test_a_layer_with_adapters_keeps_its_own_forward() -> None:
    from peft import LoraConfig, get_peft_model

    module = get_peft_model(
        tiny_model("llama", attention=ATTENTION), LoraConfig(r=2, target_modules=["q_proj"])
    )
    layer = module.get_base_model().model.layers[0]
    with torch.no_grad():
        layer.self_attn.q_proj.lora_B["default"].weight.fill_(0.1)
        expected = module(torch.arange(9)[None], position_ids=POSITIONS, layout=Whole()).logits
        with fast(module):
            assert "forward" not in layer.__dict__
            assert_close(
                module(torch.arange(9)[None], position_ids=POSITIONS, layout=Whole()).logits, expected
            )


def test_everything_is_put_back_even_after_an_error() -> None:
    module = tiny_model("llama", attention=ATTENTION)

    def fail() -> None:
        with fast(module):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any("forward" in part.__dict__ for part in module.modules())


class Whole:
    """A layout of one causal sequence."""

    def attend(
        self,
        module: object,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
