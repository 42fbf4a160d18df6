"""Settings of language models that mean nothing for pictures, refused by name before weights load."""

from __future__ import annotations

from lightrft.config import ZERO, Config, DPOConfig, SFTConfig
from lightrft.config.algorithm import EXACT
from lightrft.config.checks import refuse_idle
from lightrft.config.rollout import RolloutConfig

ENGINE = "denoise"
GREEDY = "greedy_baseline"
"""The advantage that compares with a picture without noise on the way."""
NEED_PROBABILITIES = ("dppo", "dppo_kl", "dcpo", "orpo")
"""Losses that compute with the probability of a token, where a step of drawing has a density."""
NEED_LOGPROBS = ("dpo", "robust", "ipo", "hinge", "simpo")
"""Losses that compare log-probs with the reference's or with each other's, not only with those of the same step under other weights of the policy."""
OTHER_ADVANTAGES = {
    "gae": "and a critic reads words",
    "optimal_value": "and nobody has measured values of pictures with it",
    "optimal_token_baseline": "whose steps have densities and no probabilities",
}
"""Advantages that need more of a model than it has, and why."""


def check_settings(config: Config) -> None:
    """ValueError, naming setting, value and cure, for what a diffusion pipeline cannot obey."""
    path = f"model.path={config.model.path} is a diffusion pipeline"
    if config.rollout.engine != ENGINE:
        raise ValueError(
            f"rollout.engine={config.rollout.engine}: {path}, which the engine {ENGINE} draws with. Set rollout.engine={ENGINE}."
        )
    _check_sampling(config, path)
    _check_algorithm(config, path)
    check_parts(config, path)


def _check_sampling(config: Config, path: str) -> None:
    idle = (
        "temperature", "first_token_temperature", "first_token_top_k", "top_k", "top_p", "min_p", "stop", "max_tokens_per_step",
        "routing_replay",
    )  # fmt: skip
    refuse_idle("rollout", config.rollout, idle, because=path, cure="take a language model")
    refuse_idle("update", config.update, ["share_prompts"], because=path, cure="take a language model")
    if config.tasks.on_long_prompt == "truncate_left":
        raise ValueError(
            f"tasks.on_long_prompt=truncate_left: {path}, whose text encoders read a prompt as it is. Set tasks.on_long_prompt=skip."
        )
    options = config.rollout.denoise
    window = options.learned
    most, plain = config.rollout.max_tokens, RolloutConfig().max_tokens
    if most != window and (most != plain or config.algorithm.average == "fixed"):
        raise ValueError(
            f"rollout.max_tokens={most}: {path}, whose responses have an entry for each step that noise enters, {window} (rollout.denoise.first={options.first}, window={options.window}, until={options.until}). Set "
            f"rollout.max_tokens={window}."
        )
    refuse_idle(
        "evaluate", config.evaluate, ["top_p", "max_tokens"], because=path, cure="take a language model"
    )
    if config.evaluate.temperature not in (0.0, 1.0):
        raise ValueError(
            f"evaluate.temperature={config.evaluate.temperature}: {path}; 0 draws without noise on the way, 1 as in training. Set one of them."
        )
    _check_evaluation_steps(config)
    if config.evaluate.majority_k:
        raise ValueError(
            f"evaluate.majority_k={config.evaluate.majority_k}: {path}, and pictures do not vote. Leave it out."
        )


def _check_evaluation_steps(config: Config) -> None:
    """They are those of pictures without noise on the way, in evaluation alone."""
    steps = config.rollout.denoise.evaluation_steps
    told = f"rollout.denoise.evaluation_steps={steps}"
    if steps and config.evaluate.temperature:
        raise ValueError(
            f"{told} has no effect with evaluate.temperature={config.evaluate.temperature:g}, which draws as training does. Set "
            "rollout.denoise.evaluation_steps=0, or evaluate.temperature=0."
        )
    if steps not in (0, config.rollout.denoise.steps) and config.algorithm.advantage == GREEDY:
        raise ValueError(
            f"{told} with algorithm.advantage={GREEDY}: a picture would be compared with one of other steps than its own, "
            f"{config.rollout.denoise.steps}. Set rollout.denoise.evaluation_steps=0, or algorithm.advantage=group_norm."
        )


def _check_algorithm(config: Config, path: str) -> None:
    row = config.algorithm
    idle = (
        "high_entropy_fraction", "entropy_coefficient", "entropy_target", "truncated", "overlong_buffer", "teacher_coefficient", "gae_lambda",
        "router_aux_coefficient",
    )  # fmt: skip
    if row.advantage in OTHER_ADVANTAGES:
        raise ValueError(
            f"algorithm.advantage={row.advantage}: {path}, {OTHER_ADVANTAGES[row.advantage]}. Set algorithm.advantage=group_norm."
        )
    if row.loss in NEED_PROBABILITIES:
        raise ValueError(
            f"algorithm.loss={row.loss}: {path}, whose steps have densities and no probabilities. Set algorithm.loss=clipped."
        )
    if config.rollout.denoise.likelihood == "normed" and row.kl_coefficient and row.kl != EXACT:
        raise ValueError(
            f"algorithm.kl={row.kl} with rollout.denoise.likelihood=normed: {path}, and normed log-probs estimate no divergence. Set algorithm.kl={EXACT}."
        )
    if config.rollout.denoise.likelihood == "normed" and row.loss in NEED_LOGPROBS:
        raise ValueError(
            f"algorithm.loss={row.loss} with rollout.denoise.likelihood=normed: {path}, and normed log-probs are told from the weights that drew a picture "
            "alone. Set rollout.denoise.likelihood=mean, or algorithm.loss=clipped."
        )
    refuse_idle(
        "algorithm", row, idle, because=f"{path}, of which it is not known", cure="take a language model"
    )
    for option, on in (
        ("teacher.path", config.teacher.path),
        ("critic.path", config.critic.path),
        ("judge.path", config.judge.path),
        ("environment.name", config.environment.name),
        ("environment.tools", config.environment.tools),
    ):
        if on:
            raise ValueError(f"{option}={on}: {path}, and this reads words. Leave it out.")


def check_parts(config: Config | DPOConfig | SFTConfig, path: str) -> None:
    """ValueError for parts and processes that a pipeline does not learn with; `path` says what model.path is."""
    model, strategy = config.model, config.strategy
    for option, value, cure in (
        ("model.freeze", model.freeze, "Leave it out: the transformer learns whole"),
        ("model.chat_template", model.chat_template, "Leave it out: a prompt is read as it is"),
        ("model.compile", model.compile, "Set model.compile=false"),
        ("model.kernels", model.kernels != "off", "Set model.kernels=off"),
        ("strategy.sequence_parallel", strategy.sequence_parallel - 1, "Set strategy.sequence_parallel=1"),
    ):
        if value:
            raise ValueError(f"{option}: {path}. {cure}.")
    if strategy.backend in ZERO:
        raise ValueError(
            f"strategy.backend={strategy.backend}: {path}, which learns by one process or by FSDP2. Set another strategy.backend."
        )
    if model.attention != "packed":
        raise ValueError(
            f"model.attention={model.attention}: {path}, which has its own attention. Leave it out."
        )
