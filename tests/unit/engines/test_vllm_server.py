"""vLLM servers that fail, hang, forget and come back, played by a stand-in; the real one is in tests/engines."""

import contextlib
import socket
import threading
import time

import pytest

from lightrft.config import RolloutConfig, ServerConfig
from lightrft.engines import transport as wire
from lightrft.engines.base import EngineDiedError, give
from lightrft.engines.buckets import buckets
from lightrft.engines.transport import Address
from lightrft.engines.vllm_serve import serve
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.models.attention import ATTENTION
from lightrft.testing import check_engine, tiny_model, tiny_processor, tiny_prompt
from lightrft.types import Sampling
from tests.unit.engines.stand_in import TroubleError, healthy, slow, standing_in

PROMPTS = [tiny_prompt(length, seed=length) for length in (3, 40, 7, 12, 5, 9)]
SAMPLING = Sampling(n=2, max_tokens=6, ignore_eos=True, seed=4)


def engine_of(servers, **settings):
    config = ServerConfig(urls=[server.url for server in servers], **{"wait_seconds": 5.0, **settings})
    module = tiny_model("llama", attention=ATTENTION)
    return VllmServerEngine(module, tiny_processor(), RolloutConfig(engine="vllm_server", server=config))


def weights():
    return [(name, p.detach()) for name, p in tiny_model("llama").named_parameters()]


def said(groups):
    return [[answer.token_ids for answer in answers] for answers in groups]


def test_it_does_all_that_an_engine_must():
    with standing_in(healthy) as servers:
        engine = engine_of(servers)
        found = check_engine(
            engine, tiny_model("llama", attention="sdpa"), tiny_processor().text, requests=50
        )
    assert found.ok, str(found)


def test_two_servers_share_the_questions_and_both_have_the_weights():
    with standing_in(healthy, healthy) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        both = said(engine.generate(PROMPTS, SAMPLING))
        assert [server.asked for server in servers] == [3, 3]
        alone = engine_of(servers[:1])
        give(alone, weights())
        assert said(alone.generate(PROMPTS, SAMPLING)) == both


def test_a_question_that_fails_goes_to_another_server():
    def refuse(path, body):
        if path == "/v1/completions":
            raise TroubleError(503)

    with standing_in(refuse, healthy) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        assert all(len(answers) == 2 for answers in engine.generate(PROMPTS, SAMPLING))
        assert [server.asked for server in servers] == [0, 6]


def test_a_server_that_hangs_is_given_up_after_the_time_limit():
    with standing_in(slow(60), healthy) as servers:
        engine = engine_of(servers, timeout_seconds=0.5)
        give(engine, weights())
        assert len(engine.generate(PROMPTS, SAMPLING)) == 6
        assert servers[1].asked == 6


def test_what_was_answered_before_the_servers_failed_is_not_asked_again():
    left = [4]

    def fail(path, body):
        if path == "/v1/completions":
            left[0] -= 1
            if left[0] < 0:
                raise TroubleError(500)

    with standing_in(fail) as servers:
        engine = engine_of(servers, requests=1, retries=1)
        give(engine, weights())
        with pytest.raises(
            EngineDiedError, match="a request failed 2 times, at last at http.*HTTP 500"
        ) as died:
            engine.generate(PROMPTS, SAMPLING)
        assert servers[0].asked == 4
        left[0] = 100
        died.value.restart()
        give(engine, weights())
        again = said(engine.generate(PROMPTS, SAMPLING))
        assert servers[0].asked == 6, "two were left"
        assert said(engine.generate(PROMPTS, SAMPLING)) == again


def test_a_server_without_the_present_weights_is_not_asked(caplog):
    with standing_in(healthy, healthy) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        servers[0].mark = ""  # it was started again
        engine.generate(PROMPTS, SAMPLING)
        assert [server.asked for server in servers] == [0, 6]
        assert f"{servers[0].url}: not there, or with other weights" in caplog.text
        servers[1].mark = "another-run-7"
        with pytest.raises(EngineDiedError, match="no server holds the present weights"):
            engine.generate(PROMPTS, SAMPLING)


def test_weights_that_change_while_questions_are_answered_are_noticed():
    def sneak(path, body):
        if path == "/v1/completions":
            servers[0].mark = "another-run-7"

    with standing_in(sneak) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        with pytest.raises(EngineDiedError, match="no server holds the present weights"):
            engine.generate(PROMPTS, SAMPLING)


def test_a_server_that_takes_no_weights_is_left_out_and_none_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(wire, "GLANCE_SECONDS", 0.2)

    def broken(path, body):
        if body.get("method") == "lightrft_receive":
            raise TroubleError(500)

    with standing_in(broken, healthy) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        engine.generate(PROMPTS, SAMPLING)
        assert [server.asked for server in servers] == [0, 6]
        alone = engine_of(servers[:1])
        with pytest.raises(RuntimeError, match=r"none of rollout.server.urls=.* took the new weights"):
            give(alone, weights())


def test_a_server_that_is_not_there_is_named_with_the_cure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    config = ServerConfig(urls=[url], wait_seconds=0.2)
    with pytest.raises(ValueError, match=rf"rollout.server.urls: {url} did not answer.*lightrft serve"):
        VllmServerEngine(
            tiny_model("llama", attention=ATTENTION),
            tiny_processor(),
            RolloutConfig(engine="vllm_server", server=config),
        )


def test_a_server_that_is_no_such_server_is_named():
    def plain(path, body):
        if path == "/collective_rpc":
            raise TroubleError(404)

    with standing_in(plain) as servers, pytest.raises(ValueError, match="answers, but takes no weights"):
        engine_of(servers)


def test_a_key_is_sent_and_its_variable_must_exist(monkeypatch):
    with standing_in(healthy) as servers:
        servers[0].key = "secret"
        with pytest.raises(ValueError, match="HTTP 401"):
            engine_of(servers)
        with pytest.raises(
            ValueError, match="rollout.server.key=NO_SUCH: there is no such environment variable"
        ):
            engine_of(servers, key="NO_SUCH")
        monkeypatch.setenv("OUR_KEY", "secret")
        engine_of(servers, key="OUR_KEY")
    config = RolloutConfig(engine="vllm_server", server=ServerConfig(key="NO_SUCH"))
    with pytest.raises(ValueError, match="rollout.server.key=NO_SUCH: there is no such environment variable"):
        serve(tiny_model("llama", attention=ATTENTION), tiny_processor(), config, host="", port=0)


def test_without_urls_it_is_said_how_to_get_one():
    with pytest.raises(ValueError, match=r"without rollout.server.urls. Start a server with `lightrft serve"):
        engine_of([])


def test_buckets_hold_what_fits_and_a_larger_weight_goes_alone():
    tensors = {str(n): p for n, (_, p) in enumerate(weights())}
    for most in (1, 4000, 10**9):
        found = list(buckets(iter(tensors.items()), most))
        assert [name for bucket in found for name in bucket] == list(tensors)
        for bucket in found:
            assert len(bucket) == 1 or sum(t.nbytes for t in bucket.values()) <= most
    assert len(found) == 1


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_weights_go_through_http_where_another_program_answers_for_a_worker(caplog, monkeypatch, reply):
    """Behind a port that is forwarded elsewhere, say: found out at the first bucket, whose weights are not lost."""
    monkeypatch.setattr(wire, "WORD_SECONDS", 0.5)
    heard = []

    def serve(listening):
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                connection, _ = listening.accept()
                with connection:
                    heard.append(connection.recv(2**20))
                    connection.sendall(reply)
                    time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as stranger, standing_in(healthy, healthy) as servers:
        threading.Thread(target=serve, args=(stranger,), daemon=True).start()
        right = servers[0].lightrft_begin
        servers[0].lightrft_begin = lambda: f"{stranger.getsockname()[1]} {right().split()[1]}"
        engine = engine_of(servers)
        give(engine, weights())
        assert all(server.mark for server in servers)
        assert max(map(len, heard)) == 40, "it gets no weights"
        both = said_by(engine)
        assert [server.asked for server in servers] == [3, 3]
        alone = engine_of(servers[1:])
        give(alone, weights())
        assert said_by(alone) == both
    assert caplog.text.count("so weights go through HTTP, many times slower") == 1


def said_by(engine):
    return said(engine.generate(PROMPTS, SAMPLING))


def test_weights_go_through_http_where_the_ports_of_the_workers_are_not_reached(caplog, monkeypatch):
    monkeypatch.setattr(Address, "reachable", lambda self: False)
    methods = []
    with standing_in(lambda path, body: methods.append(body.get("method"))) as servers:
        engine = engine_of(servers)
        give(engine, weights())
        give(engine, weights())
        http = said(engine.generate(PROMPTS, SAMPLING))
        assert caplog.text.count("its workers are not reached (ports ") == 1
        assert "lightrft_take" in methods
        assert "lightrft_receive" not in methods
        monkeypatch.undo()
        give(engine, weights())
        assert said(engine.generate(PROMPTS, SAMPLING)) == http
        assert "lightrft_receive" in methods
