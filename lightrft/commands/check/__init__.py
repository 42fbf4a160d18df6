"""`lightrft check`: looks at everything a run depends on before the run costs anything."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from lightrft.build.kinds import policy_of
from lightrft.build.process import check_watched, prepare_process
from lightrft.build.rl import check_policy
from lightrft.build.turns import build_turns
from lightrft.commands.check import costs, fools, picture_costs, policy, questions, settings, template
from lightrft.commands.check.report import Report, Section
from lightrft.commands.check.settings import Parts
from lightrft.config import Config
from lightrft.rewards.asked import TEXT

__all__ = ["preflight"]


def preflight(config: Config) -> int:
    """Prints one section per check and a verdict; 0 if no problem was found, else 1. Writes no file."""
    prepare_process(config)
    check_watched(config)
    report = Report(Console(highlight=False))
    with ExitStack() as stack:
        _look(report, config, stack)
    return report.verdict()


def read_data(section: Section, config: Config, parts: Parts, stack: ExitStack) -> questions.Questions:
    """The data as the policy reads it, with the tools that it is told of; whether what stands beside the policy suits it is looked at
    before."""
    kind = policy_of(config)
    check_policy(config, kind, parts.algorithm)
    return questions.data(section, config, parts, kind, build_turns(config, kind.processor, stack))


def _look(report: Report, config: Config, stack: ExitStack) -> None:
    """The sections in order, from cheap to dear, as far as one can get."""
    parts = report.run("settings", lambda s: settings.settings(s, config, stack))
    if parts is None:
        return
    found = report.run("data", lambda s: read_data(s, config, parts, stack))
    if found is None or not found.read:
        return
    writes = TEXT in found.kind.makes  # what is known of texts alone
    if writes:
        report.run("chat template", lambda s: template.chat_template(s, found))
        report.run("rewards on gold answers", lambda s: questions.rewards(s, config, parts, found))
    start = report.run("sampled responses", lambda s: policy.samples(s, config, parts, found))
    if start is None:
        return
    if parts.judge.models and writes:
        report.run("answers that say nothing", lambda s: fools.fools(s, parts, found, start))
    report.run("engine against trainer", lambda s: policy.mismatch(s, config, parts, start))
    measure = costs.time_and_memory if writes else picture_costs.time_and_memory
    report.run("time and memory", lambda s: measure(s, config, parts, found, start))
    report.run("disk", lambda s: costs.disk(s, config, parts, start))
