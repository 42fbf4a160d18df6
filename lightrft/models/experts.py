"""Mixtures of experts: which experts a pass chose is counted, kept, and replayed in another pass.

A pass of the model is given a `Routing`, which reaches the attention of every layer as a keyword, as the layout does. A hook there hands it
to the layer's router, and a hook of the router lets it count or change what was chosen. So it holds as well where a layer is computed a
second time to save memory: its keywords are the same then.

Letters: N tokens of a pass; M layers with experts; E experts of a layer, of which each token is sent to K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

OWN = -1
"""In the place of an expert: the router chooses by itself."""
NORMALISES: Mapping[str, Callable[[Any], bool]] = {
    "Qwen2MoeTopKRouter": lambda router: bool(router.norm_topk_prob),
    "Qwen3MoeTopKRouter": lambda router: bool(router.norm_topk_prob),
    "OlmoeTopKRouter": lambda router: bool(router.norm_topk_prob),
    "MixtralTopKRouter": lambda _router: True,
}
"""Routers whose weights are the softmax of their logits at the experts chosen: class -> whether those weights are made to add up to 1."""


@dataclass(frozen=True)
class Routers:
    """The routers of a model whose layers pass a Routing on to them."""

    layers: tuple[int, ...]
    """(M,) the numbers of the decoder layers that have experts, from 0."""
    num_layers: int
    """How many decoder layers there are, with experts or without."""
    num_experts: int
    per_token: int

    @property
    def compact(self) -> torch.dtype:
        """The smallest type that holds the number of an expert."""
        return torch.uint8 if self.num_experts <= 256 else torch.int16


class Routing:
    """What the routers are told in one pass, and what they tell. N are the tokens that this process computes.

    No dataclass: FSDP2 rebuilds those that hold tensors with a gradient before each layer, and what a later layer told would go to a copy.
    """

    def __init__(
        self,
        replayed: Tensor | None = None,
        counted: Tensor | None = None,
        *,
        weighs: bool = False,
        keeps: bool = False,
    ) -> None:
        self.replayed, self.counted = replayed, counted
        """(N, M, K) integers: the experts to choose; OWN for a token whose routers choose by themselves. And (N,) how often each token
        counts in `load` and `mass`; None: nothing is counted."""
        self.weighs, self.keeps = weighs, keeps
        """Whether `mass` is wanted, and whether `chosen` is."""
        self.chosen: dict[int, Tensor] = {}
        """(N, K) by layer: the experts that each token was sent to."""
        self.load: dict[int, Tensor] = {}
        """(E,) float64 by layer: how many tokens each expert got."""
        self.mass: dict[int, Tensor] = {}
        """(E,) float32 by layer: the probability of each expert, summed over tokens; with its gradient."""
        self.changed: dict[int, Tensor] = {}
        """(2,) float64 by layer: choices replayed that the router would not have made, and all that were replayed."""
        self._seen: set[int] = set()

    def all_chosen(self) -> Tensor:
        """(N, M, K) of the pass."""
        return torch.stack([self.chosen[layer] for layer in sorted(self.chosen)], 1)

    def all_loads(self) -> Tensor:
        """(M, E) of the pass."""
        return torch.stack([self.load[layer] for layer in sorted(self.load)])

    def all_changed(self) -> Tensor:
        """(2,) over all layers."""
        return torch.stack(list(self.changed.values())).sum(0)

    def whole_mass(self) -> Tensor:
        """(E,) over all layers."""
        return torch.stack([self.mass[layer] for layer in sorted(self.mass)]).sum(0)

    def route(self, layer: int, normalises: bool, logits: Tensor, weights: Tensor, own: Tensor) -> Any:
        """What the router of this layer is to say in place of (logits (N, E), weights (N, K), experts (N, K)).

        A layer that is computed again in the backward pass does the same again, of which only the first is kept.
        """
        chosen = own
        if self.replayed is not None:
            given = self.replayed[:, layer].to(own.device, own.dtype)
            chosen = torch.where(given < 0, own, given)
            found = torch.softmax(logits, -1, dtype=torch.float).gather(-1, chosen)
            found = found / found.sum(-1, keepdim=True) if normalises else found
            weights = found.to(weights.dtype)
        if self.weighs and self.counted is not None:
            mass = self.counted @ torch.softmax(logits, -1, dtype=torch.float)
            self.mass.setdefault(layer, mass)
        if layer not in self._seen:
            self._seen.add(layer)
            self._note(layer, logits.shape[-1], chosen.detach(), own)
        return logits, weights, chosen

    @torch.no_grad()
    def _note(self, layer: int, experts: int, chosen: Tensor, own: Tensor) -> None:
        if self.keeps:
            self.chosen[layer] = chosen
        if self.counted is None:
            return
        counted = self.counted.double()
        each = counted[:, None].expand(-1, chosen.shape[-1])
        load = torch.zeros(experts, dtype=torch.float64, device=chosen.device)
        self.load[layer] = load.scatter_add_(0, chosen.flatten(), each.flatten())
        if self.replayed is not None:
            told = (self.replayed[:, layer] >= 0).to(own.device) * each
            other = ~(chosen[:, :, None] == own[:, None, :]).any(-1)
            self.changed[layer] = torch.stack([(told * other).sum(), told.sum()])


_WATCHED: WeakKeyDictionary[nn.Module, Routers | None] = WeakKeyDictionary()


def routers_of(module: nn.Module) -> Routers | None:
    """The routers of a language model, ready for a Routing; None for one that has none, or none of NORMALISES."""
    if module not in _WATCHED:
        _WATCHED[module] = _watch(module)
    return _WATCHED[module]


def _watch(module: nn.Module) -> Routers | None:
    found: list[tuple[int, Any]] = []
    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for number, block in enumerate(layers):
        for router in (m for m in block.modules() if type(m).__name__ in NORMALISES):
            place, normalises = len(found), NORMALISES[type(router).__name__](router)
            attention: Any = block.self_attn  # inside what is computed again, unlike hooks of the block
            attention.register_forward_pre_hook(partial(_hand_over, router), with_kwargs=True)
            router.register_forward_hook(partial(_route, place, normalises))
            found.append((number, router))
    if not found:
        return None
    numbers, router = tuple(number for number, _ in found), found[0][1]
    return Routers(numbers, len(layers), router.num_experts, router.top_k)


def _hand_over(router: nn.Module, _attention: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    router.__dict__["_routing"] = kwargs.get("routing")


def _route(place: int, normalises: bool, router: nn.Module, _args: Any, told: Any) -> Any:
    routing = router.__dict__.pop("_routing", None)
    return None if routing is None else routing.route(place, normalises, *told)


def added(known: Tensor | None, total: int, rows: Tensor) -> Tensor | None:
    """The experts of a response's first `total` tokens read, (total, M, K): those that are known, and of `rows`, which are of the last ones,
    those that are not. None if some lie between."""
    first, have = total - len(rows), 0 if known is None else len(known)
    if first < 0:
        raise ValueError(f"the engine tells the experts of {len(rows)} tokens, and {total} were read.")
    if first > have:
        return None
    return rows if known is None else torch.cat([known, rows[have - first :]])


def of_layers(rows: Any, routers: Routers) -> Tensor:
    """(n, M, K) from what an engine of another package tells, (n, layers, K): of all decoder layers, or of those with experts.

    ValueError for any other number of layers, or of experts to a token.
    """
    found = torch.as_tensor(rows)
    if found.dim() == 3 and found.shape[1] == routers.num_layers:
        found = found[:, list(routers.layers)]
    if found.dim() != 3 or found.shape[1:] != (len(routers.layers), routers.per_token):
        raise ValueError(
            f"the engine tells experts of the shape {tuple(found.shape)}, and the model sends each token to {routers.per_token} experts in "
            f"{len(routers.layers)} layers."
        )
    if found.numel() and not (int(found.min()) >= 0 and int(found.max()) < routers.num_experts):
        raise ValueError(
            f"the engine tells experts from {int(found.min())} to {int(found.max())}, and the model has those from 0 to {routers.num_experts - 1}."
        )
    return found.to(routers.compact)


def has_experts(model: nn.Module) -> bool:
    """Whether a model sends tokens to experts, of whatever family: how many meet one is known only once a router has spoken.

    By what transformers calls them: a part named `experts`, or of a class with Experts or MoE in its name.
    """
    return any(
        name.rpartition(".")[2] == "experts"
        or "Experts" in type(part).__name__
        or "MoE" in type(part).__name__
        for name, part in model.named_modules()
    )


def check_experts(setting: str, path: str, module: nn.Module) -> Routers:
    """The routers of the model (weights may be missing). ValueError, naming the setting, if it has none that can be told what to choose."""
    routers = routers_of(module)
    if routers is None:
        known = ", ".join(sorted(name.removesuffix("TopKRouter") for name in NORMALISES))
        raise ValueError(
            f"{setting}: model.path={path} has no router that is known here (known are those of {known}). Leave it out, or take a mixture of experts "
            "of one of these families."
        )
    return routers


def balancing_weight(setting: float, module: Any) -> float:
    """The weight of the load-balancing loss that algorithm.router_aux_coefficient asks for; -1: the one in the model's configuration."""
    if setting >= 0:
        return setting
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    return float(inner.config.get_text_config().router_aux_loss_coef)
