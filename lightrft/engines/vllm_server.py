"""vLLM as a server, one or several, wherever they are: questions over its OpenAI-compatible API, weights straight to its workers.

Start them with `lightrft serve`: they need vLLM's development mode and vllm_worker.py in their workers. Every request that fails is
asked again, of another server where there is one; what has been answered is kept. A server that does not hold the weights of the
last sync (it was started again, or another run uses it) is not asked.
"""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import RolloutConfig, ServerConfig
from lightrft.config.addresses import secret
from lightrft.engines import transport as wire
from lightrft.engines.base import NONE, EngineDiedError, EngineError, Progress
from lightrft.engines.buckets import buckets
from lightrft.engines.external import (
    NEVER,
    EngineRequest,
    WeightNames,
    ends,
    engine_requests,
    refuse,
    same_tokens,
)
from lightrft.engines.vllm_program import clip_url, picture_url, sound_url
from lightrft.models.families import placeholders
from lightrft.models.logprobs import causal_lm
from lightrft.models.processor import Processor
from lightrft.parallel.world import World
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Finish, Prompt, Sampling

log = logging.getLogger("lightrft")
CACHES = ("prefix", "encoder")
"""What servers keep of questions and of pictures, which old weights have made."""
MOST_MISSED = 3
"""Syncs in a row that do not get straight to a server's workers before that is not tried any more."""
FAILURES = (OSError, http.client.HTTPException, json.JSONDecodeError)
"""What may go better at another time or place; a refused request (HTTP 4xx) is a ValueError."""


class VllmServerEngine:
    """An Engine. All processes of a run share the servers; the first one gives them the weights."""

    def __init__(self, module: nn.Module, processor: Processor, config: RolloutConfig) -> None:
        """`module`: for its names of weights. ValueError for what the servers cannot do, or if one does not answer."""
        refuse(config)
        if not config.server.urls:
            raise ValueError(
                "rollout.engine=vllm_server without rollout.server.urls. Start a server with `lightrft serve LAYERS...` and name it, "
                "e.g. --rollout.server.urls http://localhost:8000"
            )
        self.weight_version = NONE
        self._config, self._stop_ids, self._names = config.server, processor.stop_ids, WeightNames.of(module)
        self._reader, self._never = processor.media, placeholders(causal_lm(module).config)
        self._servers = [Server(url.rstrip("/"), config.server) for url in config.server.urls]
        for server in self._servers:
            server.wait()
        self._run = World.current().gather(uuid.uuid4().hex)[0]
        self._syncs = 0
        self._answered: dict[Any, dict[str, Any]] = {}
        """What had been answered when the servers failed."""

    @property
    def _mark(self) -> str:
        return f"{self._run}-{self._syncs}"

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Answers to each prompt; those that came before a server died are not asked for again."""
        questions = engine_requests(prompts, sampling, self._reader)
        keys = [(self.weight_version, sampling, one.seed, one.n, tuple(one.token_ids)) for one in questions]
        replies = {n: self._answered[key] for n, key in enumerate(keys) if key in self._answered}
        servers = self._holding()
        wanted = [n for n in range(len(questions)) if n not in replies]
        try:
            for n, reply in self._ask_all(
                {n: partial(self._body, questions[n], sampling) for n in wanted}, servers
            ):
                replies[n] = reply
                if progress is not None:
                    progress(sum(questions[n].n for n in replies), sum(map(_tokens, replies.values())))
            servers = self._holding(servers)
        except EngineDiedError:
            self._answered = {keys[n]: reply for n, reply in replies.items()}
            raise
        self._answered = {}
        for n, (prompt, one) in enumerate(zip(prompts, questions, strict=True)):
            if one.media is not None:
                same_tokens(prompt, one, replies[n]["prompt_token_ids"])
        return [self._completions(replies[n], one) for n, one in enumerate(questions)]

    def _holding(self, expected: Sequence[Server] = ()) -> list[Server]:
        """The servers that hold the weights of the last sync. EngineDiedError if there is none, or if one of `expected` does not."""
        marks = {server: server.mark() for server in expected or self._servers}
        found = [server for server, mark in marks.items() if mark == self._mark]
        lost = [server.url for server in marks if server not in found]
        if lost:
            log.warning("%s: not there, or with other weights than those of the last sync", ", ".join(lost))
        if not found or (expected and lost):
            raise EngineDiedError(
                f"no server holds the present weights ({', '.join(lost)} of rollout.server.urls). Was it started again?",
                self._restart,
            )
        return found

    def _ask_all(
        self, bodies: dict[int, Callable[[], dict[str, Any]]], servers: Sequence[Server]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and reply of each, as they come. If one fails for good, those under way are waited for before that is raised."""
        pool = ThreadPoolExecutor(max_workers=self._config.requests)
        died: EngineDiedError | None = None
        try:
            under_way: dict[Future[dict[str, Any]], int] = {
                pool.submit(self._ask, body, [*servers[n % len(servers) :], *servers[: n % len(servers)]]): n
                for n, body in bodies.items()
            }
            for future in as_completed(under_way):
                try:
                    yield under_way[future], future.result()
                except CancelledError:
                    continue
                except EngineDiedError as error:
                    died = error
                    for waiting in under_way:
                        waiting.cancel()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if died is not None:
            raise died

    def _ask(self, make: Callable[[], dict[str, Any]], servers: Sequence[Server]) -> dict[str, Any]:
        """One request, to the first server, or to the next if that fails. It is written down now: with media it takes much memory."""
        body = make()
        for attempt in range(self._config.retries + 1):
            server = servers[attempt % len(servers)]
            try:
                path = "/v1/completions" if "prompt" in body else "/inference/v1/generate"
                return server.post(path, {"model": server.model, **body})
            except FAILURES as error:
                failure = f"{server.url}: {error or type(error).__name__}"
                log.warning("a request failed (%s), attempt %d", failure, attempt + 1)
        raise EngineDiedError(
            f"a request failed {self._config.retries + 1} times, at last at {failure}", self._restart
        )

    def _restart(self) -> None:
        """Waits until the servers are there again; whoever supervises them starts them."""
        for server in self._servers:
            server.wait()

    def _body(self, one: EngineRequest, sampling: Sampling) -> dict[str, Any]:
        """The OpenAI-compatible API takes no media with tokens, vLLM's own does."""
        if one.media is None:
            return {"prompt": one.token_ids, "return_token_ids": True, **self._drawing(one, sampling)}
        assert self._reader is not None
        media = {
            "image_url": [picture_url(image) for image in one.media.images],
            "video_url": [clip_url(clip) for clip in one.media.videos],
            "audio_url": [sound_url(sound, self._reader.rate) for sound in one.media.audios],
        }
        return {
            "token_ids": one.unexpanded_token_ids,
            "content_parts": [{"type": kind, "url": url} for kind, urls in media.items() for url in urls],
            "return_token_ids": True,
            "sampling_params": self._drawing(one, sampling),
        }

    def _drawing(self, one: EngineRequest, sampling: Sampling) -> dict[str, Any]:
        return {
            "n": one.n,
            "max_tokens": one.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": one.seed,
            "logprobs": 0,
            "ignore_eos": True,  # what ends an answer is told below, as to vLLM in this process
            "stop_token_ids": ends(sampling, self._stop_ids),
            "stop": None if sampling.ignore_eos else list(sampling.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logit_bias": {str(token): NEVER for token in self._never} or None,
        }

    def _completions(self, reply: dict[str, Any], one: EngineRequest) -> list[Completion]:
        found = []
        for choice in sorted(reply["choices"], key=lambda choice: choice["index"]):
            finish: Finish = "stop" if choice["finish_reason"] == "stop" else "length"
            tokens, given = choice["token_ids"], choice["logprobs"]
            logprobs = (
                [token["logprob"] for token in given["content"]]
                if "content" in given
                else given["token_logprobs"]
            )
            found.append(
                Completion(tokens, logprobs, finish, self.weight_version, one.seed + choice["index"])
            )
        return found

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """A bucket goes to all servers at the same time; one that fails is left out until the next sync."""
        world, failed = World.current(), dict[Server, str]()
        self._syncs += 1
        failure: Exception | None = None
        if world.is_first:
            self._tell(failed, Server.begin)
        try:
            for bucket in buckets(self._names.for_checkpoint(weights), self._config.bucket_mib * 2**20):
                if world.is_first:  # the others take part in gathering them
                    self._tell(failed, partial(Server.give, bucket=bucket))
        except ValueError as error:
            failure = error
        if world.is_first and failure is None:
            self._tell(failed, lambda server: server.call("lightrft_finish", self._mark))
            for kept in CACHES:
                self._tell(failed, partial(Server.post, path=f"/reset_{kept}_cache", body={}))
        with world.independent():
            if failure is not None:
                raise failure
            if len(failed) == len(self._servers):
                raise EngineError(
                    f"none of rollout.server.urls={self._config.urls} took the new weights: {'; '.join(failed.values())}"
                )

    def _tell(self, failed: dict[Server, str], message: Callable[[Server], Any]) -> None:
        """Sends it to all servers that have not failed yet."""
        servers = [server for server in self._servers if server not in failed]
        with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
            sent = {server: pool.submit(message, server) for server in servers}
        for server, future in sent.items():
            if (error := future.exception()) is not None:
                failed[server] = f"{server.url} does not take weights: {error or type(error).__name__}"
                log.warning(failed[server])

    def parts(self) -> dict[str, Resident]:
        """Nothing of it is on this device."""
        return {}


class Server:
    """One of them."""

    def __init__(self, url: str, config: ServerConfig) -> None:
        self.url, self._config = url, config
        self.model = ""
        self._doors: list[wire.Address] = []
        """Where its workers wait for weights; empty: they go through HTTP."""
        self._missed = 0
        """How many syncs in a row did not get to the workers that way."""
        self._headers = {"Content-Type": "application/json"}
        if config.key:
            self._headers["Authorization"] = f"Bearer {secret('rollout.server.key', config.key)}"

    def wait(self) -> None:
        """Until it answers. ValueError if it does not in time, or if it cannot take weights."""
        end = time.monotonic() + self._config.wait_seconds
        while True:
            try:
                self.model = self._send("/v1/models", None, 5)["data"][0]["id"]
                self.call("lightrft_which")
                return
            except FAILURES as error:
                if time.monotonic() > end:
                    raise ValueError(
                        f"rollout.server.urls: {self.url} did not answer within rollout.server.wait_seconds={self._config.wait_seconds:g} "
                        f"({error or type(error).__name__}). Start it with `lightrft serve LAYERS...`, or mend the address."
                    ) from None
                time.sleep(0.5)
            except ValueError as error:
                raise ValueError(
                    f"rollout.server.urls: {self.url} answers, but takes no weights ({error}). Start it with `lightrft serve LAYERS...`."
                ) from None

    def mark(self) -> str | None:
        """The id of the weight sync this server holds; None if it does not answer."""
        try:
            return str(self.call("lightrft_which")[0])
        except (*FAILURES, ValueError):
            return None

    def call(self, method: str, *args: str) -> list[Any]:
        """Runs a method of vllm_worker.py in its workers."""
        found: list[Any] = self.post("/collective_rpc", {"method": method, "args": list(args)})["results"]
        return found

    def begin(self) -> None:
        """New weights are about to come; finds out which way."""
        host = str(urllib.parse.urlsplit(self.url).hostname)
        doors = [wire.Address.of(host, told) for told in self.call("lightrft_begin")]
        if self._missed == MOST_MISSED:
            return
        self._doors = doors
        closed = [str(door.port) for door in doors if not door.reachable()]
        if closed:
            self._through_http(f"ports {', '.join(closed)} are not to be reached from here")

    def _through_http(self, reason: str) -> None:
        """From now on until new weights begin to come, and for good after some such syncs in a row."""
        self._doors = []
        self._missed += 1
        if self._missed in (1, MOST_MISSED):
            log.warning(
                "%s: its workers are not reached (%s), so weights go through HTTP, many times slower%s",
                self.url,
                reason,
                ", from now on" * (self._missed == MOST_MISSED),
            )

    def give(self, bucket: wire.Bucket) -> None:
        """Loads weights; no copy of the bucket is made on this side."""
        if self._doors:
            reason = self._send_weights(bucket)
            if reason:
                self._through_http(reason)
            else:
                self._missed = 0
        if not self._doors:
            self._post_weights(bucket, self._config.timeout_seconds)

    def _send_weights(self, bucket: wire.Bucket) -> str:
        """Straight to the workers; why that did not go, if it did not."""
        seconds, unwanted = self._config.timeout_seconds, threading.Event()
        if len(self._doors) > 1:  # copied from the device once for all
            bucket = {name: tensor.detach().cpu() for name, tensor in bucket.items()}
        with ThreadPoolExecutor(max_workers=len(self._doors)) as pool:
            sending = [pool.submit(door.send, bucket, seconds, unwanted) for door in self._doors]
            try:
                told = self.call("lightrft_receive", f"{seconds:g}")
            finally:
                unwanted.set()
        failed = [sent.exception() for sent in sending]
        return "; ".join(str(reason) for reason in (*failed, *told) if reason)

    def _post_weights(self, bucket: wire.Bucket, seconds: float) -> None:
        before, after = b'{"method": "lightrft_take", "args": ["', b'"]}'
        start = wire.header(bucket)
        size = len(before) + -(-wire.size(start, bucket) // 3) * 4 + len(after)
        body = itertools.chain([before], wire.encoded(wire.pieces(start, bucket.values())), [after])
        self._send("/collective_rpc", body, seconds, {"Content-Length": str(size)})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What it replies. One of FAILURES if it does not; ValueError if it refuses."""
        return self._send(path, json.dumps(body).encode(), self._config.timeout_seconds)

    def _send(
        self, path: str, data: Any, seconds: float, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, data, {**self._headers, **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            told = error.read().decode("utf-8", "replace")[:500]
            if error.code < 500:
                raise ValueError(f"HTTP {error.code}: {told}") from None
            raise OSError(f"HTTP {error.code}: {told}") from None
        found: dict[str, Any] = json.loads(text) if text else {"results": []}
        return found


def _tokens(reply: dict[str, Any]) -> int:
    return sum(len(choice["token_ids"]) for choice in reply["choices"])
