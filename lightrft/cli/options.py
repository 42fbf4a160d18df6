"""The flags of each command that are no options of a run: one dataclass per command, with a docstring per flag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from lightrft.commands.address import Address
from lightrft.config.layers import field_docs
from lightrft.config.parser import parse
from lightrft.config.plan import Hardware, Rates

C = TypeVar("C")
Folder = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class TrainOptions:
    """Processes to start on this machine, and a run to go on with."""

    resume: str = ""
    """Run folder to go on with, after its last checkpoint."""
    gpus: int | None = None
    """Processes on this machine, each on a GPU of its own."""
    processes: int | None = None
    """Processes on this machine, on the CPU."""
    max_restarts: int = 0
    """Start the processes again after a crash, up to so many times, from the last checkpoint."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Processes to start on this machine, or a check of the task alone."""

    check: bool = False
    """Prove that the task's gold answers score full marks, without a model."""
    gpus: int | None = None
    """Processes on this machine, each on a GPU of its own."""
    processes: int | None = None
    """Processes on this machine, on the CPU."""


@dataclass(frozen=True)
class JudgeOptions:
    """The form of the output, and a file for it."""

    json: bool = False
    """Print every number, for programs."""
    out: str = ""
    """JSON file to write every number to."""


@dataclass(frozen=True)
class ServeOptions:
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's."""
    port: int = 8000
    """Port to listen at."""


@dataclass(frozen=True)
class ServeRewardsOptions(Address):
    """Where the server listens, and who may ask."""

    batch_ms: float = 20.0
    """Milliseconds in which requests are gathered to be judged together."""


@dataclass(frozen=True)
class PlanOptions:
    """Hardware to plan for (peaks: of an H100), the lengths to expect, and the form of the output."""

    gpus: int = Hardware.devices
    """Devices."""
    gpu_memory: float = Hardware.memory_gib
    """GiB of each device."""
    gpus_per_node: int = Hardware.per_node
    """Devices of one machine."""
    reserve: float = Hardware.reserve
    """Share of the memory that is left free."""
    prompt_tokens: int | None = None
    """Tokens of a prompt; left out: tasks.max_prompt_tokens."""
    response_tokens: int | None = None
    """Tokens of a response; left out: rollout.max_tokens, the longest."""
    teraflops: float = Rates.teraflops
    """Peak of a device in the model's type, 10^12 operations a second."""
    memory_rate: float = Rates.memory
    """Peak of reading a device's memory, GB/s."""
    link_rate: float = Rates.link
    """Peak between devices of a machine, GB/s."""
    network_rate: float = Rates.network
    """Peak between machines, GB/s for each device."""
    host_rate: float = Rates.host
    """Peak between a device and host memory in one direction, GB/s: 64 of PCIe 5.0 x16, 32 of 4.0; for strategy.offload."""
    efficiency: float = Rates.efficiency
    """Share of these peaks that is reached."""
    json: bool = False
    """Print every number, for programs."""
    run_code: bool = False
    """Run the code that the settings name (model.imports, a trainer, rewards or losses of one's own): only where you trust them."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, bool) and value <= 0:
                example = field.default if isinstance(field.default, int | float) else 512
                name = flag_of(field.name)
                raise ValueError(f"{name} {value:g}: needs a number above 0. For example: {name} {example:g}")

    @property
    def hardware(self) -> Hardware:
        """The devices with their rates."""
        rates = Rates(
            self.teraflops,
            self.memory_rate,
            self.link_rate,
            self.network_rate,
            self.host_rate,
            self.efficiency,
        )
        return Hardware(self.gpus, self.gpu_memory, self.gpus_per_node, self.reserve, rates)


@dataclass(frozen=True)
class ReplayOptions:
    """Compute a captured step again in this process, and show every metric beside the recorded one."""

    run: Annotated[Folder, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    step: int
    """The step, one of RUN/capsules/step-*.pt (see --log.capture-steps)."""
    run_code: bool = False
    """Run the code that the settings name (model.imports, a trainer, rewards or losses of one's own): only where you trust them."""


@dataclass(frozen=True)
class ViewOptions:
    """Steps of a run; with --step its groups; with --group, --best or --worst whole responses. In a browser with --web."""

    run: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder; several to look at in turn, or side by side in a browser."""
    step: int | None = None
    """Which step; -1 is the last one."""
    group: int | None = None
    """Show every response of this group."""
    best: int = 0
    """Show so many responses with the highest reward."""
    worst: int = 0
    """Show so many responses with the lowest reward."""
    color: Literal["none", "logprob", "advantage"] = "none"
    """Colour tokens by how sure the model was, or by their advantage."""
    status: Literal[
        "",
        "trained",
        "masked",
        "unselected",
        "filtered_out",
        "extra",
        "waiting",
        "failed",
        "held_out",
        "carried_over",
        "replayed",
        "given",
        "zero_variance",
    ] = ""
    """Show only responses that the step used in this way, that came in this way, or whose group has one reward (zero_variance)."""
    web: bool = False
    """Look at it in a browser, also while it trains: start a server for this machine alone, and print its address."""
    port: int = 0
    """Port of that server; 0: a free one."""
    export: str = ""
    """Write an HTML file that shows the runs in a browser, without a server and a network."""
    export_mib: float = 20.0
    """Largest size of that file in MiB; it says what it leaves out."""
    advice: bool = False
    """Say what the run's metrics advise; the command ends with 1 if there is an alarm."""


@dataclass(frozen=True)
class ExportOptions:
    """Write the policy of a checkpoint as plain transformers loads it; adapters are merged into the weights, or written alone."""

    run: Annotated[Folder, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    out: Annotated[Folder, tyro.conf.arg(metavar="FOLDER")]
    """The folder to make."""
    step: Annotated[int | None, tyro.conf.arg(metavar="STEP")] = None
    """After which step; the newest complete checkpoint if left out."""
    file_gb: float = 5.0
    """Most gigabytes of weights in a file, and so in memory."""
    output: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """The one output of a reward model to keep, for programs that read one alone; all if left out."""
    adapter: bool = False
    """Write the adapter alone, in float32, as peft loads it onto the plain model; only of a run that learned one."""
    run_code: bool = False
    """Run the code that the settings name (model.imports, a trainer, rewards or losses of one's own): only where you trust them."""

    def check(self) -> None:
        """ValueError for options of the whole model beside `adapter`."""
        if not self.adapter:
            return
        for flag, given in (("--output", self.output), ("--file-gb", self.file_gb != ExportOptions.file_gb)):
            if given:
                raise ValueError(
                    f"{flag} has no effect with --adapter, which writes one file of all that was learned. Leave one of them out."
                )


@dataclass(frozen=True)
class ChatOptions:
    """Talk with a model, each response shown as it is drawn; text only."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The model, as in model.path, or the folder of a finished run."""
    system: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """System message."""
    temperature: float = 0.7
    """Sampling temperature; 0: the most likely token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens with this total probability."""
    max_tokens: int = 512
    """Maximum tokens per response."""
    seed: int = 0
    """Seed of the draws."""


@dataclass(frozen=True)
class PushOptions:
    """Upload the model of a finished run to the hub, with a card that says how it was made."""

    run: Annotated[Folder, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The model's name on the hub."""
    dry_run: bool = False
    """Show the card and the files, and upload nothing."""
    private: bool = False
    """Make the repository private if it is new."""
    viewer: bool = False
    """Upload run.html too, the run as `lightrft view --export` writes it: everybody who sees the model then sees its prompts and
    responses."""


@dataclass(frozen=True)
class CompletionOptions:
    """Print the script by which a shell completes commands, layers, flags, tasks and run folders: source <(lightrft completion bash),
    source <(lightrft completion zsh), or lightrft completion fish | source."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional] = "bash"
    """The shell."""


@dataclass(frozen=True)
class DoctorOptions:
    """Print versions, devices, cores and memory, and which optional packages are missing."""


def parsed(cls: type[C], command: str, args: Sequence[str]) -> C:
    """The options of a command that reads no layers."""
    switches = {flag_of(f.name) for f in fields(cls) if isinstance(f.default, bool)}  # type: ignore[arg-type]  # a dataclass
    words: list[str] = []
    for word, following in pairwise([*args, ""]):
        is_bare = word.replace("_", "-") in switches and following.lower() not in ("true", "false")
        words += [word, "true"] if is_bare else [word]
    return parse(words, cls, prog=f"lightrft {command}", description="")


def taken(cls: type[C], command: str, args: Sequence[str]) -> tuple[C, list[str]]:
    """A command's own options, and the words that are not theirs. ValueError for a flag without its value."""
    own: list[str] = []
    rest: list[str] = []
    switches = {flag_of(f.name): isinstance(f.default, bool) for f in fields(cls)}  # type: ignore[arg-type]  # a dataclass
    left = list(args)
    while left:
        word = left.pop(0)
        flag, equals, _ = word.partition("=")
        if flag.replace("_", "-") not in switches or not flag.startswith("--"):
            rest.append(word)
        elif equals:
            own.append(word)
        elif switches[flag.replace("_", "-")]:
            own += [word, "true"]
        elif not left or left[0].startswith("--"):
            raise ValueError(f"{flag} needs a value: {flag} {example(cls, flag)}")
        else:
            own += [word, left.pop(0)]
    refuse_words(cls, own)
    return parse(own, cls, prog=f"lightrft {command}", description=""), rest


def refuse_words(cls: type[Any], own: Sequence[str]) -> None:
    """ValueError for a word where a flag wants a number."""
    wants = {flag_of(f.name) for f in fields(cls) if f.default is None or type(f.default) in (int, float)}
    words = [part for word in own for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag, value in pairwise(words):
        if flag.replace("_", "-") in wants and not re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", value):
            raise ValueError(f"{flag} {value}: needs a number. For example: {flag} {example(cls, flag)}")


def example(cls: type[Any], flag: str) -> str:
    """A value that a flag could have."""
    default = {flag_of(f.name): f.default for f in fields(cls)}[flag.replace("_", "-")]
    return "runs/NAME" if default == "" else str(default or 2)


def described(cls: type[Any]) -> str:
    """One line for each flag of a command's own: name, meaning, default."""
    docs = field_docs(cls)
    lines = []
    for field in fields(cls):
        default = "" if field.default in (None, "", False) else f" [{field.default}]"
        lines.append(f"  {flag_of(field.name):<18} {docs[field.name].rstrip('.')}{default}")
    return "\n".join(lines)


def flag_of(name: str) -> str:
    """How a field is written on the command line."""
    return f"--{name.replace('_', '-')}"
