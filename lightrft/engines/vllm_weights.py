"""vLLM's models when they are given new weights. Written for vLLM 0.32."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def pack_again(model: nn.Module) -> None:
    """Brings experts' new weights into the layout that vLLM's CPU kernels compute with.

    vLLM does so once, at its start; weights that come later stay as they came, whichever way they are given (its own
    `reload_weights` too), and the kernels take them for packed.
    """
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(layer)


def check_taken(model: nn.Module, taken: Collection[str] | None) -> None:
    """ValueError if some weights were not given, and are still those of before.

    `taken`: the names that the model's `load_weights` returned; None from a model that does not say.
    """
    left = [] if taken is None else sorted({name for name, _ in model.named_parameters()} - set(taken))
    if left:
        raise ValueError(
            f"{type(model).__name__} of vLLM has {len(left)} weights that the trainer's model does not, such as {', '.join(left[:3])}."
        )
