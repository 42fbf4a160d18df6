"""The plan for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lightrft.commands.plan import GIB, Plan
from lightrft.commands.plan.memory import SHOWN
from lightrft.console.amounts import duration


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
        "memory": {
            "items": [
                {"name": i.name, "bytes": i.bytes, "phases": [p.value for p in i.phases]} for i in plan.items
            ],
            "sums": {phase.value: count for phase, count in plan.sums.items()},
            "usable": plan.usable,
        },
        "batch": {"tokens": plan.tokens, "largest": plan.largest_batch},
        "updates": plan.work.updates,
        "micro_batches": plan.work.micro_batches,
        "phases": {name: asdict(phase) for name, phase in phases},
        "seconds": plan.work.seconds,
        "rates": asdict(plan.hardware.rates),
        "problems": plan.problems,
    }


def show(plan: Plan) -> None:
    """Tables on the terminal."""
    console = Console(emoji=False)
    console.print(_memory(plan))
    console.print(_work(plan))
    rates = plan.hardware.rates
    console.print(
        f"Seconds for {rates.efficiency:.0%} of {rates.teraflops:g} TFLOP/s, {rates.memory:g} GB/s of memory, {rates.link:g} GB/s between "
        f"devices of a machine, {rates.network:g} GB/s between machines: assumptions, set by flags. Rewards are not counted.",
        style="dim",
        highlight=False,
    )
    for told in plan.problems:
        console.print(f"[red]![/red] {told}", highlight=False)
    if not plan.problems:
        console.print(
            f"[green]fits[/green]: up to {plan.largest_batch:,} tokens a batch (update.tokens_per_micro_batch)",
            highlight=False,
        )


def _memory(plan: Plan) -> Table:
    actor, strategy, devices = plan.models.actor, plan.config.strategy, plan.hardware.devices
    title = (
        f"{plan.config.model.path}: {actor.weights / 1e9:.2f} billion weights, {actor.learned / actor.weights:.0%} learn; "
        f"{strategy.backend} on {devices} device{'s'[: devices > 1]}"
    )
    table = Table("GiB of a device", *(phase.value for phase in SHOWN), title=title)
    for item in plan.items:
        table.add_row(item.name, *(_gib(item.bytes) if phase in item.phases else "" for phase in SHOWN))
    table.add_section()
    table.add_row(
        f"sum, of {plan.usable / GIB:.1f} usable", *(_gib(plan.sums[phase]) for phase in SHOWN), style="bold"
    )
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
    table.add_section()
    total = sum(phase.flops for phase in found.phases().values()) * devices
    table.add_row(f"all {devices}", "", f"{total / 1e12:,.3g}", "", duration(found.seconds), style="bold")
    return table


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
