"""What DeepSpeed's ZeRO holds of a model on each process, and what its processes exchange."""

from __future__ import annotations

from lightrft.config import DeepspeedConfig
from lightrft.strategy.footprint import EXACT, Footprint, Sizes, Traffic


def zero_footprint(
    stage: int, options: DeepspeedConfig, sizes: Sizes, processes: int, *, learns: bool
) -> Footprint:
    """DeepSpeed keeps a float32 copy of its piece of the weights whatever the model computes in, and moves nothing."""
    learned = sizes.learned if learns else 0
    shares = zero_share(
        stage,
        processes,
        weights=sizes.width * sizes.weights,
        gradients=EXACT * learned,
        optimizer=EXACT * learned + (sizes.optimizer_state if learns else 0),
    )
    weights, gradients, optimizer = map(int, shares)
    piece = EXACT * learned // processes
    gradients += piece  # for its step: those of its piece once more
    if stage > 1:
        gradients += 2 * min(options.bucket_mib * 2**20, EXACT * learned)
    if options.offload_optimizer:
        optimizer, gradients = 0, gradients - piece
    return Footprint(
        weights=0 if options.offload_param else weights,
        optimizer=optimizer,
        gradients=gradients if learns else 0,
        gathered=_gathered(options, sizes, learned) if stage == 3 else 0,
        gradients_stay=stage == 3,
        sharded=stage == 3,
        moves=False,
        traffic=_traffic(stage, sizes, kept=options.max_live_parameters >= sizes.weights),
    )


def zero_share(
    stage: int, devices: int, *, weights: float, gradients: float, optimizer: float
) -> tuple[float, float, float]:
    """What a device holds of each: stage 1 shares the optimizer out, 2 the gradients too, 3 the weights as well.

    Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), figure 1.
    """
    return (
        weights / (devices if stage == 3 else 1),
        gradients / (devices if stage > 1 else 1),
        optimizer / devices,
    )


def _gathered(options: DeepspeedConfig, sizes: Sizes, learned: int) -> int:
    most = max(options.max_live_parameters, 2 * sizes.largest_block)
    found = sizes.width * min(sizes.weights, most)
    if learned:  # a block's gradients before they are summed, and weights that are fetched ahead
        found += (sizes.width + EXACT) * sizes.largest_block
        found += min(options.bucket_mib * 2**20, sizes.width * sizes.weights)
    return found


def _traffic(stage: int, sizes: Sizes, *, kept: bool) -> Traffic:
    """With P weights, L of them learning, and M micro-batches (Rajbhandari et al. 2020, section 7, where M = 1).

    Stage 1 sums the gradients once, 2 L, and hands the weights out, L; 2 sums them into pieces after each micro-batch, M L,
    and hands out L; 3 gathers the weights for each forward and each backward pass and sums into pieces, M (P + P + L), or
    M (P + L) with weights `kept` from the forward to the backward pass. (DeepSpeed's ZeRO 2 sums by all-reduce and drops
    what is not its own: it sends 2 M L + L.)
    """
    learned = sizes.learned
    if stage == 1:
        return Traffic(summed_once=2 * learned, gathered_once=learned)
    if stage == 2:
        return Traffic(summed=learned, gathered_once=learned)
    return Traffic(summed=learned, gathered=(1 if kept else 2) * sizes.weights)
