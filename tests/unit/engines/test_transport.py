"""Weights on their way to another program."""

import base64
import contextlib
import socket
import threading
import time

import pytest
import torch
from safetensors.torch import load

from lightrft.engines import transport as wire


def a_bucket(dtype=torch.float32):
    """Sizes that do not come out even, a transposed tensor, a single number and an empty tensor."""
    return {
        "a.weight": torch.randn(3, 5).to(dtype).T,
        "flags": torch.tensor([True, False, True]),
        "b": torch.randn(1).to(dtype),
        "c": torch.zeros(0, dtype=dtype),
        "d": torch.tensor(2.0).to(dtype),
    }


def alike(found, bucket):
    assert found.keys() == bucket.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in bucket.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in bucket.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_sent_is_a_safetensors_file_however_it_is_cut(dtype, monkeypatch):
    monkeypatch.setattr(wire, "PIECE", 7)
    bucket = a_bucket(dtype)
    start = wire.header(bucket)
    data = b"".join(wire.pieces(start, bucket.values()))
    assert len(data) == wire.size(start, bucket)
    alike(load(data), bucket)
    alike(wire.unpacked(bytearray(data)), bucket)
    text = b"".join(wire.encoded(wire.pieces(start, bucket.values())))
    assert base64.b64decode(text) == data


def test_a_door_takes_what_is_sent_by_who_knows_its_word():
    door, bucket, got = wire.WeightListener(), a_bucket(), []
    address = wire.Address.of("127.0.0.1", door.tell())
    assert address.reachable()
    waiting = threading.Thread(target=lambda: got.append(door.receive(20)))
    waiting.start()
    stranger = wire.Address(address.host, address.port, "0" * 32)
    with contextlib.suppress(ConnectionError):  # it is hung up on
        stranger.send({"evil": torch.ones(1)}, 5, threading.Event())
    socket.create_connection((address.host, address.port)).close()
    address.send(bucket, 5, threading.Event())
    waiting.join(20)
    alike(got[0], bucket)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", "0.0.0.0"])
def test_a_door_is_open_where_its_server_is(host):
    door, got = wire.WeightListener(host), []
    address = wire.Address.of("127.0.0.1", door.tell())
    waiting = threading.Thread(target=lambda: got.append(door.receive(20)))
    waiting.start()
    address.send(a_bucket(), 5, threading.Event())
    waiting.join(20)
    assert len(got) == 1
    elsewhere = wire.Address.of("127.0.0.2", door.tell())  # this machine too, by another address
    assert elsewhere.reachable() == (host in ("", "0.0.0.0"))


def test_what_breaks_off_or_does_not_come_is_an_error(monkeypatch):
    door = wire.WeightListener()
    with pytest.raises(OSError, match="timed out|no weights began to come"):
        door.receive(0.1)
    monkeypatch.setattr(wire, "WORD_SECONDS", 0.1)
    with pytest.raises(OSError, match="timed out|no weights began to come"):
        door.receive(3600)
    address = wire.Address.of("127.0.0.1", door.tell())
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(address.word.encode() + (1000).to_bytes(8, "little") + b"only this")
    with pytest.raises(OSError, match="the weights broke off"):
        door.receive(5)


def test_who_gave_up_or_says_nothing_does_not_stand_in_the_way_of_who_comes_then(monkeypatch):
    monkeypatch.setattr(wire, "GLANCE_SECONDS", 0.05)
    monkeypatch.setattr(wire, "GREETING_SECONDS", 0.2)
    door, got = wire.WeightListener(), []
    address = wire.Address.of("127.0.0.1", door.tell())
    with pytest.raises(OSError, match="timed out"):
        address.send(a_bucket(), 0.2, threading.Event())  # nobody listens, and its greeting stays
    silent = socket.create_connection((address.host, address.port))
    waiting = threading.Thread(target=lambda: got.append(door.receive(20)))
    waiting.start()
    bucket = a_bucket()
    address.send(bucket, 5, threading.Event())
    waiting.join(20)
    silent.close()
    alike(got[0], bucket)
    again = wire.Address.of("127.0.0.1", door.tell())
    assert again.word != address.word
    waiting = threading.Thread(target=lambda: got.append(door.receive(20)))
    waiting.start()
    with pytest.raises(ConnectionError):
        address.send({"old": torch.ones(1)}, 5, threading.Event())
    again.send(bucket, 5, threading.Event())
    waiting.join(20)
    alike(got[1], bucket)


def test_sending_ends_when_nobody_wants_it_any_more(monkeypatch):
    monkeypatch.setattr(wire, "GLANCE_SECONDS", 0.05)
    door, unwanted = wire.WeightListener(), threading.Event()
    address = wire.Address.of("127.0.0.1", door.tell())
    much = {"much": torch.zeros(2**26, dtype=torch.uint8)}
    sending = threading.Thread(target=address.send, args=(much, 60, unwanted))
    sending.start()
    time.sleep(0.3)
    assert sending.is_alive(), "nobody reads"
    unwanted.set()
    sending.join(5)
    assert not sending.is_alive()
    with pytest.raises(OSError, match="timed out"):
        address.send(much, 0.2, threading.Event())
