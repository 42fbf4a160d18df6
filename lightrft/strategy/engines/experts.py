"""Mixtures of experts in vLLM on a CPU."""

from __future__ import annotations

from torch import nn


def pack_again(model: nn.Module) -> None:
    """Brings experts' new weights into the layout that vLLM's CPU kernels compute with.

    vLLM does so once, at its start; weights that come later stay as they came, whichever way they are given (its own
    `reload_weights` too), and the kernels take them for packed. Written for vLLM 0.32.
    """
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)
