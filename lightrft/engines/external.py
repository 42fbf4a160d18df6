"""What the engines of other projects have in common: the model as a folder, its names of weights, and what is asked of them."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from lightrft.config import RolloutConfig
from lightrft.datasets.prompts import Asked
from lightrft.engines.base import EngineError
from lightrft.engines.sampling import stream
from lightrft.media.parts import KINDS, Media, parts
from lightrft.models.export import published
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import plain_names, plain_parameters
from lightrft.models.media import MediaEncoder
from lightrft.models.processor import Processor
from lightrft.types import Prompt, Sampling

CURE = "take rollout.engine=native"
NEVER = -100.0
"""What is added to the logit of a token that must not be drawn."""
POSITIVE = 2**62 - 1
"""Seeds that others take, with room to count siblings on."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt, as other engines are asked it."""

    token_ids: list[int]
    """Prompt as the model reads it: with a place for each token of a medium."""
    seed: int
    """Seed of the first response; each sibling's is one more."""
    n: int
    max_tokens: int
    continued: int = 0
    """How many of the tokens belong to the answer."""
    unexpanded_token_ids: list[int] = field(default_factory=list)
    """The tokens with one mark for each medium; empty without media."""
    media: Media | None = None


def engine_requests(
    prompts: Sequence[Prompt], sampling: Sampling, reader: MediaEncoder | None = None
) -> list[EngineRequest]:
    """ValueError for a prompt without tokens. With a reader, questions about media bring them decoded."""
    found: list[EngineRequest] = []
    for place, prompt in enumerate(prompts):
        if not prompt.token_ids:
            raise ValueError(f"prompt '{prompt.id}' has no tokens, so nothing predicts its first token.")
        continuation, tokens = prompt.continuation, list(prompt.token_ids)
        if continuation is None:
            seed = stream(sampling.seed, sampling.first_index + place * sampling.index_stride, 0) & POSITIVE
            one = EngineRequest(tokens, seed, sampling.n, sampling.max_tokens)
        else:  # their draws do not go on where they stopped, so they begin anew with another seed
            seed = stream(continuation.stream, continuation.tokens, 0) & POSITIVE
            one = EngineRequest(tokens, seed, 1, continuation.max_tokens, continuation.tokens)
        if reader is not None and prompt.unexpanded_token_ids:
            unexpanded_token_ids = [*prompt.unexpanded_token_ids, *tokens[len(tokens) - one.continued :]]
            one = replace(one, unexpanded_token_ids=unexpanded_token_ids, media=reader.read(prompt.messages))
        found.append(one)
    return found


def ends(sampling: Sampling, stop_ids: Iterable[int]) -> list[int]:
    """The tokens that end an answer: the model's own and those that are asked for; none if it is to go on to its limit."""
    return [] if sampling.ignore_eos else sorted({*stop_ids, *sampling.stop_token_ids})


READS = {"sglang": ("image", "video"), "lmdeploy": ("image",)}
"""What engines read that do not read all kinds of media: SGLang would tokenize a question with sounds anew, LMDeploy takes clips and
sounds by their addresses only."""


def check_kinds(
    engine: str, prompts: Iterable[Asked], reader: MediaEncoder | None, device: torch.device
) -> None:
    """ValueError for a question with media that the engine of this name does not read, or not as the model does."""
    reads = READS.get(engine, KINDS)
    # Of SGLang's attention kernels one takes a mask of the model's own, and it is not for CPUs.
    hides = engine == "sglang" and device.type == "cpu" and reader is not None and reader.sees_both_ways
    for prompt in prompts:
        kinds = {kind for kind, _ in parts(prompt.messages)}
        deaf = kinds.difference(reads)
        if deaf:
            raise ValueError(
                f"prompt '{prompt.id}' holds media of the kind '{min(deaf)}', and rollout.engine={engine} reads only: {', '.join(reads)}. "
                "Set rollout.engine=vllm or native."
            )
        if kinds and hides:
            raise ValueError(
                "rollout.engine=sglang on a CPU hides from a picture's tokens those behind them, which this model lets them see. "
                "Set rollout.engine=vllm or native."
            )


def same_tokens(prompt: Prompt, one: EngineRequest, read: Sequence[int]) -> None:
    """ValueError if an engine that reads media by itself has put other tokens in their place than the trainer."""
    if list(read) != one.token_ids:
        raise ValueError(
            f"prompt '{prompt.id}' has {len(read)} tokens for the engine and {len(one.token_ids)} for the trainer: they read its media "
            f"differently. {CURE[0].upper()}{CURE[1:]}."
        )


@dataclass(frozen=True)
class WeightNames:
    """The weights that a model has, by name; of tied ones only the first is passed on."""

    module: nn.Module
    known: frozenset[str]
    tied: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, module: nn.Module) -> WeightNames:
        """The names of a module's weights, empty or not."""
        parameters = plain_parameters(module)
        first: dict[nn.Parameter, str] = {}
        tied = (name for name, p in parameters.items() if first.setdefault(p, name) != name)
        return cls(module, plain_names(module) | frozenset(parameters), frozenset(tied))

    def for_checkpoint(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The weights that another engine's model has a place for, as a checkpoint has them: a head that is tied comes with the
        embeddings. ValueError for a name that is none."""
        return published(self.module, self._once(weights))

    def _once(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if name not in self.known:
                raise ValueError(f"the model has no weight named {name!r}.")
            if name not in self.tied:
                yield name, tensor


def refuse(config: RolloutConfig, *options: str) -> None:
    """ValueError for the options that engine cannot do."""
    engine = f"rollout.engine={config.engine}"
    for option in ("first_token_temperature", "first_token_top_k", *options):
        default = RolloutConfig.__dataclass_fields__[option].default
        if getattr(config, option) != default:
            raise ValueError(
                f"rollout.{option}={getattr(config, option)}: {engine} cannot sample so. Set it to {default}, or {CURE}."
            )


def refuse_unknown(setting: str, further: Mapping[str, Any], known: Collection[str], program: str) -> None:
    """ValueError for an argument of `further`, which is `setting`, that the program does not know."""
    for name in further:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            cure = f"Is it {' or '.join(near)}?" if near else "See its documentation (engine arguments)."
            raise ValueError(f"{setting}.{name}: {program} has no argument of this name. {cure}")


def refuse_other_values(
    setting: str, further: Mapping[str, Any], needed: Mapping[str, Any], why: str
) -> None:
    """ValueError for an argument of `further`, which is `setting`, that has another value than what is `needed` here, and `why`."""
    for name, value in needed.items():
        if name in further and further[name] != value:
            found, told = (
                yaml.safe_dump(x, default_flow_style=True).splitlines()[0] for x in (further[name], value)
            )
            raise ValueError(f"{setting}.{name}={found}: it has to be {told}, {why}. Leave it out.")


@contextmanager
def starting(program: str, setting: str, further: Mapping[str, Any]) -> Iterator[None]:
    """EngineError for whatever a program raises that does not start, with the arguments in `setting` that a user gave it."""
    try:
        yield
    except Exception as error:
        given = yaml.safe_dump(dict(further), default_flow_style=True, width=1000).strip()
        why = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
        told = f" with {setting}={given}" if further else ""
        cure = "Leave them out" if further else CURE.capitalize()
        raise EngineError(
            f"{program} did not start{told}: {why[:600].rstrip('.')}. {cure}; LIGHTRFT_TRACEBACK=1 shows where it failed."
        ) from error


TAGS = frozenset(("weights", "kv_cache"))
"""What engines hold, by the names under which they let go of it."""


class Sleeper(Protocol):
    """What lets go of TAGS and takes room for them again, the weights first. A second call does nothing."""

    def sleep(self, tag: str) -> None:
        """Lets go of the device memory of one of TAGS."""
        ...

    def wake(self, tag: str) -> None:
        """Takes room on the device for one of TAGS again."""
        ...


class JointSleeper:
    """A Sleeper for an engine that lets go of both at once, which happens when neither is wanted, and takes them one by one."""

    def __init__(self, let_go: Callable[[], object], take: Callable[[str], object]) -> None:
        self._let_go, self._take = let_go, take
        self._unwanted: set[str] = set()
        self.asleep: set[str] = set()

    def anew(self) -> None:
        """Another engine is there, awake."""
        self._unwanted.clear()
        self.asleep.clear()

    def sleep(self, tag: str) -> None:
        """Marks one of TAGS as unwanted; the engine lets go of both when both are."""
        self._unwanted.add(tag)
        if self._unwanted == TAGS and self.asleep != TAGS:
            self._let_go()
            self.asleep = set(TAGS)

    def wake(self, tag: str) -> None:
        """Takes room for one of TAGS, if the engine has let go of it."""
        self._unwanted.discard(tag)
        if tag in self.asleep:
            self._take(tag)
            self.asleep.remove(tag)


@dataclass(frozen=True)
class SleepingPart:
    """Weights or cache of one, as a resident."""

    engine: Sleeper
    tag: str
    size: int

    def onload(self) -> None:
        """Wakes this part of the engine."""
        self.engine.wake(self.tag)

    def offload(self) -> None:
        """Lets this part of the engine sleep."""
        self.engine.sleep(self.tag)

    def nbytes(self) -> int:
        """Device memory in bytes that the part takes when awake; 0 where it is not known."""
        return self.size


@contextmanager
def folder_without_weights(module: nn.Module, processor: Processor) -> Iterator[Path]:
    """Inside, a folder with the model's configuration and tokenizer or processor, without weights.

    It names no end token: what ends an answer is said with each question.
    """
    shape = deepcopy(causal_lm(module).config)
    shape.eos_token_id = shape.get_text_config().eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(folder)
        processor.save(Path(folder))
        yield Path(folder)
