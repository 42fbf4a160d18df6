"""Rewards of servers that answer by halves, too slowly, or with numbers that are none; and what one client's request costs the others."""

import re
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from lightrft.commands.serve_rewards import judged
from lightrft.config import RemoteConfig, RewardConfig
from lightrft.rewards import remote
from lightrft.rewards.base import RewardRunner, stripped
from lightrft.rewards.discreet import without_words
from lightrft.rewards.posting import TooLongError, post
from lightrft.rewards.remote import RemoteReward
from lightrft.rewards.service import Batcher
from lightrft.types import Prompt, Trajectory
from lightrft.workers.pool import Failure

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
REPLY = b'{"rewards": {"far": [0.5, 1.5]}}'
WHOLE = HEAD % len(REPLY) + REPLY


def two_responses():
    prompt = Prompt("q", [], [{"role": "user", "content": "?"}], None, "task")
    return [Trajectory(prompt, 0, [5], [True], [0.0], "stop", answer=text) for text in "ab"]


def asked(*urls, **settings):
    config = RemoteConfig(urls={"far": ",".join(urls)}, **settings)
    return RemoteReward("far", config)([stripped(t) for t in two_responses()])


@contextmanager
def sending(*pieces, pause=0.0, body=None):
    """A server that reads a request and sends these bytes, piece by piece."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(10)

    def answer():
        try:
            while True:
                line, _ = listening.accept()
                with line:
                    read = line.recv(2**16)
                    while body is not None and body not in read:
                        read += line.recv(2**16)
                    for piece in pieces:
                        line.sendall(piece)
                        time.sleep(pause)
        except OSError:
            return

    working = threading.Thread(target=answer, daemon=True)
    working.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def letters(text):
    return [bytes([letter]) for letter in text]


@pytest.mark.parametrize(
    "pieces",
    [
        letters(b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 50),  # a header that never ends
        [HEAD % 1000, *letters(b" " * 900)],  # a body
        [b"HTTP/1.1 500 Oh\r\nContent-Length: 900\r\n\r\n", *letters(b"no" * 400)],  # what went wrong
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *letters(b" " * 900)],  # a body without a length
    ],
)
def test_a_server_that_dawdles_costs_the_time_limit_and_no_more(pieces):
    start = time.monotonic()
    with sending(*pieces, pause=0.05) as url:
        found = asked(url, timeout_seconds=0.5, retries=0)
    assert time.monotonic() - start < 3
    assert all(isinstance(one, Failure) and "timed out" in one.reason for one in found), found


def test_half_a_reply_is_asked_for_again_elsewhere(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with sending(WHOLE[:-9], body=b"}]}") as broken, sending(WHOLE) as sound:
        assert asked(broken, sound) == [0.5, 1.5]
        (first, _) = asked(broken, retries=1)
    assert "no server gave it in 2 attempts" in first.reason
    assert "IncompleteRead" in first.reason


def test_a_whole_number_that_no_float_holds_is_no_reward():
    text = b'{"rewards": {"far": [1%s, 2]}}' % (b"0" * 400)
    with sending(HEAD % len(text) + text) as url:
        far, near = asked(url)
    assert "which is no finite number" in far.reason
    assert near == 2.0


def test_a_reply_is_read_to_its_limit_and_no_redirect_is_followed():
    with sending(WHOLE) as url:
        assert post(url, b"{}", {}, seconds=5, most=len(REPLY)) == (200, REPLY)
        with pytest.raises(TooLongError, match=f"more than {len(REPLY) - 1} bytes"):
            post(url, b"{}", {}, seconds=5, most=len(REPLY) - 1)
    there = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 5\r\n\r\nthere"
    with sending(there) as url:
        assert post(url, b"{}", {}, seconds=5, most=100) == (302, b"there")


def test_the_path_and_the_headers_arrive():
    with sending(WHOLE, body=b"POST /a/b HTTP/1.1\r\n") as url:
        assert post(f"{url}/a/b", b"{}", {"Authorization": "Bearer x"}, seconds=5, most=100)[0] == 200
    with sending(WHOLE, body=b"Authorization: Bearer x\r\n") as url:
        assert post(url, b"{}", {"Authorization": "Bearer x"}, seconds=5, most=100)[0] == 200


@pytest.mark.parametrize("url", ["http://localhost:port", "http://localhost:70000", "http://localhost:0"])
def test_a_port_that_is_none_is_refused_before_anything_is_asked(url):
    with pytest.raises(ValueError, match=r"remote.urls: far=\S+ is no address"):
        RemoteConfig(urls={"far": url})


def test_what_one_client_sends_does_not_cost_the_others_their_rewards():
    calls = []

    def judge(answers):
        calls.append([t.answer for t in answers])
        if any(t.answer == "b" for t in answers):
            raise TypeError("a chat template met what it cannot write")
        return {"far": [float(len(t.answer)) for t in answers]}

    batcher = Batcher(judge, batch_seconds=0.2)
    good, bad = two_responses()
    results = [batcher.put([one]) for one in (good, bad, good)]
    batcher.close()
    batcher.run()
    assert results[0].result(1) == results[2].result(1) == {"far": [1.0]}
    with pytest.raises(RuntimeError, match="the rewards failed; the server's log says why"):
        results[1].result(1)
    assert calls == [["a", "b", "a"], ["a"], ["b"], ["a"]]


SECRET = "the patient's name"


def test_what_clients_send_is_in_no_log_of_a_server_and_where_it_failed_is(tmp_path, caplog):
    (tmp_path / "loud.py").write_text(
        "def loud(answer):\n    if answer == 'nan':\n        return float('nan')\n    raise KeyError(answer + '\\n' + answer)\n"
    )
    settings = RewardConfig(workers=0, on_failure="drop")
    with RewardRunner({"task": {f"{tmp_path}/loud.py:loud": 1.0}}, settings) as runner:
        judge = partial(judged, runner)
        runner.quotes = False
        for text in (SECRET, "nan"):
            assert judge([replace(one, answer=text) for one in two_responses()]) == {"loud": [None, None]}
        batcher = Batcher(lambda answers: refuse(answers), 0.0)
        job = batcher.put([replace(two_responses()[0], answer=SECRET)])
        batcher.close()
        batcher.run()
        assert isinstance(job.exception(1), RuntimeError)
        assert SECRET not in caplog.text
        assert re.search(r"loud' failed: +File (.*\n)*.*loud.py\", line 4, in loud\nKeyError\n", caplog.text)
        assert "loud' failed: it returned nan." in caplog.text
        assert re.search(
            r"the rewards of 1 responses failed: +File (.*\n)*.*in refuse\nTypeError\n", caplog.text
        )
        runner.quotes = True
        judge([replace(two_responses()[0], answer=SECRET)])
        assert SECRET in caplog.text


def refuse(answers):
    raise TypeError(f"cannot write {answers[0].answer}")


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("the judge named no score that judge.score_pattern finds; it said 'the patient'.", "the judge named no score that judge.score_pattern finds; it said"),
        ("its model cannot be asked: there are 900 tokens to read and room for 512.", "its model cannot be asked: there are 900 tokens to read and room for 512."),
        ("Traceback (most recent call last):\nValueError: the patient", "ValueError"),
    ],
)  # fmt: skip
def test_a_reason_is_told_up_to_its_first_quotation(reason, told):
    assert without_words(reason) == told
