"""Weights on their way to another program, as the bytes of a safetensors file that are made while they are sent.

The format: https://github.com/huggingface/safetensors (Format). Through a socket they go as they are, after a word that both sides
know and their number in 8 bytes, and when that has been heard; through HTTP as base64.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import prod
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

GLANCE_SECONDS = 5.0
"""How long a connection may take, or stand still before it is asked whether that has a point."""
WORD_SECONDS = 10.0
"""How long weights that were announced are waited for to begin to come."""
GREETING_SECONDS = 2.0
"""How long somebody who has come to a port may take to say the word."""
HEARD = b"!"
PIECE = 2**20
"""Bytes that are handed on at a time."""
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
         torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
"""Names in safetensors files."""
Bucket = Mapping[str, Tensor]
T = TypeVar("T")


def header(bucket: Bucket) -> bytes:
    """The beginning of the file."""
    entries, end = {}, 0
    for name, tensor in bucket.items():
        place = [end, end + tensor.nbytes]
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        end = place[1]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def pieces(start: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The file, a little at a time; of what is not in host memory one tensor is copied there."""
    yield memoryview(start)
    for tensor in tensors:
        flat = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
        for place in range(0, len(flat), PIECE):
            yield flat[place : place + PIECE]


def size(start: bytes, bucket: Bucket) -> int:
    """Bytes of the file."""
    return len(start) + sum(tensor.nbytes for tensor in bucket.values())


def encoded(parts: Iterable[memoryview]) -> Iterator[bytes]:
    """The base64 of all of them as one."""
    rest = b""
    for part in parts:
        rest += part
        whole = len(rest) - len(rest) % 3
        yield base64.b64encode(rest[:whole])
        rest = rest[whole:]
    yield base64.b64encode(rest)


def unpacked(data: bytearray) -> dict[str, Tensor]:
    """The tensors of a file; they lie in `data`."""
    types = {name: dtype for dtype, name in TYPES.items()}
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        dtype, shape, place = types[entry["dtype"]], entry["shape"], start + entry["data_offsets"][0]
        count = prod(shape)
        flat = (
            torch.frombuffer(data, dtype=dtype, count=count, offset=place)
            if count
            else torch.empty(0, dtype=dtype)
        )
        found[name] = flat.reshape(shape)
    return found


@dataclass(frozen=True)
class Address:
    """Where weights are waited for."""

    host: str
    port: int
    word: str

    @classmethod
    def of(cls, host: str, told: str) -> Address:
        """From what `WeightListener.tell` says."""
        port, word = told.split()
        return cls(host, int(port), word)

    def reachable(self, seconds: float = GLANCE_SECONDS) -> bool:
        """Whether anybody listens there."""
        try:
            socket.create_connection((self.host, self.port), timeout=seconds).close()
        except OSError:
            return False
        return True

    def send(self, bucket: Bucket, seconds: float, unwanted: Event) -> None:
        """OSError if it does not get there in that time, or if another answers; it ends when it is `unwanted`."""
        start, end = header(bucket), time.monotonic() + seconds
        greeting = self.word.encode() + size(start, bucket).to_bytes(8, "little")

        def patiently(act: Callable[[], T], otherwise: T) -> T:
            while not unwanted.is_set():
                try:
                    return act()
                except TimeoutError:
                    if time.monotonic() > end:
                        raise
            return otherwise

        with socket.create_connection((self.host, self.port), timeout=GLANCE_SECONDS) as connection:
            connection.sendall(greeting)
            if patiently(lambda: connection.recv(1), HEARD) != HEARD:
                raise ConnectionError(f"what answers at port {self.port} of {self.host} is no worker.")
            for piece in takewhile(lambda _: not unwanted.is_set(), pieces(start, bucket.values())):
                left = piece
                while left and not unwanted.is_set():
                    left = left[patiently(partial(connection.send, left), len(left)) :]


HOST = "LIGHTRFT_SERVE_HOST"
"""Environment variable with the address at which the workers of a server wait for weights."""


class WeightListener:
    """A port at which weights are waited for, from those who know its word."""

    def __init__(self, host: str = "") -> None:
        """`host`: the address that it is to be reached at; empty: any of this machine's."""
        everywhere = host in ("", "0.0.0.0", "::")
        double = everywhere and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if double or ":" in host else socket.AF_INET
        place = "" if everywhere else host
        self._socket = socket.create_server((place, 0), family=family, dualstack_ipv6=double)
        self._word = ""

    def tell(self) -> str:
        """Port and a new word, for whoever is to send; who knows an old one is not heard any more."""
        self._word = secrets.token_hex(16)
        return f"{self._socket.getsockname()[1]} {self._word}"

    def receive(self, seconds: float) -> dict[str, Tensor]:
        """What is sent next. OSError if nothing whole begins to come in WORD_SECONDS, or not all is there in `seconds`; who does not
        know the word is not heard."""
        start, told = time.monotonic(), "no weights began to come."
        soon, end = start + min(seconds, WORD_SECONDS), start + seconds
        while (left := soon - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                break
            with connection:
                greeting = _read(
                    connection, len(self._word) + 8, time.monotonic() + min(left, GREETING_SECONDS)
                )
                if greeting is None or not hmac.compare_digest(bytes(greeting[:-8]), self._word.encode()):
                    continue
                with suppress(OSError):  # nor does it read then
                    connection.sendall(HEARD)
                data = _read(connection, int.from_bytes(greeting[-8:], "little"), end)
                if data is not None:
                    return unpacked(data)
                told = "the weights broke off."  # another sender may wait behind one that gave up
        raise OSError(told)


def _read(connection: socket.socket, count: int, end: float) -> bytearray | None:
    """Next `count` bytes; None if they have not come by `end`."""
    data = bytearray(count)
    view, place = memoryview(data), 0
    while place < count:
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            got = connection.recv_into(view[place:])
        except OSError:
            return None
        if not got or time.monotonic() > end:
            return None
        place += got
    return data
