"""Rewards over HTTP: the server behind `lightrft serve-rewards`. JSON only, nothing from the wire is run, fetched or logged.

Requests of all clients are gathered for a moment and judged together, as one step's responses are.
"""

from __future__ import annotations

import hmac
import json
import logging
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lightrft.rewards.discreet import without_words
from lightrft.rewards.requests import (
    BadRequestError,
    Tasks,
    openrlhf_reply,
    parsed,
    read_answers,
    read_openrlhf,
)
from lightrft.types import Trajectory

log = logging.getLogger("lightrft")
Judge = Callable[[Sequence[Trajectory]], Mapping[str, Sequence[float | None]]]
"""Responses -> reward name -> a number for each of them, None where the reward failed."""
MOST_BYTES = 16 * 2**20
MOST_BYTES_WITH_MEDIA = 64 * 2**20
"""Longest request where a reward reads media."""
MOST_READING = 512 * 2**20
"""Bytes of all requests together that are read and judged at a time; who comes then is told to come again."""
MOST_WAITING = 64
"""Requests that may wait for their turn; further ones are told to come again."""
MOST_CONNECTIONS = 256
READ_SECONDS = 20.0
"""Time in which a request must have come, header and body."""


@dataclass
class Job:
    """One request's responses, and where their rewards are waited for."""

    answers: list[Trajectory]
    result: Future[dict[str, list[float | None]]] = field(default_factory=Future)


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
        except Exception as error:
            if len(jobs) > 1:  # what one client sent is not to cost the others their rewards
                log.warning(
                    "%d requests together failed (%s), so each is judged alone",
                    len(jobs),
                    type(error).__name__,
                )
                for job in jobs:
                    self._judge_all([job])
                return
            log.error("the rewards of %d responses failed: %s", group, without_words(traceback.format_exc()))
            jobs[0].result.set_exception(RuntimeError("the rewards failed; the server's log says why"))
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
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`timeout`: seconds that a request may wait for its rewards; `most_bytes`: the longest one."""
        super().__init__(address, Handler)
        self.most_bytes, self._reading, self._count = most_bytes, 0, threading.Lock()
        self.batcher, self.tasks, self.key, self.reward_seconds = batcher, tasks, key, timeout

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        """Inside, a request of this size is held. BadRequestError for one that is too long, or too long beside the others."""
        if size > self.most_bytes:
            raise BadRequestError(f"at most {self.most_bytes} bytes", 413)
        with self._count:
            if self._reading + size > MOST_READING:
                raise BadRequestError(f"{self._reading} bytes are being judged already", 429)
            self._reading += size
        try:
            yield
        finally:
            with self._count:
                self._reading -= size

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
            size = self._size()
            with self.server.room_for(size):
                found = self._judged(size)
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

    def _judged(self, size: int) -> dict[str, list[float | None]]:
        """The rewards that a request of this size asks for."""
        body = self._body(size)
        read = {"/rewards": read_answers, "/get_reward": read_openrlhf}.get(self.path)
        if read is None:
            raise BadRequestError("there is no such path", 404)
        answers = read(body, self.server.tasks)
        del body
        return self.server.batcher.put(answers).result(self.server.reward_seconds)

    def _size(self) -> int:
        """The length of the body, as the header says."""
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") or not lengths:
            raise BadRequestError("give the length of the body", 411)
        if len(lengths) != 1 or not lengths[0].isascii() or not lengths[0].isdigit():
            raise BadRequestError("the length of the body is no number")
        return int(lengths[0][:12])

    def _body(self, size: int) -> Any:
        """The JSON of the request, read within READ_SECONDS."""
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
