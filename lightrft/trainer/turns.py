"""Turn after turn: the policy speaks, its environment replies, and the same response goes on.

A conversation is one response: what the policy sampled (mask True) with the replies between (mask False), as tokens that only grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

from jinja2 import TemplateError

from lightrft.config import EnvironmentConfig
from lightrft.engines.base import Engine, Joint, Keeping
from lightrft.environments.base import Reply
from lightrft.environments.episodes import EnvironmentFailedError, Episodes, Failed
from lightrft.media.parts import described
from lightrft.models.processor import Processor
from lightrft.models.turns import TurnTemplate
from lightrft.trainer.responses import continued, extend
from lightrft.trainer.talk import Talk
from lightrft.types import OPENING, Completion, Message, Prompt, Record, Sampling, Trajectory
from lightrft.utils.seeding import derive_seed

Generate = Callable[[Sequence[Prompt], Sampling], list[list[Completion]]]
"""Asks the engine, and looks whether it gave what it was asked for."""
SEEDS = 2**31
"""Seeds that gymnasium takes lie below."""


class _ElsewhereError(Exception):
    """Another rank that shares this one's engine has failed."""


class _PastError(Exception):
    """An environment asks with a past that its conversation cannot have."""


@dataclass
class Turns:
    """How the responses of a run go on after their first turn. Holds no conversation between two rollouts."""

    episodes: Episodes
    template: TurnTemplate
    config: EnvironmentConfig
    max_prompt_tokens: int
    """Most tokens of a prompt with what its environment says first."""
    counts: dict[str, float] = field(default_factory=dict)
    """What happened since it was last asked: environment/NAME -> number, on this rank."""

    def apart(self, on_failure: Literal["raise", "drop"] | None = None) -> Turns:
        """These environments with counts of their own, for responses that are not learned from; `on_failure` where that differs."""
        config = self.config if on_failure is None else replace(self.config, on_failure=on_failure)
        return replace(self, config=config, counts={})

    def counted(self) -> dict[str, float]:
        """The counts, which begin anew."""
        counts, self.counts = self.counts, {}
        return counts

    @contextmanager
    def conversations(self, engine: Engine, sampling: Sampling) -> Iterator[Conversations]:
        """Inside, there are environments for responses of this engine, `sampling.n` to each prompt."""
        found = Conversations(self, engine, sampling)
        try:
            with engine.keeping() if isinstance(engine, Keeping) else nullcontext():
                yield found
        except _ElsewhereError:
            pass  # the ranks of a rollout meet at its end (World.independent), where that failure is raised on all of them
        finally:
            self.episodes.end(found.open)

    def count(self, name: str, number: float = 1.0) -> None:
        """Adds to environment/NAME."""
        name = f"environment/{name}"
        self.counts[name] = self.counts.get(name, 0.0) + number


class Conversations:
    """The conversations of one rollout, from the environments' first words to the last turn."""

    def __init__(self, turns: Turns, engine: Engine, sampling: Sampling) -> None:
        self.open: set[int] = set()
        """Episodes that were begun and are not over."""
        self._turns, self._engine, self._sampling = turns, engine, sampling
        self._begun: list[list[Talk]] = []

    @property
    def most(self) -> int:
        """Most tokens of one turn."""
        return min(self._sampling.max_tokens, self._turns.config.turn_tokens or self._sampling.max_tokens)

    def begin(self, prompts: Sequence[Prompt], first_group: int) -> list[Prompt]:
        """An environment for each response; the prompts with what it says first.

        Those of a group begin with the same seed, and so with the same words.
        """
        n, asked = self._sampling.n, list[Prompt]()
        seeds = [self._seed(prompt, place, first_group) for place, prompt in enumerate(prompts)]
        wanted = [(seed, _row(prompt)) for seed, prompt in zip(seeds, prompts, strict=True) for _ in range(n)]
        with self._together():
            found = self._reset(wanted)
            for place, (seed, prompt) in enumerate(zip(seeds, prompts, strict=True)):
                begun = found[place * n : (place + 1) * n]
                asked.append(
                    self._asked(prompt, seed, [reply for _, reply in begun if isinstance(reply, Reply)])
                )
                self._begun.append([Talk(seed, *one) for one in begun])
        return asked

    def _seed(self, prompt: Prompt, place: int, first_group: int) -> int:
        """What fixes the episodes of a group: drawn from the rollout's seed, or that of the siblings who were asked before."""
        sampling = self._sampling
        group = first_group + sampling.first_index + place * sampling.index_stride
        drawn = derive_seed("environment", sampling.seed, prompt.id, group) % SEEDS
        return drawn if prompt.episode is None else prompt.episode

    def go_on(self, groups: Sequence[Sequence[Trajectory]], generate: Generate, processor: Processor) -> None:
        """Takes the responses, which have had their first turn, to their ends; in place."""
        with self._together():
            going = self._answered(self._spoken_first(groups))
        # Ranks that share an engine ask it equally often, if only for nothing.
        while self._any(bool(going)):
            room = [min(self.most, self._sampling.max_tokens - len(talk.row)) for talk in going]
            asked = [continued(talk.row, most) for talk, most in zip(going, room, strict=True)]
            completions = generate(asked, replace(self._sampling, max_tokens=self.most))
            for talk, (completion,) in zip(going, completions, strict=True):
                extend(talk.row, completion, processor, turn=len(talk.row))
            with self._together():
                going = self._answered(going)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Inside, a rank is by itself. Where it fails, the others that share its engine know before any of them asks that again, and
        stop: they would wait for it in vain."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self._any(failure is not None):
            raise failure or _ElsewhereError

    def _any(self, here: bool) -> bool:
        """Whether a rank of the engine says so."""
        return self._engine.any(here) if isinstance(self._engine, Joint) else here

    def _spoken_first(self, groups: Sequence[Sequence[Trajectory]]) -> list[Talk]:
        """The conversations that have had their first turn; those that had no environment are marked as failed."""
        spoken = []
        for group, talks in zip(groups, self._begun, strict=True):
            for t, talk in zip(group, talks, strict=True):
                talk.open(t)
                if isinstance(talk.begun, Failed):
                    self._give_up(t, talk.begun.reason)
                else:
                    spoken.append(talk)
        return spoken

    def _answered(self, spoken: Sequence[Talk]) -> list[Talk]:
        """Lets the environments reply to these turns; those that the policy is to go on with."""
        for talk in spoken:
            talk.note_turn()
        episodes, most = self._turns.episodes, self._sampling.max_tokens
        said = [(talk.episode, talk.t.answer, talk.t.finish == "length") for talk in spoken]
        going, failed, cut = [], [], []
        start = time.perf_counter()
        replies = episodes.step(said)
        self._turns.count("seconds", time.perf_counter() - start)
        for talk, reply in zip(spoken, replies, strict=True):
            if isinstance(reply, Failed):
                failed.append((talk, reply))
                continue
            try:
                goes_on = self._replied(talk, reply, most)
            except _PastError as error:
                episodes.end([talk.episode])  # nothing has failed there
                failed.append((talk, Failed(str(error))))
                continue
            if goes_on:
                going.append(talk)
            elif not reply.done:
                cut.append(talk)
        for talk, last in zip(cut, episodes.finish([talk.episode for talk in cut]), strict=True):
            if isinstance(last, Failed):
                failed.append((talk, last))
            else:
                talk.t.step_rewards[-1] += last.reward
                self.open.discard(talk.episode)
        return going + self._again(failed)

    def _replied(self, talk: Talk, reply: Reply, most: int) -> bool:
        """Adds what was replied to the conversation; whether it goes on. _PastError for a past that it cannot have."""
        t, config = talk.t, self._turns.config
        t.step_rewards.append(reply.reward)
        for name, number in reply.counts.items():
            self._turns.count(name, number)
        if reply.done:
            self.open.discard(talk.episode)
            return False
        if talk.turns >= config.max_turns:
            t.finish = "turns"
            return False
        is_new = reply.past is not None and self._turned(talk, reply, reply.past)
        if self._add(talk.row, reply, most):
            self._turns.count("forks", is_new)
            return True
        if is_new:  # nothing is said in it
            talk.drop_row()
        t.finish = "length"
        return False

    def _turned(self, talk: Talk, reply: Reply, past: tuple[int, int]) -> bool:
        """Turns to the past that a reply stands behind; whether it is the beginning of a new row."""
        if not self._turns.config.forks:
            raise _PastError(
                "it asks with another past than its conversation has. Let it ask with all that was said, as it was said, and new messages behind, or "
                "set environment.forks=true to learn from each past in a row of its own"
            )
        if not past[1] and reply.messages:
            raise _PastError(
                "info['past'] puts messages right behind the prompt, whose tokens are there already; behind it only the policy may speak"
            )
        try:
            return talk.turn_to(*past)
        except ValueError as error:
            raise _PastError(f"info['past'] is {past}, and {error}") from None

    def _add(self, row: Trajectory, reply: Reply, most: int) -> bool:
        """Adds a reply to a row; False, and nothing is added, where no room is left for a turn."""
        if not row.said:  # the prompt is asked again
            return True
        template, most_of_reply = self._turns.template, self._turns.config.reply_tokens
        messages = [{**m, "content": template.cut(m["content"], most_of_reply)} for m in reply.messages]
        messages = messages or [{"role": "", "content": ""}]
        tokens = template.between([*row.prompt.messages, *row.said[:-1]], messages)
        if row.token_ids and tokens[:1] == row.token_ids[-1:]:
            tokens = tokens[1:]  # the policy has ended its turn itself
        if len(row) + len(tokens) >= most:
            return False
        row.token_ids += tokens
        row.mask += [False] * len(tokens)
        row.behavior += [0.0] * len(tokens)
        row.said += template.messages(messages)
        return True

    def _again(self, failed: Sequence[tuple[Talk, Failed]]) -> list[Talk]:
        """Begins conversations anew whose environment failed, with fresh ones; those that may not are marked as failed.

        The same random numbers fix what the policy says, so that nothing is left of the failure where the environment replies
        as before.
        """
        anew = []
        for talk, reply in failed:
            self.open.discard(talk.episode)
            talk.failures += bool(reply.reason)
            if talk.failures <= self._turns.config.retries:
                anew.append(talk)
            else:
                self._give_up(talk.t, reply.reason)
        if not anew:
            return []
        self._turns.count("restarted", len(anew))
        found = self._reset([(talk.seed, _row(talk.t.prompt)) for talk in anew])
        for talk, (episode, begun) in zip(list(anew), found, strict=True):
            t = talk.t
            if isinstance(begun, Reply) and self._opened(t.prompt, begun) != t.prompt.messages:
                begun = Failed("it begins otherwise with the same seed, and its prompt is written already")
            if isinstance(begun, Failed):
                self._give_up(t, begun.reason)
                anew.remove(talk)
                continue
            t.token_ids, t.mask, t.behavior, t.said, t.step_rewards, t.forks = [], [], [], [], [], []
            t.experts = t.support = None
            self._turns.count("forks", -len(talk.ends[1:]))
            talk.open(t)
            talk.episode = episode
        return anew

    def _give_up(self, t: Trajectory, reason: str) -> None:
        config = self._turns.config
        if config.on_failure == "raise":
            raise EnvironmentFailedError(self._told(t.prompt.id, reason))
        self._turns.count("failed")
        t.failed = reason

    def _told(self, prompt: str, reason: str) -> str:
        return (
            f"environment '{self._turns.episodes.spec.name}' failed {self._turns.config.retries + 1} times in a conversation "
            f"(environment.retries={self._turns.config.retries}): {reason}\n  the prompt: {prompt}\n"
            "  Fix the environment, or set environment.on_failure=drop to leave such responses out (they are counted)."
        )

    def _reset(self, wanted: Sequence[tuple[int, dict[str, object]]]) -> list[tuple[int, Reply | Failed]]:
        """Episodes begun for each (seed, row), tried as often as environment.retries allows."""
        episodes, found = self._turns.episodes, dict[int, tuple[int, Reply | Failed]]()
        failures = [0] * len(wanted)
        while missing := [place for place in range(len(wanted)) if place not in found]:
            for place, (episode, reply) in zip(
                missing, episodes.begin([wanted[place] for place in missing]), strict=True
            ):
                failures[place] += isinstance(reply, Failed)
                if isinstance(reply, Reply):
                    self.open.add(episode)
                if isinstance(reply, Reply) or failures[place] > self._turns.config.retries:
                    found[place] = episode, reply
        return [found[place] for place in range(len(wanted))]

    def _opened(self, prompt: Prompt, reply: Reply) -> list[Message]:
        """The messages of a prompt whose environment begins with this."""
        if not reply.messages:
            return _messages_of_row(prompt)
        return self._turns.template.opening(_kept(prompt, reply), reply.messages)

    def _asked(self, prompt: Prompt, seed: int, begun: Sequence[Reply]) -> Prompt:
        """The prompt with what its environments say first; one that was begun before has it.

        EnvironmentFailedError if they begin differently, or if the prompt gets too long.
        """
        found = [(self._opened(prompt, reply), reply.tools) for reply in begun]
        told_before = prompt.episode is not None and any(messages != prompt.messages for messages, _ in found)
        if told_before or any(one != found[0] for one in found):
            raise EnvironmentFailedError(
                f"environment '{self._turns.episodes.spec.name}' began the episodes of one group differently ({prompt.id}, seed "
                f"{seed}), so their responses answer no common prompt. Let reset draw from its seed alone."
            )
        if prompt.episode is not None or not begun or not (begun[0].messages or begun[0].tools):
            return replace(prompt, episode=seed)
        (messages, tools), template = found[0], self._turns.template
        record = Record(prompt.id, messages, prompt.target, prompt.source)
        try:
            asked = template.processor.open(
                template.prompt(record, _said_first(prompt, messages, begun[0]), tools)
            )
        except TemplateError as error:
            raise EnvironmentFailedError(
                f"{prompt.id}: the chat template refuses what environment '{self._turns.episodes.spec.name}' says first ({error})."
            ) from None
        if len(asked.token_ids) > self._turns.max_prompt_tokens:
            raise EnvironmentFailedError(
                f"{prompt.id}: the prompt with what environment '{self._turns.episodes.spec.name}' says first has {len(asked.token_ids)} "
                f"tokens, tasks.max_prompt_tokens={self._turns.max_prompt_tokens}. Raise that."
            )
        return replace(asked, episode=seed, row=prompt.messages, columns=prompt.columns)


def _said_first(prompt: Prompt, messages: Sequence[Message], reply: Reply) -> int:
    """How many of these messages, the last ones, hold words of an environment that begins with this reply."""
    row = _kept(prompt, reply)
    kept = next((n for n, (own, one) in enumerate(zip(row, messages, strict=False)) if own != one), len(row))
    return len(messages) - kept


def _messages_of_row(prompt: Prompt) -> list[Message]:
    return prompt.messages if prompt.row is None else prompt.row


def _asked_of_row(prompt: Prompt) -> list[Message]:
    """Messages that a row has of its own."""
    return [m for m in _messages_of_row(prompt) if m["content"] != OPENING]


def _kept(prompt: Prompt, reply: Reply) -> list[Message]:
    """Messages of a row that stand before what its environment says first."""
    return [] if reply.whole_prompt else _asked_of_row(prompt)


def _row(prompt: Prompt) -> dict[str, object]:
    """What an environment is told of the row."""
    return {
        "id": prompt.id,
        "messages": described(_asked_of_row(prompt)),
        "target": prompt.target,
        "source": prompt.source,
    }
