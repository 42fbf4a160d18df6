"""A server that speaks as a vLLM server with our receiver does, over the native engine: for what goes wrong on the way."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from safetensors.torch import load

from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.engines.transport import WeightListener
from lightrft.models.attention import ATTENTION
from lightrft.testing import tiny_model, tiny_processor
from lightrft.types import Prompt, Sampling


class StandIn(ThreadingHTTPServer):
    """`trouble(path, body)` may raise an HTTP status, wait, or do nothing, before each request is served."""

    daemon_threads = True

    def __init__(self, trouble=lambda path, body: None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble, self.asked, self.mark, self.key = trouble, 0, "", ""
        self.turn, self.door = threading.Lock(), WeightListener()
        self.processor = tiny_processor()
        module = tiny_model("llama", attention=ATTENTION)
        self.engine = NativeEngine(module, self.processor.stop_ids, self.processor.text, NativeEngineConfig())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if path == "/collective_rpc":
            return {"results": [getattr(self, body["method"])(*body.get("args", []))]}
        return {"choices": self.complete(body)} if path == "/v1/completions" else {}

    def complete(self, body):
        tokens = body["prompt"]
        if isinstance(tokens, str):
            tokens = self.processor.tokenizer.encode(tokens, add_special_tokens=False)
        prompt = Prompt(id="asked", token_ids=tokens, messages=[], target=None, source="check")
        sampling = Sampling(
            n=body["n"],
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            stop=tuple(body["stop"] or ()),
            stop_token_ids=tuple(body.get("stop_token_ids", ())),
            ignore_eos=not (body["stop"] or body.get("stop_token_ids")),
            seed=body["seed"],
        )
        with self.turn:
            self.asked += 1
            (answers,) = self.engine.generate([prompt], sampling)
        return [
            {
                "index": n,
                "text": self.processor.tokenizer.decode(answer.token_ids),
                "token_ids": answer.token_ids,
                "logprobs": {"token_logprobs": answer.logprobs},
                "finish_reason": answer.finish,
            }
            for n, answer in enumerate(answers)
        ]

    def lightrft_begin(self):
        self.mark = ""
        return self.door.tell()

    def lightrft_receive(self, seconds):
        try:
            bucket = self.door.receive(float(seconds))
        except OSError as error:
            return str(error)
        self.engine.load_weights(bucket.items())
        return ""

    def lightrft_take(self, bucket):
        self.engine.load_weights(load(base64.b64decode(bucket)).items())

    def lightrft_finish(self, mark):
        self.mark = mark

    def lightrft_which(self):
        return self.mark


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size) or b"{}")
        status, told = 200, {}
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status = 401
        else:
            try:
                self.server.trouble(self.path, body)
                told = self.server.answer(self.path, body)
            except TroubleError as trouble:
                status = trouble.args[0]
        text = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


class TroubleError(Exception):
    """An HTTP status instead of an answer."""


@contextmanager
def standing_in(*troubles):
    servers = [StandIn(trouble) for trouble in troubles]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield servers
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def healthy(path, body):
    """No trouble."""


def slow(seconds):
    """Questions take so long."""
    return lambda path, body: time.sleep(seconds) if path == "/v1/completions" else None
