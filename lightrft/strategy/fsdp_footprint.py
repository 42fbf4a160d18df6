"""What FSDP2 holds of a model on each process, and what its processes exchange."""

from __future__ import annotations

from lightrft.config import FsdpConfig
from lightrft.strategy.footprint import EXACT, Footprint, Sizes, Traffic


def fsdp_footprint(options: FsdpConfig, sizes: Sizes, processes: int, *, learns: bool) -> Footprint:
    """Pieces of weights, float32 where they learn, of gradients and the optimizer's state; nothing of them with strategy.fsdp.offload."""
    pieces = processes // options.replicas
    learned = sizes.learned if learns else 0
    held = not options.offload
    return Footprint(
        weights=(EXACT * learned + sizes.width * (sizes.weights - learned)) // pieces if held else 0,
        optimizer=sizes.optimizer_state // pieces if held and learns else 0,
        gradients=EXACT * learned // pieces if held else 0,
        gathered=_gathered(options, sizes, learned),
        sharded=True,
        copies=options.replicas,
        traffic=_traffic(options, sizes),
        to_host="strategy.fsdp.offload" if held else "",
    )


def _gathered(options: FsdpConfig, sizes: Sizes, learned: int) -> int:
    """Embeddings and head stay whole from the forward to the backward pass; of blocks two are whole at a time, or all."""
    rest = sizes.weights - sizes.inside
    whole = 2 * sizes.largest_block if options.reshard_after_forward else sizes.inside
    found = sizes.width * (rest + whole)
    if learned:
        # Those of the rest are summed last, from a float32 copy; a block's are summed while the next computes.
        both = sizes.width + EXACT
        found += int(learned / sizes.weights * max(both * rest, 2 * both * sizes.largest_block))
    return found


def _traffic(options: FsdpConfig, sizes: Sizes) -> Traffic:
    """Traffic as of zero3 (see zero_footprint.py), but embeddings and head are always kept."""
    rest = sizes.weights - sizes.inside
    return Traffic(
        summed=sizes.learned,
        gathered=sizes.inside * (2 if options.reshard_after_forward else 1) + rest,
    )
