"""Rewards that models give: a generative judge that says a score, a reward model that computes one.

They run in the process itself, with what build/judges.py hands them; the judge of base.py asks each once for all answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError

from jinja2 import TemplateError

from lightrft.config import JudgeConfig
from lightrft.datasets.conversations import end_of_answer
from lightrft.datasets.judging import PAIR, SINGLE, conversed, question, written
from lightrft.datasets.media import shown
from lightrft.media.parts import has_media, readable
from lightrft.models.processor import Processor
from lightrft.models.reward import Conversation, up_to_score
from lightrft.rewards.function import Answer
from lightrft.rewards.table import JUDGE
from lightrft.rewards.views import made, response
from lightrft.types import Completion, Message, Prompt, Record, Sampling
from lightrft.utils.paths import expanded
from lightrft.workers.pool import Failure

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
ModelReward = Callable[[Sequence[Answer]], Sequence[float | Sequence[float] | Failure]]
"""The value of each answer, or one for each output of the model; or why it has none. Called by every rank equally often, also with no
answers."""
Ask = Callable[[Sequence[Prompt], Sampling], list[list[Completion]]]
"""An engine's `generate`."""
REWARD_MODEL = "reward_model"
"""Sections of the settings of models that judge; the first is the name of its reward, too."""


@dataclass(frozen=True)
class Output:
    """One of the numbers that a model gives for each answer. Those with the same `model` are asked for together."""

    model: ModelReward
    place: int = 0
    """Which of its outputs."""
    counted: Callable[[], Mapping[str, float]] = dict
    """What the model counted in its last call, by metric (counts/...)."""
    sees_media: bool = False
    """Whether the model is given pictures, clips and sounds to read; another one is told their names."""

    def of(self, found: float | Sequence[float]) -> float:
        """The number of this output."""
        return found if isinstance(found, int | float) else found[self.place]


class GenerativeJudge:
    """Asks a model for a score in words, as in Zheng et al. 2023 (https://arxiv.org/abs/2306.05685), section 3.1, single answer grading."""

    def __init__(self, ask: Ask, processor: Processor, config: JudgeConfig, longest: int | None) -> None:
        """`longest`: tokens that can be asked; None: without limit."""
        self._ask, self._processor, self._config, self._longest = ask, processor, config, longest
        self._template = judge_template(config)
        self._score = re.compile(config.score_pattern)

    def __call__(self, answers: Sequence[Answer]) -> list[float | Failure]:
        """One score for each answer, or why the judge gave none."""
        c = self._config
        sampling = Sampling(n=c.samples, max_tokens=c.max_tokens, temperature=c.temperature)
        return _asked(
            answers,
            self._prompt,
            lambda prompts: list(map(self._verdict, replies_to(self._ask, prompts, sampling))),
        )

    def _prompt(self, answer: Answer) -> Prompt:
        filling = {"answer": conversed(response(answer)), "target": str(answer.prompt.target)}
        return judge_prompt(self._processor, answer, self._template, filling, self._longest)

    def _verdict(self, replies: Sequence[Completion] | Failure) -> float | Failure:
        """The mean of the scores that are named."""
        if isinstance(replies, Failure):
            return replies
        texts = [self._processor.text(reply.token_ids) for reply in replies]
        named = [_number(found[-1]) for text in texts if (found := self._score.findall(text))]
        shares = [score / self._config.max_score for score in named]
        usable = [share for share in shares if 0 <= share <= 1]
        if not usable:
            told = f"the judge named no score between 0 and judge.max_score={self._config.max_score:g} that judge.score_pattern finds"
            return Failure(f"{told}; it said {texts[0][-300:]!r}.", f"{told}.")
        return sum(usable) / len(usable)


def _number(text: str) -> float:
    """NaN for a text that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def replies_to(
    ask: Ask, prompts: Sequence[Prompt], sampling: Sampling
) -> list[Sequence[Completion] | Failure]:
    """What a judge says to each prompt, asked about all at once. A remote judge that rejects the request is asked prompt by prompt; what
    still fails becomes a `Failure`."""
    try:
        return list(ask(prompts, sampling))
    except HTTPError as error:
        if len(prompts) > 1:
            return [said for prompt in prompts for said in replies_to(ask, [prompt], sampling)]
        told = error.read().decode("utf-8", "replace")[:300]
        kind = f"the judge refused the prompt: HTTP {error.code}"
        return [Failure(f"{kind}: {told}", kind)]
    except (OSError, HTTPException) as error:
        kind = type(error).__name__
        return [
            Failure(f"the judge was not reached: {error or kind}.", f"the judge was not reached: {kind}.")
        ] * len(prompts)


def judge_prompt(
    processor: Processor, answer: Answer, template: str, filling: Mapping[str, str], longest: int | None
) -> Prompt:
    """The filled template as one message to a judge, with the media of the question in the place of {question} where the model reads any.

    ValueError for media that it does not read, and if there are more than `longest` tokens (None: any number).
    """
    asked, reader = answer.prompt.messages, processor.media
    filling = {"question": conversed(asked), **filling}
    if reader is not None:
        filling = {name: reader.without_marks(text) for name, text in filling.items()}
    messages: str | list[Message] = written(template, filling)
    if reader is not None and has_media(asked):
        messages = question(template, asked, filling)
    if isinstance(messages, str):
        messages = [Message(role="user", content=messages)]
    record = Record(f"{answer.prompt.id}, judged", messages, None, "judge")
    prompt = processor.open(processor.prompt(record))
    _check_room(prompt.token_ids, longest, JUDGE)
    return prompt


def judge_template(config: JudgeConfig) -> str:
    """What the judge is asked. ValueError if the file is missing or has no place for what is judged."""
    compares = config.against != "none"
    if not config.template:
        return PAIR if compares else SINGLE
    file = expanded(config.template, "judge.template")
    if not file.is_file():
        raise ValueError(f"judge.template={config.template}: there is no such file.")
    text = file.read_text(encoding="utf-8")
    for place in ("{answer_a}", "{answer_b}") if compares else ("{answer}",):
        if place not in text:
            raise ValueError(
                f"judge.template={config.template}: the file has no place for {place}. Write it there, as judge.against={config.against} "
                "asks."
            )
    return text


SHOWN = 40
"""Tokens at the end of a conversation that `ScalarReward.shown` gives."""


class ScalarReward:
    """Asks a reward model, which computes a number for a question with its answer, or one for each of its outputs.

    A response that is itself a picture, a clip or a sound is the last message of the prompt, or was drawn by the policy; see `datasets.media.shown`.
    """

    def __init__(
        self,
        scores: Callable[[Sequence[Conversation | list[int]]], Sequence[float | Sequence[float]]],
        processor: Processor,
        longest: int | None,
        padding: int | None = None,
        drawn: str = "",
    ) -> None:
        """`drawn`: the view of what responses hold instead of text, of rewards/views.py: MADE; empty: they are text. `scores`: of whole conversations in the reward model's own tokens (models/reward.py), at most `longest` of them; with the media
        beside the tokens where the model reads any. `padding`: the token before which it reads the score (`up_to_score`)."""
        self._scores, self._processor, self._longest, self._padding = scores, processor, longest, padding
        self._drawn = drawn

    @property
    def sees_media(self) -> bool:
        """Whether the model reads more than text."""
        return self._processor.media is not None

    def __call__(self, answers: Sequence[Answer]) -> list[float | Sequence[float] | Failure]:
        """What the reward model computes for each answer, or why there is nothing."""
        opened: dict[int, Prompt] = {}  # media are read once for all answers to a prompt
        return _asked(answers, partial(self._conversation, opened), self._scores)

    def shown(self, answer: Answer) -> str:
        """The end of what the model reads of an answer, »the token« at which it reads the score marked. ValueError and TemplateError as the
        model would fail."""
        found = self._conversation({}, answer)
        tokens = list(found.token_ids if isinstance(found, Conversation) else found)
        end, write = len(up_to_score(tokens, self._padding)), self._processor.tokenizer.decode
        before, at, after = (
            write(part) for part in (tokens[:end][-SHOWN:-1], tokens[end - 1 : end], tokens[end:])
        )
        return f"{'...' * (end > SHOWN)}{before}»{at}«{after}"

    @cached_property
    def _ending(self) -> int | None:
        """The token that ends a response. Looked for at the first truncated one: what a template refuses is a failure of that response."""
        return end_of_answer(self._processor)

    def _conversation(self, opened: dict[int, Prompt], answer: Answer) -> Conversation | list[int]:
        if self.sees_media:
            found = self._of_drawn(answer) if self._drawn else self._with_media(opened, answer)
            _check_room(found.token_ids, self._longest, REWARD_MODEL)
            return found
        asked: list[Message] = [
            {"role": m["role"], "content": readable(m["content"])} for m in answer.prompt.messages
        ]
        tokens = self._tokens(asked, answer)
        _check_room(tokens, self._longest, REWARD_MODEL)
        return tokens

    def _of_drawn(self, answer: Answer) -> Conversation:
        """What was asked, with what was drawn for it. ValueError for a response that holds nothing finite."""
        said = Message(role="assistant", content=[as_source(made(answer, self._drawn), self._drawn)])
        record = Record(answer.prompt.id, shown(answer.prompt.messages, [said]), None, REWARD_MODEL)
        return _read(self._processor.open(self._processor.prompt(record)))

    def _with_media(self, opened: dict[int, Prompt], answer: Answer) -> Conversation:
        messages = answer.prompt.messages
        if has_media(messages[-1:]) and messages[-1]["role"] == "assistant":
            return _read(self._opened(opened, answer, shown(messages[:-1], messages[-1:])))
        return self._after(self._opened(opened, answer, messages), self._tokens(messages, answer))

    def _tokens(self, asked: Sequence[Message], answer: Answer) -> list[int]:
        """The whole conversation, its media unread."""
        tokens = self._processor.tokens([*asked, *response(answer)], answer_next=False)
        if answer.finish == "length" and self._ending in tokens:  # not shown as finished: its turn stays open
            tokens = tokens[: len(tokens) - 1 - tokens[::-1].index(self._ending)]
        return tokens

    def _opened(self, opened: dict[int, Prompt], answer: Answer, messages: Sequence[Message]) -> Prompt:
        """What was asked, with its media. ValueError for media that the model does not read, or that cannot be read."""
        key = id(answer.prompt.messages)
        if key not in opened:
            record = Record(answer.prompt.id, list(messages), None, REWARD_MODEL)
            opened[key] = self._processor.open(self._processor.prompt(record))
        return opened[key]

    def _after(self, prompt: Prompt, tokens: Sequence[int]) -> Conversation:
        """The conversation of a prompt whose media have been read, and of what `tokens` have after it."""
        known = prompt.unexpanded_token_ids or prompt.token_ids
        if tokens[: len(known)] != list(known):
            raise ValueError(
                "its chat template writes the prompt otherwise once a response follows; set reward_model.chat_template"
            )
        return _read(prompt).followed_by(tokens[len(known) :])


def as_source(drawn: Any, view: str) -> dict[str, Any]:
    """A part of a message with what a policy drew: an `image` (H, W, 3), or the frames of a `clip` (F, H, W, 3)."""
    return {"type": "video", "video": list(drawn)} if view == "clip" else {"type": "image", "image": drawn}


def _read(prompt: Prompt) -> Conversation:
    """A prompt as a conversation without response."""
    return Conversation(prompt.token_ids, prompt.positions, prompt.media)


def _asked(
    answers: Sequence[Answer],
    make: Callable[[Answer], T],
    ask: Callable[[Sequence[T]], Sequence[V]],
) -> list[V | Failure]:
    """What `ask` says to all that could be made of the answers, in one call; why not, where it could not."""
    whole = [to_read(make, answer) for answer in answers]
    found = iter(ask([one for one in whole if not isinstance(one, Failure)]))
    return [one if isinstance(one, Failure) else next(found) for one in whole]


def to_read(make: Callable[[U], T], answer: U) -> T | Failure:
    """What a model is to read about an answer, or why it cannot."""
    try:
        return make(answer)
    except (ValueError, TemplateError) as error:  # too long, or refused by the chat template
        kind = type(error).__name__
        return Failure(f"its model cannot be asked: {error or kind}", f"its model cannot be asked: {kind}")


def _check_room(tokens: Sequence[int], longest: int | None, section: str) -> None:
    """ValueError if a model is to read more than it can."""
    if longest is not None and len(tokens) > longest:
        raise ValueError(
            f"there are {len(tokens)} tokens to read and room for {longest}. Lower rollout.max_tokens, take a model for longer texts, or, "
            f"if this one takes them, set {section}.max_length."
        )
