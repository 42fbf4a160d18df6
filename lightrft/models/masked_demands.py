"""Settings that mean nothing for masked diffusion language models, refused by name before weights load."""

from __future__ import annotations

from lightrft.config import ZERO, Config, SFTConfig
from lightrft.config.algorithm import EXACT
from lightrft.config.checks import refuse_idle
from lightrft.models.describe import stored_shape
from lightrft.models.families import is_multimodal

ENGINE = "unmask"
OTHER_ADVANTAGES = {
    "gae": "and a critic reads from left to right",
    "optimal_value": "which nobody has tried with it",
    "optimal_token_baseline": "and what it adds up comes from left to right",
}
"""Advantages that need more of a model than it has, and why."""


def check_settings(config: Config) -> None:
    """ValueError, naming setting, value and cure, for what a masked diffusion language model cannot obey."""
    path = f"model.path={config.model.path} is a masked diffusion language model"
    if config.rollout.engine != ENGINE:
        raise ValueError(
            f"rollout.engine={config.rollout.engine}: {path}, which the engine {ENGINE} samples from. Set rollout.engine={ENGINE}."
        )
    _check_sampling(config, path)
    _check_algorithm(config, path)
    check_parts(config, path)


def _check_sampling(config: Config, path: str) -> None:
    cure = "take a model that writes from left to right"
    idle = ("first_token_temperature", "first_token_top_k", "stop", "max_tokens_per_step", "routing_replay")
    refuse_idle("rollout", config.rollout, idle, because=path, cure=cure)
    refuse_idle("update", config.update, ["share_prompts"], because=path, cure=cure)


def _check_algorithm(config: Config, path: str) -> None:
    row = config.algorithm
    refuse_idle(
        "algorithm",
        row,
        ["router_aux_coefficient"],
        because=path,
        cure="take a language model that reads from left to right",
    )
    if row.advantage in OTHER_ADVANTAGES:
        raise ValueError(
            f"algorithm.advantage={row.advantage}: {path}, {OTHER_ADVANTAGES[row.advantage]}. Set algorithm.advantage=group_norm."
        )
    if row.kl == EXACT and row.kl_coefficient:
        raise ValueError(
            f"algorithm.kl={EXACT} needs a model whose steps are Gaussian (a diffusion pipeline): {path}. Set algorithm.kl=k3."
        )
    if row.overlong_buffer:
        raise ValueError(
            f"algorithm.overlong_buffer={row.overlong_buffer}: {path}, whose responses fill their canvas. Set algorithm.overlong_buffer=0."
        )
    for option, on in (
        ("teacher.path", config.teacher.path),
        ("critic.path", config.critic.path),
        ("environment.name", config.environment.name),
        ("environment.tools", config.environment.tools),
    ):
        if on:
            raise ValueError(f"{option}={on}: {path}, which this does not read. Leave it out.")


def check_parts(config: Config | SFTConfig, path: str) -> None:
    """ValueError for parts and processes that such a model does not learn with; `path` says what model.path is."""
    model, strategy = config.model, config.strategy
    if strategy.sequence_parallel > 1:
        raise ValueError(
            f"strategy.sequence_parallel={strategy.sequence_parallel}: {path}, whose rows are not divided over processes. Set "
            "strategy.sequence_parallel=1."
        )
    if strategy.backend in ZERO:
        raise ValueError(
            f"strategy.backend={strategy.backend}: {path}, which learns by one process or by FSDP2. Set another strategy.backend."
        )
    if model.attention != "packed":
        raise ValueError(
            f"model.attention={model.attention}: {path}, whose attention is both ways. Leave it out."
        )
    if not model.path.startswith("random:") and is_multimodal(stored_shape(model)):
        raise ValueError(f"{path} that reads media, and here one of text alone learns. Take a text model.")
