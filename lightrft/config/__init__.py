"""Every option of every command: frozen dataclasses with a docstring per field, and cross-checks that name the cure.

Standard library only. A YAML layer is a list of these flags (config/layers.py); `lightrft config ...` prints the result. One file per
room of options; this one is their common name: `from lightrft.config import AlgorithmConfig`. cli/, commands/, build/, the trainers and the checks of
an algorithm's needs read `Config` as a whole; other parts receive their own section.
"""

from lightrft.config.algorithm import AlgorithmConfig
from lightrft.config.answers import keywords_answer, sections
from lightrft.config.data import TaskConfig
from lightrft.config.dpo import DPOConfig
from lightrft.config.engines import (
    DenoiseConfig,
    LmdeployConfig,
    NativeEngineConfig,
    ServerConfig,
    SglangConfig,
    UnmaskConfig,
    VllmConfig,
)
from lightrft.config.environment import EnvironmentConfig
from lightrft.config.given_pictures import GivenPicturesConfig, TaughtPicturesConfig
from lightrft.config.model import LoraConfig, MediaConfig, ModelConfig, TeacherConfig
from lightrft.config.offline import HeldOutConfig, SamplingLogConfig, SFTLogConfig
from lightrft.config.remote import RemoteConfig
from lightrft.config.reward_training import COMPARISONS, RewardTrainingConfig
from lightrft.config.rewards import POLICY, ConstraintConfig, JudgeConfig, RewardConfig, RewardModelConfig
from lightrft.config.rl import Config
from lightrft.config.rollout import ReplayConfig, RolloutConfig
from lightrft.config.sandbox import SandboxConfig
from lightrft.config.sft import CONVERSATIONS, MaskedConfig, SFTConfig
from lightrft.config.strategy import ZERO, DeepspeedConfig, FsdpConfig, StrategyConfig, check_backend
from lightrft.config.training import (
    CheckpointConfig,
    CriticConfig,
    EvaluateConfig,
    LogConfig,
    OptimizerConfig,
    UpdateConfig,
)
from lightrft.config.values import refuse_values

OfflineConfig = SFTConfig | RewardTrainingConfig | DPOConfig
"""Settings of a run that learns from given responses."""
RunConfig = Config | OfflineConfig
"""Settings of any run."""
RUNS: dict[str, type[RunConfig]] = {
    "train": Config,
    "sft": SFTConfig,
    "reward": RewardTrainingConfig,
    "dpo": DPOConfig,
}
"""Command that trains -> its settings."""


def command_of(config: RunConfig) -> str:
    """The command that trains with these settings."""
    return next(name for name, kind in RUNS.items() if type(config) is kind)


__all__ = [
    "COMPARISONS",
    "CONVERSATIONS",
    "POLICY",
    "RUNS",
    "ZERO",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "ConstraintConfig",
    "CriticConfig",
    "DPOConfig",
    "DeepspeedConfig",
    "DenoiseConfig",
    "EnvironmentConfig",
    "EvaluateConfig",
    "FsdpConfig",
    "GivenPicturesConfig",
    "HeldOutConfig",
    "JudgeConfig",
    "LmdeployConfig",
    "LogConfig",
    "LoraConfig",
    "MaskedConfig",
    "MediaConfig",
    "ModelConfig",
    "NativeEngineConfig",
    "OfflineConfig",
    "OptimizerConfig",
    "RemoteConfig",
    "ReplayConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RewardTrainingConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SFTLogConfig",
    "SamplingLogConfig",
    "SandboxConfig",
    "ServerConfig",
    "SglangConfig",
    "StrategyConfig",
    "TaskConfig",
    "TaughtPicturesConfig",
    "TeacherConfig",
    "UnmaskConfig",
    "UpdateConfig",
    "VllmConfig",
    "check_backend",
    "command_of",
]

_seen: set[type] = set()
for _command in RUNS.values():
    for _name, _section in sections(_command):
        if _section not in _seen:
            keywords_answer(_section, _name, refuse_values)
            _seen.add(_section)
