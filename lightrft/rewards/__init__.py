"""Rewards are plain functions; the judge (base.py) runs them, in processes of their own, and adds them up."""

from lightrft.rewards.function import Answer, RewardFunction, each

__all__ = ["Answer", "RewardFunction", "each"]
