"""Whether the engine that sampled and the trainer agree about the log-probs of the same tokens under the same weights."""

from __future__ import annotations

from lightrft.config import Config, RolloutConfig

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Engine and trainer may differ by this much in a token's log-prob: the largest in float32, the mean in bfloat16."""


def cuts(roll: RolloutConfig) -> bool:
    """Whether tokens are drawn from a part of the distribution, so that part of the difference is meant."""
    return bool(roll.top_k or roll.first_token_top_k or roll.top_p < 1 or roll.min_p)


def disagreement(config: Config, mean: float, largest: float) -> str:
    """What to say if they differ by more than their arithmetic explains, with likely causes; empty if they do not."""
    dtype = config.model.dtype
    limit = TOLERANCE[dtype]
    found, name = (largest, "largest") if dtype == "float32" else (mean, "mean")
    if found <= limit:
        return ""
    return (
        f"engine and trainer do not agree: the {name} difference is {found:.2g}, usual for {dtype} is at most {limit:g}. Likely causes: other weights in the "
        "engine than in the trainer, another temperature, sampling settings that cut the distribution, another prompt (template), "
        "or attention that is computed differently (compare with model.attention=separate)."
    )
