"""Turn after turn: the policy speaks, its environment replies, and the same response goes on.

A conversation is one response: what the policy sampled (mask True) with the replies between (mask False), as tokens that only grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lightrft.config import EnvironmentConfig
from lightrft.engines.base import Engine, Joint
from lightrft.environments.base import Reply
from lightrft.environments.episodes import EnvironmentFailedError, Episodes, Failed
from lightrft.media.parts import described
from lightrft.models.processor import Processor
from lightrft.models.turns import TurnTemplate
from lightrft.trainer.responses import continued, extend
from lightrft.types import OPENING, Completion, Message, Prompt, Record, Sampling, Trajectory
from lightrft.utils.seeding import derive_seed

Generate = Callable[[Sequence[Prompt], Sampling], list[list[Completion]]]
"""Asks the engine, and looks whether it gave what it was asked for."""
SEEDS = 2**31
"""Seeds that gymnasium takes lie below."""


@dataclass(eq=False)
class _Talk:
    """One conversation on its way."""

    seed: int
    episode: int
    begun: Reply | Failed
    """What its environment said first."""
    t: Trajectory = field(init=False)
    """The response, once it has had its first turn."""
    failures: int = 0
    turns: int = 0
    """How often the policy has spoken."""


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

    def counted(self) -> dict[str, float]:
        """The counts, which begin anew."""
        counts, self.counts = self.counts, {}
        return counts

    @contextmanager
    def conversations(
        self, prompts: Sequence[Prompt], sampling: Sampling, first_group: int
    ) -> Iterator[Conversations]:
        """Inside, there is an environment for each response to these prompts; `sampling.n` to each."""
        found = Conversations(self, sampling)
        try:
            found.begin(prompts, first_group)
            yield found
        finally:
            self.episodes.end(found.open)

    def count(self, name: str, number: float = 1.0) -> None:
        """Adds to environment/NAME."""
        name = f"environment/{name}"
        self.counts[name] = self.counts.get(name, 0.0) + number


class Conversations:
    """The conversations of one rollout, from the environments' first words to the last turn."""

    def __init__(self, turns: Turns, sampling: Sampling) -> None:
        self.prompts: list[Prompt] = []
        """Prompts with what their environments say first."""
        self.open: set[int] = set()
        """Episodes that were begun and are not over."""
        self._turns, self._sampling = turns, sampling
        self._begun: list[list[_Talk]] = []

    @property
    def most(self) -> int:
        """Most tokens of one turn."""
        return min(self._sampling.max_tokens, self._turns.config.turn_tokens or self._sampling.max_tokens)

    def begin(self, prompts: Sequence[Prompt], first_group: int) -> None:
        """An environment for each response. Those of a group begin with the same seed, and so with the same words."""
        n, sampling = self._sampling.n, self._sampling
        seeds = []
        for place, prompt in enumerate(prompts):
            group = first_group + sampling.first_index + place * sampling.index_stride
            seed = derive_seed("environment", prompt.id, group) % SEEDS
            seeds.append(seed if prompt.episode is None else prompt.episode)
        wanted = [(seed, _row(prompt)) for seed, prompt in zip(seeds, prompts, strict=True) for _ in range(n)]
        found = self._reset(wanted)
        for place, (seed, prompt) in enumerate(zip(seeds, prompts, strict=True)):
            begun = found[place * n : (place + 1) * n]
            said = [reply.messages for _, reply in begun if isinstance(reply, Reply)]
            if any(messages != said[0] for messages in said):
                raise EnvironmentFailedError(
                    f"environment '{self._turns.episodes.spec.name}' began the episodes of one group differently ({prompt.id}, seed "
                    f"{seed}), so their responses answer no common prompt. Let reset draw from its seed alone."
                )
            self.prompts.append(self._asked(prompt, said[0] if said else (), seed))
            self._begun.append([_Talk(seed, *one) for one in begun])

    def go_on(
        self, engine: Engine, groups: Sequence[Sequence[Trajectory]], generate: Generate, processor: Processor
    ) -> None:
        """Takes the responses, which have had their first turn, to their ends; in place."""
        spoken = []
        for group, talks in zip(groups, self._begun, strict=True):
            for t, talk in zip(group, talks, strict=True):
                talk.t = t
                if isinstance(talk.begun, Failed):
                    self._give_up(t, talk.begun.reason)
                else:
                    spoken.append(talk)
        while True:
            for talk in spoken:
                talk.turns += 1
            going = self._answered(spoken)
            # Ranks that share an engine ask it equally often, if only for nothing.
            if not (engine.any(bool(going)) if isinstance(engine, Joint) else going):
                return
            room = [min(self.most, self._sampling.max_tokens - len(talk.t)) for talk in going]
            asked = [continued(talk.t, most) for talk, most in zip(going, room, strict=True)]
            completions = generate(asked, replace(self._sampling, max_tokens=self.most))
            for talk, (completion,) in zip(going, completions, strict=True):
                extend(talk.t, completion, processor, turn=len(talk.t))
            spoken = going

    def _answered(self, spoken: Sequence[_Talk]) -> list[_Talk]:
        """Lets the environments reply to these turns; those that the policy is to go on with."""
        episodes, most = self._turns.episodes, self._sampling.max_tokens
        said = [(talk.episode, talk.t.answer, talk.t.finish == "length") for talk in spoken]
        going, failed, cut = [], [], []
        start = time.perf_counter()
        replies = episodes.step(said)
        self._turns.count("seconds", time.perf_counter() - start)
        for talk, reply in zip(spoken, replies, strict=True):
            if isinstance(reply, Failed):
                failed.append((talk, reply))
            elif self._replied(talk, reply, most):
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

    def _replied(self, talk: _Talk, reply: Reply, most: int) -> bool:
        """Adds the turn and its reply to the conversation; whether it goes on."""
        t, config = talk.t, self._turns.config
        before = [*t.prompt.messages, *t.said]
        t.said.append(Message(role="assistant", content=t.answer))
        t.step_rewards.append(reply.reward)
        for name, number in reply.counts.items():
            self._turns.count(name, number)
        if reply.done:
            self.open.discard(talk.episode)
            return False
        if talk.turns >= config.max_turns:
            t.finish = "turns"
            return False
        template = self._turns.template
        messages = [{**m, "content": template.cut(m["content"], config.reply_tokens)} for m in reply.messages]
        messages = messages or [{"role": "", "content": ""}]
        tokens = template.between(before, messages)
        if t.token_ids and tokens[:1] == t.token_ids[-1:]:
            tokens = tokens[1:]  # the policy has ended its turn itself
        if len(t) + len(tokens) >= most:
            t.finish = "length"
            return False
        t.token_ids += tokens
        t.mask += [False] * len(tokens)
        t.behavior += [0.0] * len(tokens)
        t.said += [template.message(m) for m in messages]
        return True

    def _again(self, failed: Sequence[tuple[_Talk, Failed]]) -> list[_Talk]:
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
            if isinstance(begun, Failed):
                self._give_up(t, begun.reason)
                anew.remove(talk)
                continue
            t.token_ids, t.mask, t.behavior, t.said, t.step_rewards = [], [], [], [], []
            talk.episode, talk.turns = episode, 0
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

    def _asked(self, prompt: Prompt, said: Sequence[dict[str, str]], seed: int) -> Prompt:
        """The prompt with what its environment says first, as further messages of the user; one that was begun before has it."""
        if not said or prompt.episode is not None:
            return replace(prompt, episode=seed)
        first = [Message(role=m["role"] or "user", content=m["content"]) for m in said]
        messages = [m for m in prompt.messages if m["content"] != OPENING] + first
        template = self._turns.template
        record = Record(prompt.id, messages, prompt.target, prompt.source)
        asked = template.processor.open(template.prompt(record, len(first)))
        if len(asked.token_ids) > self._turns.max_prompt_tokens:
            raise EnvironmentFailedError(
                f"{prompt.id}: the prompt with what environment '{self._turns.episodes.spec.name}' says first has {len(asked.token_ids)} "
                f"tokens, tasks.max_prompt_tokens={self._turns.max_prompt_tokens}. Raise that."
            )
        return replace(asked, episode=seed)


def _row(prompt: Prompt) -> dict[str, object]:
    """What an environment is told of the row."""
    return {
        "id": prompt.id,
        "messages": described(prompt.messages),
        "target": prompt.target,
        "source": prompt.source,
    }
