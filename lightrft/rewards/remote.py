"""Rewards over HTTP: the client. Failures are those of single responses, never zeros, and nothing waits for ever."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import urldefrag

from lightrft.config import RemoteConfig
from lightrft.config.addresses import may_succeed_later, secret
from lightrft.config.remote import addresses
from lightrft.datasets.judging import conversed
from lightrft.media.sources import STANDARD, Limits, MediaError
from lightrft.rewards.function import Answer
from lightrft.rewards.posting import TooLongError, post
from lightrft.rewards.views import question, response
from lightrft.rewards.wire import Sent, named
from lightrft.utils.finite import finite_number
from lightrft.workers.pool import Failure

MOST_REPLY = 16 * 2**20
"""Bytes of a reply; a longer one is none that was asked for."""
MOST_SENT = 48 * 2**20
"""Characters of the media of one request, less than a server reads."""
OF_CONTENT = (400, 413, 422)
"""Statuses of a request in which something is wrong or too much, which a part of it may not hold."""
FIRST_PAUSE = 0.2
"""Seconds before the first request that is sent again; each further pause is twice as long."""


class RefusedError(Exception):
    """The server's word that this request will never succeed, or a reply that is none."""


class UnfitError(RefusedError):
    """Something in the responses of a request cannot be sent, or is not taken: the others may be judged without it."""


@dataclass(frozen=True)
class RemoteReward:
    """A ModelReward that asks servers."""

    name: str
    config: RemoteConfig
    limits: Limits = STANDARD
    """What may be fetched of media, and how large one may be."""

    def __call__(self, answers: Sequence[Answer]) -> list[float | Failure]:
        """The reward of each response, or why it has none. Takes at most timeout_seconds x (retries + 1), the pauses, and the time to look hosts
        up, for each request."""
        if not answers:
            return []
        parts = _requests(answers, self.config.batch)
        with ThreadPoolExecutor(min(self.config.requests, len(parts))) as pool:
            found = pool.map(self._part, range(len(parts)), parts)
            return [value for part in found for value in part]

    def _part(self, number: int, answers: Sequence[Answer]) -> list[float | Failure]:
        """The rewards of one request's responses, from the first address that gives them."""
        urls = addresses(self.config.urls[self.name])
        told, pause = "", FIRST_PAUSE
        for attempt in range(self.config.retries + 1):
            url = urls[(number + attempt) % len(urls)]
            try:
                return self._ask(url, answers)
            except (MediaError, UnfitError) as error:
                return self._in_halves(number, answers, error)
            except RefusedError as error:
                return [Failure(f"{_bare(url)} refused it: {error}")] * len(answers)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                told = f"{_bare(url)}: {error or type(error).__name__}"
            if attempt < self.config.retries:
                time.sleep(pause)
                pause *= 2
        return [Failure(f"no server gave it in {self.config.retries + 1} attempts; at last {told}.")] * len(
            answers
        )

    def _in_halves(
        self, number: int, answers: Sequence[Answer], error: MediaError | UnfitError
    ) -> list[float | Failure]:
        """The rewards where something in one of these responses, or all of it together, cannot be sent or is not taken: what one prompt holds
        is not to cost the others theirs."""
        groups = _requests(answers, 1)
        if len(groups) == 1:
            told = f"its media cannot be sent: {error}" if isinstance(error, MediaError) else str(error)
            return [Failure(told)] * len(answers)
        half = len(groups) // 2
        return [
            value
            for part in (groups[:half], groups[half:])
            for value in self._part(number, [one for group in part for one in group])
        ]

    def _body(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A request in the form of `lightrft serve-rewards`. MediaError for media that cannot be read, or are too much for one request."""
        if not self.config.send_media:
            return {"answers": [as_json(one, named(one.prompt.messages)) for one in answers]}
        sent = Sent(self.limits)
        body = [as_json(one, sent.messages(one.prompt.messages)) for one in answers]
        if sent.size > MOST_SENT:
            raise MediaError(f"{sent.size} bytes in base64 are more than a request may have ({MOST_SENT}).")
        return {"answers": body, "media": sent.table}

    def _ask(self, url: str, answers: Sequence[Answer]) -> list[float | Failure]:
        address, other = urldefrag(url)
        if self.config.protocol == "openrlhf":
            return _numbers(self._post(address, _openrlhf(answers)).get("rewards"), len(answers))
        reply = self._post(f"{address.rstrip('/')}/rewards", self._body(answers))
        rewards = reply.get("rewards")
        wanted = other or self.name
        if not isinstance(rewards, dict):
            raise RefusedError("its reply has no table of rewards.")
        if wanted not in rewards and (other or len(rewards) != 1):
            raise RefusedError(f"it has no reward '{wanted}', but {', '.join(map(str, rewards)) or 'none'}.")
        return _numbers(rewards[wanted] if wanted in rewards else next(iter(rewards.values())), len(answers))

    def _post(self, url: str, body: Any) -> dict[str, Any]:
        """The reply to a request. RefusedError for one that would fail again, UnfitError where a part of it might not; OSError or
        HTTPException for one that may pass later."""
        headers = {"Content-Type": "application/json"}
        if self.config.key:
            headers["Authorization"] = f"Bearer {secret('remote.key', self.config.key)}"
        text = json.dumps(body).encode()
        try:
            status, said = post(url, text, headers, seconds=self.config.timeout_seconds, most=MOST_REPLY)
        except TooLongError as error:
            raise RefusedError(str(error)) from None
        if not 200 <= status < 300:
            told = f"status {status}: {said.decode(errors='replace')}"
            if may_succeed_later(status):
                raise OSError(told)
            raise UnfitError(f"{url} refused it: {told}") if status in OF_CONTENT else RefusedError(told)
        try:
            found = json.loads(said, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise RefusedError("its reply is no JSON.") from None
        if not isinstance(found, dict):
            raise RefusedError("its reply is no JSON object.")
        return found


def _requests(answers: Sequence[Answer], most: int) -> list[list[Answer]]:
    """At most so many responses together, and whole groups, since a reward may compare siblings; a larger group goes alone."""
    parts: list[list[Answer]] = []
    for _, members in groupby(answers, key=lambda one: one.group):
        group = list(members)
        if parts and len(parts[-1]) + len(group) <= most:
            parts[-1] += group
        else:
            parts.append(group)
    return parts


def as_json(answer: Answer, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A response as `lightrft serve-rewards` reads it, its prompt in these messages."""
    return {
        "id": answer.prompt.id,
        "messages": list(messages),
        "target": _plain(answer.prompt.target),
        "source": answer.prompt.source,
        "group": answer.group,
        "token_ids": list(answer.token_ids),
        "answer": answer.answer,
        "finish": answer.finish,
        **(
            {"said": answer.said, "step_rewards": answer.step_rewards, "replied": answer.replied}
            if answer.said
            else {}
        ),
    }


def _openrlhf(answers: Sequence[Answer]) -> dict[str, Any]:
    prompts = [question(one.prompt.messages) for one in answers]
    return {
        "query": [prompt + conversed(response(one)) for prompt, one in zip(prompts, answers, strict=True)],
        "prompts": prompts,
        "labels": [_plain(one.prompt.target) for one in answers],
    }


def _plain(target: Any) -> Any:
    """A target as JSON can have it; UnfitError for one that JSON would change."""
    try:
        if json.loads(json.dumps(target, allow_nan=False)) == target:
            return target
    except (TypeError, ValueError):
        pass
    raise UnfitError(f"the target {target!r:.80} cannot be written as JSON without a change.")


def _numbers(found: Any, count: int) -> list[float | Failure]:
    """A finite number for each response, null being a failure there. RefusedError for anything else."""
    if not isinstance(found, list) or len(found) != count:
        raise RefusedError(
            f"it gave {len(found) if isinstance(found, list) else 'no list of'} rewards for {count} responses."
        )
    return [_number(value) for value in found]


def _number(value: Any) -> float | Failure:
    if value is None:
        return Failure("the server's reward failed on it; its log says why.")
    number = finite_number(value)
    return Failure(f"the server gave {value!r:.80}, which is no finite number.") if number is None else number


def _no_number(word: str) -> Callable[..., Any]:
    raise ValueError(f"{word} is no JSON")


def _bare(url: str) -> str:
    return urldefrag(url)[0]
