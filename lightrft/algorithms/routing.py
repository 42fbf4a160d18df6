"""Mixtures of experts: the load-balancing loss of the routers, and how evenly they share out tokens.

Letters: M layers with experts; E experts of a layer, of which each token is sent to K.
"""

from __future__ import annotations

import math

from torch import Tensor


def load_balancing(load: Tensor, mass: Tensor, tokens: float) -> Tensor:
    """The part of the load-balancing loss that some tokens have, () with the gradient of `mass`.

    E * sum_e f_e P_e, f_e = load_e / (M tokens), P_e = mass_e / (M tokens): Switch Transformers, Fedus et al. 2021
    (https://arxiv.org/abs/2101.03961), eq. 4 to 6, over all layers together and without the coefficient, as transformers'
    `load_balancing_loss_func` has it; K if the load is even.

    load: (M, E), tokens that each expert got, of all tokens that the loss is of, on all ranks. It has no gradient, so the loss is a sum over
    tokens once it is known, however they are divided: the global-batch loss of Qiu et al. 2025 (https://arxiv.org/abs/2501.11873).
    mass: (E,), the probability of each expert, summed over layers and over those of the tokens that are here.
    tokens: how many the loss is of, each counted once.
    """
    layers, experts = load.shape
    shares = load.sum(0).to(mass) / (layers * tokens)
    return experts * (shares * mass).sum() / (layers * tokens)


def evenness(load: Tensor) -> dict[str, float]:
    """How evenly experts got tokens, from (M, E), the mean over layers: the busiest expert's load over the mean; the entropy of the load as a
    share of log E, 1 if it is even; the share of experts that got nothing."""
    load = load.double()
    shares = load / load.sum(1, keepdim=True).clamp(min=1)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum(1) / math.log(max(2, load.shape[1]))
    busiest = load.amax(1) / load.mean(1).clamp(min=1e-9)
    return {
        "router/busiest_expert": float(busiest.mean()),
        "router/load_entropy": float(entropy.mean()),
        "router/idle_experts": float((load == 0).double().mean()),
    }
