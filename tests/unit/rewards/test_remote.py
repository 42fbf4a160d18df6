"""Rewards over HTTP: what a server gives is what this machine would give, or a named failure; hostile clients cost time and nothing else."""

import http.client
import json
import math
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lightrft.build.reward_models import model_rewards
from lightrft.commands.address import Address
from lightrft.commands.serve_rewards import ANY_TASK, bound, judged, rewards_by_task, serve_rewards
from lightrft.config import Config, RemoteConfig, RewardConfig, layers
from lightrft.rewards import remote, service
from lightrft.rewards.base import RewardRunner, stripped
from lightrft.rewards.models import Output
from lightrft.rewards.remote import RemoteReward
from lightrft.rewards.requests import Tasks
from lightrft.rewards.service import Batcher, RewardServer
from lightrft.types import Prompt, Trajectory
from lightrft.workers.pool import Failure

KEY = "REWARD_KEY_OF_A_TEST"
TALKED = f"{Path(__file__).parent / 'failing_rewards.py'}:talked"


def responses(count, source=ANY_TASK):
    """Groups of four, the targets of which are numbers; every third response is right."""
    prompts = [
        Prompt(f"q{n}", [], [{"role": "user", "content": f"{n}?"}], str(n), source)
        for n in range(-(-count // 4))
    ]
    return [
        Trajectory(
            prompts[n // 4],
            n // 4,
            [5] * (n % 7),
            [True] * (n % 7),
            [0.0] * (n % 7),
            "stop",
            answer=f"It is {n // 4 if n % 3 == 0 else -1}.",
        )
        for n in range(count)
    ]


@contextmanager
def serving(
    rewards=None, batch_seconds=0.0, key="", delay=0.0, runner=None, before=lambda _batcher, _answers: None
):
    """A real server in threads of this process; its address, and the server. `before` is called with what is to be judged."""
    runner = runner or RewardRunner(
        {ANY_TASK: rewards or {"number": 1.0}}, RewardConfig(workers=0, on_failure="drop")
    )

    def judge(answers):
        time.sleep(delay)
        before(batcher, answers)
        return judged(runner, answers)

    batcher = Batcher(judge, batch_seconds)
    working = threading.Thread(target=batcher.run)
    server = RewardServer(("127.0.0.1", 0), batcher, Tasks((ANY_TASK,), ANY_TASK), key=key)
    listening = threading.Thread(target=lambda: server.serve_forever(0.05))
    working.start()
    listening.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()
        batcher.close()
        working.join()
        listening.join()
        runner.close()


def asked(urls, trajectories, **settings):
    config = RemoteConfig(urls={"far": urls}, **settings)
    return RemoteReward("far", config)([stripped(t) for t in trajectories])


def local(trajectories):
    with RewardRunner({ANY_TASK: {"number": 1.0}}, RewardConfig(workers=0)) as judge:
        return [t.reward for t in judge(trajectories).kept]


def test_two_servers_give_what_this_machine_gives():
    with serving() as (one, _), serving() as (other, _):
        found = asked(f"{one}, {other}", responses(300), batch=16)
    assert found == local(responses(300))
    assert 0 < sum(found) < 300


def test_what_a_dead_server_does_not_give_the_other_one_does(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with serving() as (one, _), serving() as (other, server):
        threading.Timer(0.1, server.socket.close).start()
        found = asked(f"{one}, {other}", responses(300), batch=8, requests=2)
    assert found == local(responses(300))


def test_without_any_server_each_response_has_a_named_failure_in_bounded_time(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        found = asked(nobody, responses(8), batch=4)
    assert all(isinstance(one, Failure) and "no server gave it in 3 attempts" in one.reason for one in found)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        found = asked(
            f"http://127.0.0.1:{silent.getsockname()[1]}", responses(4), timeout_seconds=0.3, retries=1
        )
        assert time.monotonic() - start < 5
    assert all("timed out" in one.reason for one in found)


def test_a_failed_reward_over_there_is_a_failure_here_and_no_zero(tmp_path):
    (tmp_path / "picky.py").write_text(
        "def picky(answer):\n    return float('nan') if '-1' in answer else 1.0\n"
    )
    with serving({f"{tmp_path}/picky.py:picky": 1.0}) as (url, _):
        found = asked(url, responses(12))
    assert [one for one in found if not isinstance(one, Failure)] == [1.0] * 4
    assert "the server's reward failed on it" in next(one for one in found if isinstance(one, Failure)).reason


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (float("nan"), "the target nan cannot be written as JSON without a change"),
        ("2\ud800", "refused it: status 400.*surrogate"),
    ],
)
def test_what_one_prompt_holds_costs_the_others_no_rewards(target, told):
    sent = responses(20)
    bad = replace(sent[8].prompt, target=target)
    sent[8:12] = [replace(t, prompt=bad) for t in sent[8:12]]
    with serving() as (url, server):
        found = asked(url, sent)
        assert 0 < server.batcher.passes <= 4  # in halves, not one by one
    right = local(responses(20))
    assert found[:8] + found[12:] == right[:8] + right[12:]
    assert all(isinstance(one, Failure) and re.search(told, one.reason) for one in found[8:12])


def test_in_a_run_the_failures_are_counted_or_stop_it():
    with serving() as (url, _):
        given = {"far": Output(RemoteReward("far", RemoteConfig(urls={"far": url})))}
        with RewardRunner({ANY_TASK: {"far": 2.0}}, RewardConfig(workers=0), given) as judge:
            assert [t.reward for t in judge(responses(8)).kept] == [
                2 * value for value in local(responses(8))
            ]
    settings = RewardConfig(workers=0, on_failure="drop")
    gone = {"far": Output(RemoteReward("far", RemoteConfig(urls={"far": "http://localhost:9"}, retries=0)))}
    with RewardRunner({ANY_TASK: {"far": 1.0}}, settings, gone) as judge:
        assert judge(responses(8)).metrics["counts/failed/far"] == 8
    with (
        RewardRunner({ANY_TASK: {"far": 1.0}}, RewardConfig(workers=0), gone) as judge,
        pytest.raises(RuntimeError, match="no server gave it"),
    ):
        judge(responses(8))


def test_requests_of_many_clients_are_judged_together():
    """The first that came are judged when all others have come, however long that takes: these are judged in one pass then."""
    passes = []

    def wait(batcher, answers):
        passes.append(len(answers))
        until = time.monotonic() + 60
        while sum(passes) // 10 + batcher._jobs.qsize() < 64 and time.monotonic() < until:
            time.sleep(0.01)

    with (
        serving(batch_seconds=0.5, before=wait) as (url, server),
        ThreadPoolExecutor(64) as clients,
    ):
        found = list(clients.map(lambda _: asked(url, responses(10)), range(64)))
        assert server.batcher.passes == len(passes)
    assert found == [local(responses(10))] * 64
    assert sum(passes) == 640
    assert len(passes) <= 2


def test_groups_of_several_clients_stay_apart(tmp_path):
    (tmp_path / "sizes.py").write_text(
        "def sizes(answers):\n    groups = [a.group for a in answers]\n    return [float(groups.count(g)) for g in groups]\n"
    )
    with (
        serving({f"{tmp_path}/sizes.py:sizes": 1.0}, batch_seconds=0.1) as (url, _),
        ThreadPoolExecutor(4) as clients,
    ):
        found = list(clients.map(lambda _: asked(url, responses(8)), range(4)))
    assert found == [[4.0] * 8] * 4


def test_a_conversation_is_judged_there_as_a_whole():
    one = responses(1)[0]
    said = [("assistant", "add"), ("user", "go on"), ("assistant", one.answer)]
    talk = replace(
        one,
        token_ids=[5] * 6,
        mask=[True, False, False, True, True, True],
        behavior=[0.0] * 6,
        finish="turns",
        said=[{"role": role, "content": text} for role, text in said],
        step_rewards=[0.25, -1.0],
    )
    with serving({TALKED: 1.0}) as (url, _):
        found = asked(url, [talk, one])
    assert found == [1006.25, 0.0]


def test_openrlhf_s_form_is_understood_and_spoken():
    with serving() as (url, _):
        found = asked(f"{url}/get_reward", responses(20), protocol="openrlhf")
        reply = post(
            url,
            "/get_reward",
            {"query": ["1?It is 1.", "2?It is 1."], "prompts": ["1?", "2?"], "labels": ["1", "2"]},
        )
    assert found == local(responses(20))
    assert reply == (200, {"rewards": [1.0, 0.0], "scores": [1.0, 0.0], "extra_logs": {}})


def post(url, path, body, headers=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, text, headers or {})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


GOOD = {"answers": [{"messages": [{"role": "user", "content": "1?"}], "answer": "It is 1.", "target": "1"}]}
DEEP = b'{"answers": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (DEEP, "no JSON"),
        (b'{"answers": [NaN]}', "NaN is no JSON"),
        (b'{"answers": [1e999]}', "no finite number"),
        (b'{"answers": ["\\ud800"]}', "no JSON"),
        ([], "expected"),
        ({"answers": [1] * 1025}, "at most 1024"),
        ({"answers": [{"answer": "x"}]}, "answers[0]: messages"),
        ({"answers": [{**GOOD["answers"][0], "answer": 3}]}, "answer: expected a text"),
        ({"answers": [{**GOOD["answers"][0], "token_ids": [True]}]}, "token_ids"),
        ({"answers": [{**GOOD["answers"][0], "finish": "abort"}]}, "finish"),
        ({"answers": [{**GOOD["answers"][0], "said": ["x"]}]}, "said: expected"),
        ({"answers": [{**GOOD["answers"][0], "step_rewards": ["x"]}]}, "step_rewards: expected"),
        ({"answers": [{**GOOD["answers"][0], "replied": 1}]}, "replied: expected"),
        (
            {
                "answers": [
                    {
                        **GOOD["answers"][0],
                        "messages": [
                            {"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}
                        ],
                    }
                ]
            },
            "messages",
        ),
    ],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(body, told):
    with serving() as (url, _):
        status, said = post(url, "/rewards", body)
        assert (status, told in said["error"]) == (400, True), said
        assert post(url, "/rewards", GOOD) == (200, {"rewards": {"number": [1.0]}})


def raw(url, text, wait=2.0):
    """What a server says to bytes as they are; empty if it closes without a word."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as line:
        line.sendall(text)
        return line.recv(200)


def test_dishonest_lengths_are_refused():
    head = b"POST /rewards HTTP/1.1\r\nHost: x\r\n"
    with serving() as (url, _):
        assert b" 411 " in raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        assert b" 411 " in raw(url, head + b"\r\n")
        assert b" 400 " in raw(url, head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")
        assert b" 400 " in raw(url, head + b"Content-Length: -1\r\n\r\n")
        assert b" 413 " in raw(url, head + b"Content-Length: 104857600\r\n\r\n")
        assert b" 413 " in raw(url, head + b"Content-Length: 99999999999999999999999999\r\n\r\n")
        assert post(url, "/rewards", GOOD)[0] == 200


def test_a_sender_that_dawdles_is_cut_off(monkeypatch):
    monkeypatch.setattr(service, "READ_SECONDS", 0.5)
    with serving() as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as line:
            start = time.monotonic()
            try:
                for letter in b"POST /rewards HTTP/1.1\r\n" * 20:
                    line.send(bytes([letter]))
                    time.sleep(0.05)
            except OSError:
                pass
            assert time.monotonic() - start < 4
        assert post(url, "/rewards", GOOD)[0] == 200


def test_a_key_is_asked_for_before_anything_is_read(monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    with serving(key="secret") as (url, _):
        assert post(url, "/rewards", b"{")[0] == 401
        assert post(url, "/rewards", GOOD, {"Authorization": "Bearer secre"})[0] == 401
        assert post(url, "/rewards", GOOD, {"Authorization": "Bearer secret"})[0] == 200
        assert asked(url, responses(4), key=KEY) == local(responses(4))
        monkeypatch.setenv(KEY, "secret\n")  # as files of secrets end
        assert asked(url, responses(4), key=KEY) == local(responses(4))
        assert Address(key=KEY).checked_key() == "secret"
        monkeypatch.setenv(KEY, "wrong")
        found = asked(url, responses(4), key=KEY)
    assert all("refused it: status 401" in one.reason for one in found)


def test_more_requests_than_may_wait_are_told_to_come_again():
    batcher = Batcher(lambda answers: {}, 0.0)  # whose thread does not run
    for _ in range(service.MOST_WAITING):
        batcher.put([])
    with pytest.raises(service.BadRequestError, match="wait already") as error:
        batcher.put([])
    assert error.value.status == 429


@contextmanager
def saying(status, body, headers=()):
    """A server that gives one reply to everything; how often it was asked."""
    calls = []

    class Fixed(service.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802  # as http.server calls it
            calls.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in (("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = service.ThreadingHTTPServer(("127.0.0.1", 0), Fixed)
    threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "told", "times"),
    [
        (200, b'{"rewards": {"far": [1.0]}}', "gave 1 rewards for 2 responses", 1),
        (200, b'{"rewards": {"far": ["1.0", true]}}', "which is no finite number", 1),
        (200, b'{"rewards": {"far": [NaN, 1]}}', "no JSON", 1),
        (200, b'{"rewards": {"a": [1, 1], "b": [1, 1]}}', "it has no reward 'far', but a, b", 1),
        (200, b"[1, 1]", "no JSON object", 1),
        (400, b"no", "status 400: no", 1),
        (302, b"", "status 302", 1),
        (503, b"busy", "in 3 attempts; at last", 3),
        (425, b"", "in 3 attempts; at last", 3),
        (429, b"busy", "in 3 attempts; at last", 3),
    ],
)
def test_a_reply_that_is_none_is_a_named_failure(monkeypatch, status, body, told, times):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    headers = [("Location", "http://localhost:1/elsewhere")] if status == 302 else []
    with saying(status, body, headers) as (url, calls):
        found = asked(url, responses(2))
    assert all(isinstance(one, Failure) and told in one.reason for one in found), found
    assert len(calls) == times


def test_a_reply_without_measure_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(remote, "MOST_REPLY", 1000)
    with saying(200, b" " * 100_000) as (url, _):
        assert all("more than 1000 bytes" in one.reason for one in asked(url, responses(2)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"urls": {"far": "http://node7:8100"}}, "goes unencrypted to another machine"),
        ({"urls": {"far": "node7"}}, "is no address"),
        ({"urls": {"far": "https://me:word@node7"}}, "holds a name, a password or a key"),
        ({"batch": 0}, "remote.batch=0"),
        ({"timeout_seconds": math.inf}, "remote.timeout_seconds=inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        RemoteConfig(**settings)
    assert RemoteConfig(urls={"far": "http://node7:8100"}, plain_http=True).plain_http


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (Address("0.0.0.0"), "without a key"),
        (Address("0.0.0.0", key=KEY), "without a certificate"),
        (Address(key="NOT_THERE_AT_ALL"), "no such environment variable"),
        (Address(certificate="nowhere.pem"), "no such file"),
        (Address(port=70000), "--port 70000: must be from 0 to 65535"),
    ],
)
def test_an_address_that_others_reach_needs_a_key_and_a_certificate(monkeypatch, address, told):
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(ValueError, match=told):
        address.checked_key()
    assert Address("0.0.0.0", key=KEY, plain_http=True).checked_key() == "secret"


def test_a_file_without_a_certificate_and_a_port_that_is_taken_are_told_before_weights_load(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"--certificate \S+cert.pem: no certificate with its private key"):
        Address(certificate=f"{tmp_path}/cert.pem").context()
    assert Address().context() is None
    batcher, tasks = Batcher(lambda answers: {}, 0.0), Tasks((ANY_TASK,), ANY_TASK)
    with bound(Address(port=0), batcher, tasks, "") as server:
        taken = server.server_address[1]
        with pytest.raises(ConnectionRefusedError):  # at once, while weights load
            socket.create_connection(("127.0.0.1", taken), timeout=5)
        server.server_activate()
        socket.create_connection(("127.0.0.1", taken), timeout=5).close()
        with pytest.raises(ValueError, match=f"--port {taken}: nothing can listen there .*in use"):
            bound(Address(port=taken), batcher, tasks, "")


def test_what_a_client_no_longer_waits_for_is_not_judged(monkeypatch):
    """A client that gives up while the request before its own is judged."""
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.05)
    with serving(delay=1.5) as (url, server), ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, url, responses(1))
        time.sleep(0.3)
        (late,) = asked(url, responses(1), timeout_seconds=0.2, retries=0)
        assert "timed out" in late.reason
        assert first.result() == local(responses(1))
    assert server.batcher.passes == 1


@pytest.mark.parametrize("wait", [-1.0, math.inf, math.nan])
def test_requests_are_gathered_for_a_time_that_ends(wait):
    with pytest.raises(ValueError, match="--batch-ms .* must be at least 0 and at most 10000"):
        serve_rewards(Config(), Address(), wait)


def test_tasks_have_their_own_rewards_and_all_others_those_of_the_settings():
    config = layers.load(["--tasks.train", "tiny", "1"], Config)
    assert rewards_by_task(config) == {"tiny": {"same_kind": 1.0}}
    both = replace(config, rewards=replace(config.rewards, functions={"number": 1.0}))
    assert rewards_by_task(both) == {"tiny": {"number": 1.0}, ANY_TASK: {"number": 1.0}}
    with pytest.raises(ValueError, match="there is no reward to serve"):
        rewards_by_task(replace(config, tasks=replace(config.tasks, train={})))


def test_names_that_mean_something_else_are_refused():
    with pytest.raises(ValueError, match="remote.urls has the key 'math', which is a built-in reward"):
        model_rewards(Config(remote=RemoteConfig(urls={"math": "http://localhost:1"})))
    with pytest.raises(ValueError, match="remote.key=NOT_THERE_AT_ALL"):
        model_rewards(Config(remote=RemoteConfig(urls={"far": "http://localhost:1"}, key="NOT_THERE_AT_ALL")))
