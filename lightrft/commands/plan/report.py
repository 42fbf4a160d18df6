"""The plan for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lightrft.algorithms.requirements import correction_of
from lightrft.commands.plan import GIB, Plan
from lightrft.commands.plan.memory import Item
from lightrft.commands.plan.shape import Shape
from lightrft.commands.plan.work import PROMPTS_VALUED
from lightrft.config import Config, OfflineConfig
from lightrft.config.plan import Hardware
from lightrft.strategy.memory import Phase
from lightrft.utils.amounts import duration, unit


def as_json(plan: Plan) -> dict[str, Any]:
    """Every number of the plan: bytes, tokens, operations, seconds; of one device unless said."""
    phases = plan.work.phases().items()
    return {
        "model": plan.config.model.path,
        "weights": plan.models.actor.weights,
        "learned": plan.models.actor.learned,
        "backend": plan.config.strategy.backend,
        "devices": plan.hardware.devices,
        "tokens": asdict(plan.lengths),
        "memory": memory_as_json(plan.items, plan.sums, plan.usable),
        "host": {item.name: item.bytes for item in plan.host},
        "batch": {"tokens": plan.tokens, "largest": plan.largest_batch},
        "updates": plan.work.updates,
        "micro_batches": plan.work.micro_batches,
        "phases": {name: asdict(phase) for name, phase in phases},
        "switches": {name: asdict(switch) for name, switch in plan.work.switches.items()},
        "seconds": plan.work.seconds,
        "values": None
        if plan.work.values is None
        else {"prompts": PROMPTS_VALUED, "devices": plan.hardware.devices, **asdict(plan.work.values)},
        "rates": asdict(plan.hardware.rates),
        "mismatch_correction": correction_of(plan.algorithm),
        "problems": plan.problems,
    }


def show(plan: Plan) -> None:
    """Tables on the terminal."""
    console = Console(emoji=False)
    console.print(memory_table(plan.config, plan.models.actor, plan.hardware, plan.items, plan.sums))
    if plan.host:
        console.print(_host(plan))
    console.print(_work(plan))
    rates = plan.hardware.rates
    console.print(
        f"Seconds for {rates.efficiency:.0%} of {rates.teraflops:g} TFLOP/s, {rates.memory:g} GB/s of memory, {rates.link:g} GB/s between "
        f"devices of a machine, {rates.network:g} GB/s between machines, {rates.host:g} GB/s to host memory: assumptions, set by flags. Rewards are not counted.",
        style="dim",
        highlight=False,
    )
    if correction_of(plan.algorithm):
        told = f"algorithm.mismatch_correction is {correction_of(plan.algorithm)} with rollout.engine={plan.config.rollout.engine}."
        console.print(told, style="dim", highlight=False)
    show_verdict(console, plan.problems, plan.largest_batch)


def memory_as_json(items: Sequence[Item], sums: Mapping[Phase, int], usable: int) -> dict[str, Any]:
    """Bytes of each part with the phases in which it takes them, their sums, and how many may be filled."""
    return {
        "items": [{"name": i.name, "bytes": i.bytes, "phases": [p.value for p in i.phases]} for i in items],
        "sums": {phase.value: count for phase, count in sums.items()},
        "usable": usable,
    }


def show_verdict(console: Console, problems: Sequence[str], largest: int) -> None:
    """What is wrong, or how large a batch may be."""
    for told in problems:
        console.print(f"[red]![/red] {told}", highlight=False)
    if not problems:
        console.print(
            f"[green]fits[/green]: up to {largest:,} tokens a batch (update.tokens_per_micro_batch)",
            highlight=False,
        )


def memory_table(
    config: Config | OfflineConfig,
    learner: Shape,
    hardware: Hardware,
    items: Sequence[Item],
    sums: Mapping[Phase, int],
) -> Table:
    """GiB of a device by phase, or MiB where none takes a GiB, those of `sums`; titled with the model that learns."""
    devices = hardware.devices
    title = (
        f"{config.model.path}: {_weights(learner.weights)} weights, {learner.learned / learner.weights:.0%} learn; "
        f"{config.strategy.backend} on {devices} device{'s'[: devices > 1]}"
    )
    name_of_unit, one = unit(max(sums.values()))
    table = Table(f"{name_of_unit} of a device", *(phase.value for phase in sums), title=title)
    for item in items:
        table.add_row(
            item.name, *(_amount(item.bytes, one) if phase in item.phases else "" for phase in sums)
        )
    table.add_section()
    total = (_amount(count, one) for count in sums.values())
    table.add_row(f"sum, of {hardware.usable / GIB:.1f} GiB usable", *total, style="bold")
    return table


def _host(plan: Plan) -> Table:
    whole = sum(item.bytes for item in plan.host)
    name_of_unit, one = unit(plan.processes * whole)
    table = Table(f"{name_of_unit} of host memory", "a process", f"{plan.processes} of a machine")
    for item in plan.host:
        table.add_row(item.name, _amount(item.bytes, one), _amount(plan.processes * item.bytes, one))
    table.add_section()
    table.add_row("sum", _amount(whole, one), _amount(plan.processes * whole, one), style="bold")
    return table


def _work(plan: Plan) -> Table:
    found, devices = plan.work, plan.hardware.devices
    table = Table(
        "per device and step",
        "tokens",
        "TFLOP",
        "GB sent",
        "about",
        title=f"{found.updates} update{'s'[: found.updates > 1]} of {found.micro_batches} batches",
    )
    for name, phase in found.phases().items():
        table.add_row(
            name,
            f"{phase.tokens:,.0f}",
            f"{phase.flops / 1e12:,.3g}",
            f"{phase.sent / 1e9:,.3g}",
            duration(phase.seconds),
        )
    for name, switch in found.switches.items():
        table.add_row(
            f"offload, before {name}", "", "", f"{switch.sent / 1e9:,.3g}", duration(switch.seconds)
        )
    table.add_section()
    total = sum(phase.flops for phase in found.phases().values()) * devices
    table.add_row(f"all {devices}", "", f"{total / 1e12:,.3g}", "", duration(found.seconds), style="bold")
    if found.values is not None:
        table.add_section()
        table.add_row(
            f"once, all {devices}: {PROMPTS_VALUED:,} values",
            f"{found.values.tokens:,.0f}",
            f"{found.values.flops / 1e12:,.3g}",
            "",
            duration(found.values.seconds),
        )
    return table


def _weights(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2g} million"


def _amount(count: int, one: int) -> str:
    written = count / one
    return f"{written:.2f}" if not count or written >= 0.005 else f"{written:.1g}"
