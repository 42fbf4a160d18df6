"""A reference that follows the policy, on whatever part of its weights a process holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def follow(
    own: Mapping[str, Tensor],
    weights: Iterable[tuple[str, Tensor]],
    share: float,
    exact: dict[str, Tensor],
    *,
    part: Callable[[str, Tensor], Tensor] = lambda _name, whole: whole,
    exact_on: str | None = None,
) -> None:
    """Each weight w becomes w + share * (given - w); see Frozen.follow.

    `own`: what this process holds, by name. `part(name, whole)` is the same part of a given weight. `exact` keeps in float32,
    on `exact_on` or beside the weight, what is held in a smaller type and moves slowly: its own type would lose small
    steps. ValueError for a weight that is not given.
    """
    left = dict(own)
    for name, weight in weights:
        if name not in left:  # the second name of a tied weight, or no weight
            continue
        mine, theirs = left.pop(name), part(name, weight)
        if share == 1:
            mine.copy_(theirs)
            exact.pop(name, None)
        elif mine.dtype is torch.float32:
            mine.lerp_(theirs.to(mine), share)
        else:
            kept = exact.setdefault(name, mine.to(exact_on or mine.device, torch.float32))
            mine.copy_(kept.lerp_(theirs.to(kept), share))
    if left:
        raise ValueError(f"the policy has no weight '{min(left)}', which the reference has")
