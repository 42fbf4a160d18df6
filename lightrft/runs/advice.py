"""Advice on a run from what it logged: a table of rules, each with its evidence, the option to change, and where it comes from.

A rule looks at metrics, settings and the responses of the last saved step. Alarms say that a run is likely lost time as it goes on;
advice says what would make it better, and is given only where there is no alarm. No rule judges by entropy alone: entropy falls
in every run that learns (https://arxiv.org/abs/2505.22617).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightrft.runs import alarms, hints
from lightrft.runs.facts import Facts, Found, Level


@dataclass(frozen=True)
class Advice:
    """What is wrong, how it shows, and what to do."""

    rule: str
    level: Level
    sentence: str
    evidence: str
    """Steps and numbers."""
    option: str
    """What to change."""
    source: str
    """A paper, or what the rule comes from."""


@dataclass(frozen=True)
class Rule:
    """One kind of trouble."""

    look: Callable[[Facts], Found]
    option: str
    source: str


def advise(facts: Facts) -> list[Advice]:
    """The alarms in the order of the table; where there are none, the advice."""
    found = []
    for name, rule in RULES.items():
        if (told := rule.look(facts)) is not None:
            level, sentence, evidence = told
            found.append(Advice(name, level, sentence, evidence, rule.option, rule.source))
    alarms = [one for one in found if one.level == "alarm"]
    return alarms or found


PRACTICE, OURS = "common practice with PPO", "this project"
RULES: dict[str, Rule] = {
    "skipped_updates": Rule(
        alarms.skipped_updates,
        "lower optimizer.learning_rate, or optimizer.max_grad_norm; look with lightrft replay at a captured step",
        OURS,
    ),
    "failing_rewards": Rule(
        alarms.failing_rewards, "fix the reward function, or raise rewards.timeout_seconds", OURS
    ),
    "reward_hacking": Rule(
        alarms.reward_hacking,
        "raise algorithm.kl_coefficient, or change the reward",
        "https://arxiv.org/abs/2210.10760",
    ),
    "mismatch": Rule(
        alarms.mismatch,
        "check temperature, top_p, template and dtype of the engine; then algorithm.mismatch_correction=truncate, which auto is where the engine is another program",
        "https://fengyao.notion.site/off-policy-rl",
    ),
    "critic": Rule(
        alarms.critic, "raise critic.optimizer.learning_rate, or use algorithm.advantage=group_norm", PRACTICE
    ),
    "entropy_collapse": Rule(
        alarms.entropy_collapse,
        "raise the upper bound of algorithm.clip, or set algorithm.entropy_coefficient",
        "https://arxiv.org/abs/2505.22617",
    ),
    "truncation": Rule(
        hints.truncation,
        "raise rollout.max_tokens, or set algorithm.overlong_buffer",
        "https://arxiv.org/abs/2503.14476",
    ),
    "zero_variance": Rule(
        hints.zero_variance,
        "algorithm.group_filter=mixed_outcomes, or other prompts",
        "https://arxiv.org/abs/2503.14476",
    ),
    "clipping": Rule(hints.clipping, "lower optimizer.learning_rate, or fewer update.epochs", PRACTICE),
    "gradient_spike": Rule(hints.gradient_spike, "log.capture_spikes, then lightrft replay", OURS),
    "divergence": Rule(
        hints.divergence, "raise algorithm.kl_coefficient, or lower optimizer.learning_rate", PRACTICE
    ),
    "longer": Rule(
        hints.longer,
        "set algorithm.overlong_buffer and algorithm.overlong_penalty",
        "https://arxiv.org/abs/2503.20783",
    ),
    "format_alone": Rule(
        hints.format_alone, "give the part that is stuck more weight in rewards.functions", PRACTICE
    ),
    "too_slow": Rule(hints.too_slow, "raise optimizer.learning_rate", OURS),
    "stragglers": Rule(
        hints.stragglers, "look at that rank's machine, and at update.tokens_per_micro_batch", OURS
    ),
    "slow_rollout": Rule(
        hints.slow_rollout,
        "rollout.max_staleness, rollout.overlap_rewards, rollout.max_tokens_per_step, or a faster rollout.engine",
        OURS,
    ),
    "memory": Rule(hints.memory, "fewer rewards.workers; the log says what was loaded", OURS),
    "garbled": Rule(hints.garbled, "check model.chat_template and rollout.temperature", PRACTICE),
    "overfitting": Rule(hints.overfitting, "fewer steps, or a lower optimizer.learning_rate", PRACTICE),
}
"""Rule by name; alarms and advice come in this order."""
