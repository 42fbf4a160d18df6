"""`lightrft chat`: a conversation with a model in the terminal, each response shown as it is drawn."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from lightrft.build.tables import ENGINES, OWN
from lightrft.config import ModelConfig, RolloutConfig
from lightrft.models.describe import context
from lightrft.models.load import load_model
from lightrft.models.processor import Processor
from lightrft.models.reward_source import writing_processor
from lightrft.runs.layout import RunFolder
from lightrft.types import Completion, Message, Prompt, Record, Sampling
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve
from lightrft.utils.shown import shown

NEW, QUIT = "/new", "/quit"


def chat(model: str, system: str, sampling: Sampling) -> int:
    """Talks until the input ends or /quit."""
    config = ModelConfig(path=model_of(model))
    processor = writing_processor(config)
    module = load_model(config, pick_device("auto"), trainable=False)
    engine: Any = resolve(ENGINES, OWN, "engine")(module, processor, RolloutConfig())
    talk = Conversation(engine, processor, sampling, context(config), system)
    write(f"{shown(config.path, lines=False)}: {NEW} begins again, {QUIT} ends.\n")
    converse(talk, asked(), write)
    return 0


def write(text: str) -> None:
    """Prints now, without a new line."""
    print(text, end="", flush=True)


def model_of(path: str) -> str:
    """The model that a word means: that of a finished run, or itself. ValueError for a run without a model."""
    run = RunFolder(Path(path))
    if not run.is_run:
        return path
    if not run.model.is_dir():
        raise ValueError(
            f"{path}: the run has not finished, so there is no {run.model}. Make one of a checkpoint: lightrft export {path} FOLDER"
        )
    return str(run.model)


def asked() -> Iterator[str]:
    """What is typed, a line at a time, until the input ends; bytes that are no text become a sign for it."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        write("\n> ")
        line = sys.stdin.readline()
        if not line:
            write("\n")
            return
        yield line.strip()


def converse(talk: Conversation, lines: Iterable[str], show: Callable[[str], object]) -> None:
    """Answers each line until one is /quit; a line that cannot be answered is told and left out."""
    for line in lines:
        if line == QUIT:
            return
        if line == NEW:
            talk.begin()
            show("a new conversation\n")
        elif line:
            try:
                talk.ask(line, show)
                show("\n")
            except ValueError as error:
                show(f"{shown(error)}\n")


class Follows(Protocol):
    """An engine that tells the tokens of a response as it draws them."""

    def follow(self, prompt: Prompt, sampling: Sampling, told: Callable[[list[int]], object]) -> Completion:
        """One response."""
        ...


@dataclass
class Conversation:
    """A model, and what was said."""

    engine: Follows
    processor: Processor
    sampling: Sampling
    longest: int | None
    """Tokens that the model was made for; None where it does not say."""
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what was said."""
        self.messages = [Message(role="system", content=self.system)] if self.system else []

    def ask(self, text: str, show: Callable[[str], object]) -> str:
        """The response to a message; `show` gets its text piece by piece, safe for a terminal. ValueError, and nothing is kept, if there is
        no room for it."""
        messages = [*self.messages, Message(role="user", content=text)]
        prompt = self.processor.prompt(Record("chat", messages, None, "chat"))
        room = None if self.longest is None else self.longest - len(prompt.token_ids)
        if room is not None and room < 1:
            raise ValueError(
                f"the conversation has {len(prompt.token_ids)} tokens, and the model was made for {self.longest}. Begin again: {NEW}"
            )
        told = Shown(self.processor, show)
        most = self.sampling.max_tokens if room is None else min(room, self.sampling.max_tokens)
        completion = self.engine.follow(prompt, self._drawn(most), told)
        answer = told.end(completion.token_ids)
        self.messages = [*messages, Message(role="assistant", content=answer)]
        return answer

    def _drawn(self, most: int) -> Sampling:
        """The sampling, with another seed for each response."""
        return replace(self.sampling, max_tokens=most, seed=self.sampling.seed + len(self.messages))


@dataclass
class Shown:
    """Text of growing tokens, given on piece by piece; a character whose bytes are not all there waits for them."""

    processor: Processor
    show: Callable[[str], object]
    told: str = ""

    def __call__(self, tokens: list[int]) -> None:
        """Shows what is new."""
        text = self.processor.text(tokens)
        if not text.endswith("�") and text.startswith(self.told):
            self._tell(text)

    def end(self, tokens: list[int]) -> str:
        """Shows the rest, and gives the whole text."""
        text = self.processor.text(tokens)
        if text.startswith(self.told):
            self._tell(text)
        return text

    def _tell(self, text: str) -> None:
        new = text[len(self.told) :]
        if new:
            self.show(shown(new))
        self.told = text
