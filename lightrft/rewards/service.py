"""Rewards over HTTP: the server behind `lightrft serve-rewards`. JSON only, nothing from the wire is run, fetched or logged.

Requests of all clients are gathered for a moment and judged together, as one step's responses are.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lightrft.types import Message, Prompt, Trajectory

log = logging.getLogger("lightrft")
Judge = Callable[[Sequence[Trajectory]], Mapping[str, Sequence[float | None]]]
"""Responses -> reward name -> a number for each of them, None where the reward failed."""
MOST_BYTES = 16 * 2**20
MOST_ANSWERS = 1024
MOST_WAITING = 64
"""Requests that may wait for their turn; further ones are told to come again."""
MOST_CONNECTIONS = 256
READ_SECONDS = 20.0
"""Time in which a request must have come, header and body."""
FINISHES = ("stop", "length", "turns")
ROLES = ("system", "user", "assistant", "tool", "developer")


class BadRequestError(Exception):
    """What a client must change, and the status that says so."""

    def __init__(self, told: str, status: int = 400) -> None:
        super().__init__(told)
        self.status = status


@dataclass
class Job:
    """One request's responses, and where their rewards are waited for."""

    answers: list[Trajectory]
    result: Future[dict[str, list[float | None]]] = field(default_factory=Future)


@dataclass(frozen=True)
class Tasks:
    """The tasks whose rewards are served."""

    names: tuple[str, ...]
    others: str = ""
    """The one of them as which responses of all other tasks are judged; empty: they are refused."""

    def judged_as(self, source: Any) -> str:
        """The task whose rewards a response gets; empty for none."""
        return source if isinstance(source, str) and source in self.names else self.others


class Batcher:
    """Judges the requests of all clients together, in the thread that calls `run`: nobody else calls the judge."""

    def __init__(self, judge: Judge, batch_seconds: float) -> None:
        self._judge, self._seconds = judge, batch_seconds
        self._jobs: queue.Queue[Job | None] = queue.Queue(MOST_WAITING)
        self.passes = 0
        """How often the judge was called."""

    def put(self, answers: list[Trajectory]) -> Future[dict[str, list[float | None]]]:
        """The rewards to come. BadRequestError if too many wait already."""
        job = Job(answers)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BadRequestError(f"{MOST_WAITING} requests wait already", 429) from None
        return job.result

    def close(self) -> None:
        """Lets `run` return once it has judged what waits."""
        self._jobs.put(None)

    def run(self) -> None:
        """Judges until `close` is called."""
        while (first := self._jobs.get()) is not None:
            jobs, last = [first], False
            end = time.monotonic() + self._seconds
            while not last and (left := end - time.monotonic()) > 0:
                try:
                    job = self._jobs.get(timeout=left)
                except queue.Empty:
                    break
                last = job is None
                jobs += [] if job is None else [job]
            self._judge_all(jobs)
            if last:
                return

    def _judge_all(self, jobs: Sequence[Job]) -> None:
        self.passes += 1
        group = 0
        for job in jobs:  # groups of two requests are two, whatever numbers they have
            numbers = {t.group: place for place, t in enumerate(job.answers)}
            for t in job.answers:
                t.group = group + numbers[t.group]
            group += len(job.answers)
        try:
            found = self._judge([t for job in jobs for t in job.answers])
        except Exception:
            log.exception("the rewards of %d responses failed", group)
            for job in jobs:
                job.result.set_exception(RuntimeError("the rewards failed; the server's log says why"))
            return
        start = 0
        for job in jobs:
            end = start + len(job.answers)
            job.result.set_result({name: list(values[start:end]) for name, values in found.items()})
            start = end


class RewardServer(ThreadingHTTPServer):
    """Answers POST /rewards, POST /get_reward (OpenRLHF's form, if it gives one reward) and GET /health."""

    daemon_threads = True
    request_queue_size = 128
    _places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def __init__(
        self,
        address: tuple[str, int],
        batcher: Batcher,
        tasks: Tasks,
        *,
        key: str = "",
        timeout: float = 300.0,
    ) -> None:
        """`timeout`: seconds that a request may wait for its rewards."""
        super().__init__(address, Handler)
        self.batcher, self.tasks, self.key, self.reward_seconds = batcher, tasks, key, timeout

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread, of which there are not more than MOST_CONNECTIONS; a connection beyond those is closed."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # as socketserver calls it
        """One line: a connection that broke is the client's affair."""
        log.info("a connection from %s broke", client_address[0])


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: RewardServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lightrft", ""
    timeout = READ_SECONDS

    def handle_one_request(self) -> None:
        """Reads and answers a request; a sender that takes longer than READ_SECONDS for one is cut off, however it dawdles."""
        self._clock = threading.Timer(READ_SECONDS, self._cut)
        self._clock.daemon = True
        self._clock.start()
        try:
            super().handle_one_request()
        finally:
            self._clock.cancel()

    def _cut(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """GET /health."""
        if self.path == "/health":
            self._reply(200, {"status": "ok"})
        else:
            self._reply(404, {"error": "there is no such path"})

    def do_POST(self) -> None:
        """POST /rewards and /get_reward."""
        try:
            self._check_key()
            body = self._body()
            read = {"/rewards": read_answers, "/get_reward": read_openrlhf}.get(self.path)
            if read is None:
                raise BadRequestError("there is no such path", 404)
            answers = read(body, self.server.tasks)
            found = self.server.batcher.put(answers).result(self.server.reward_seconds)
            self._reply(200, openrlhf_reply(found) if self.path == "/get_reward" else {"rewards": found})
        except BadRequestError as error:
            self.close_connection = True  # what is left of the body is not read
            self._reply(error.status, {"error": str(error)})
        except TimeoutError:
            self.close_connection = True
            self._reply(503, {"error": "it took too long"})
        except RuntimeError as error:
            self._reply(500, {"error": str(error)})

    def _check_key(self) -> None:
        if not self.server.key:
            return
        given = self.headers.get_all("Authorization") or []
        expected = f"Bearer {self.server.key}".encode()
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("latin-1", "replace"), expected):
            raise BadRequestError("the key is missing or wrong", 401)

    def _body(self) -> Any:
        """The JSON of the request, read within READ_SECONDS."""
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") or not lengths:
            raise BadRequestError("give the length of the body", 411)
        if len(lengths) != 1 or not lengths[0].isascii() or not lengths[0].isdigit():
            raise BadRequestError("the length of the body is no number")
        size = int(lengths[0][:12])
        if size > MOST_BYTES:
            raise BadRequestError(f"at most {MOST_BYTES} bytes", 413)
        found = bytearray()
        while len(found) < size:
            piece = self.rfile.read1(size - len(found))
            if not piece:
                raise BadRequestError("the body ended too early")
            found += piece
        self._clock.cancel()
        return parsed(bytes(found))

    def _reply(self, status: int, body: Mapping[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 429:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # as BaseHTTPRequestHandler calls it
        """Nothing: what clients send is not for logs."""


def parsed(text: bytes) -> Any:
    """JSON whose numbers are finite and whose texts are texts. BadRequestError for anything else."""

    def finite(word: str) -> float:
        if not math.isfinite(number := float(word)):
            raise ValueError(f"{word} is no finite number")
        return number

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    try:
        found = json.loads(text.decode(), parse_float=finite, parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"the body is no JSON that is read here: {str(error)[:200] or type(error).__name__}"
        ) from None
    return found


def read_answers(body: Any, tasks: Tasks) -> list[Trajectory]:
    """The responses of {"answers": [...]}, see rewards/remote.py: as_json. BadRequestError naming what is wrong."""
    found = body.get("answers") if isinstance(body, dict) else None
    if not isinstance(found, list) or len(found) > MOST_ANSWERS:
        raise BadRequestError(f'expected {{"answers": [...]}} with at most {MOST_ANSWERS} of them')
    return [_answer(one, place, tasks) for place, one in enumerate(found)]


def _answer(one: Any, place: int, tasks: Tasks) -> Trajectory:
    def need(condition: bool, told: str) -> None:
        if not condition:
            raise BadRequestError(f"answers[{place}]: {told}")

    need(isinstance(one, dict), "expected an object")
    messages, answer, tokens = one.get("messages"), one.get("answer"), one.get("token_ids", [])
    said, worth, replied = one.get("said", []), one.get("step_rewards", []), one.get("replied", 0)
    need(
        isinstance(messages, list) and all(map(_is_message, messages)),
        "messages: expected a list of {role, content}",
    )
    need(isinstance(answer, str), "answer: expected a text")
    need(isinstance(said, list) and all(map(_is_message, said)), "said: expected a list of {role, content}")
    need(
        isinstance(worth, list) and all(type(one) in (int, float) for one in worth),
        "step_rewards: expected numbers",
    )
    need(
        isinstance(tokens, list) and all(type(token) is int for token in tokens),
        "token_ids: expected whole numbers",
    )
    need(
        type(replied) is int and 0 <= replied <= len(tokens),
        "replied: expected how many of token_ids are replies",
    )
    group, finish = one.get("group", place), one.get("finish", "stop")
    need(type(group) is int, "group: expected a whole number")
    need(finish in FINISHES, f"finish: expected {', '.join(FINISHES)}")
    source = tasks.judged_as(one.get("source"))
    need(
        bool(source), f"source: {one.get('source')!r:.80} is none of the tasks here: {', '.join(tasks.names)}"
    )
    prompt = Prompt(str(one.get("id", place)), [], messages, one.get("target"), source)
    mask = [True] * (len(tokens) - replied) + [False] * replied  # which of them they are is not told
    none = [0.0] * len(tokens)
    return Trajectory(prompt, group, tokens, mask, none, finish, answer, said=said, step_rewards=worth)


def _is_message(message: Any) -> bool:
    """Whether it is a message of text; media would be files of this machine, or addresses that it should fetch."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    content = message.get("content")
    if isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def read_openrlhf(body: Any, tasks: Tasks) -> list[Trajectory]:
    """The responses of OpenRLHF's form: each query begins with its prompt."""
    queries = _texts(body, "query")
    prompts, labels = _texts(body, "prompts") or [""] * len(queries), body.get("labels")
    labels = [None] * len(queries) if labels is None else labels
    if not isinstance(labels, list) or len({len(queries), len(prompts), len(labels)}) != 1:
        raise BadRequestError("expected query, prompts and labels: lists of one length")
    if not all(query.startswith(prompt) for query, prompt in zip(queries, prompts, strict=True)):
        raise BadRequestError("each query must begin with its prompt")
    found = [
        {"messages": [Message(role="user", content=prompt)], "answer": query[len(prompt) :], "target": label}
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    return read_answers({"answers": found}, tasks)


def _texts(body: Any, name: str) -> list[str]:
    found = body.get(name) if isinstance(body, dict) else None
    if found is None and name != "query":
        return []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadRequestError(f"{name}: expected a list of texts")
    return found


def openrlhf_reply(found: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """OpenRLHF's form of the rewards. BadRequestError if there are several."""
    if len(found) != 1:
        raise BadRequestError(f"this form has one reward, and here are {', '.join(found)}; ask /rewards")
    values = next(iter(found.values()))
    return {"rewards": values, "scores": values, "extra_logs": {}}
