"""Who is told of a run's end is told once, truly, without secrets; and no receiver can stop a run or keep it waiting for long."""

import json
import logging
import os
import time

import pytest
import torch.distributed as dist

import lightrft
from lightrft.config import LogConfig
from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import Watch
from lightrft.runs import notify
from lightrft.runs.layout import RunFolder
from lightrft.runs.notify import Notifier, Receiver, found_receiver
from lightrft.utils.interrupt import Stopped
from tests.made_runs import learning_run
from tests.receiving import receiving


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(notify, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(notify, "TIMEOUT", 0.5)


def leave(folder, url, error=None, key=""):
    now = {"phase": "rollout", "step": 3, "done": 2, "steps": 4}
    around = Notifier(Receiver(url, key), folder, "train", lambda: now)
    if error is None:
        with around:
            pass
        return
    with pytest.raises(type(error)) as raised, around:
        raise error
    assert raised.value is error


def test_an_end_is_told_with_its_scores(tmp_path):
    folder = learning_run(tmp_path / "demo", steps=2, groups=1, siblings=2)
    with receiving() as (server, url):
        leave(folder, url, key="word")
    ((path, headers, told),) = server.told
    assert path == "/hook/SECRET"
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer word", "application/json")
    (task,) = told["evaluation"]["after"]
    score = json.loads(RunFolder(folder).evaluation.joinpath("after.json").read_text())[task]["score"]
    assert told["evaluation"]["after"][task] == {name: score[name] for name in ("mean", "low", "high")}
    assert told.pop("evaluation")["before"]
    assert told.pop("seconds") >= 0
    assert told == {
        "event": "finished", "run": "demo", "command": "train", "done": 2, "steps": 4, "phase": "rollout",
        "text": "demo: finished, after step 2 of 4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (Stopped("SIGTERM"), {"event": "stopped", "signal": "SIGTERM"}),
        (ValueError("no\nmore"), {"event": "failed", "error": "ValueError: no\nmore"}),
        (OSError("x" * 900 + "y"), {"event": "failed", "error": f"OSError: {'x' * 291} ... {'x' * 299}y"}),
    ],
)
def test_a_stop_and_a_failure_are_told_and_go_on_their_way(tmp_path, error, more):
    with receiving() as (server, url):
        leave(tmp_path, url, error)
    ((_, _, told),) = server.told
    assert told.items() >= more.items()
    assert told["event"] in told["text"]


def test_who_presses_ctrl_c_twice_waits_for_nothing(tmp_path):
    now = {"phase": "", "done": 0, "steps": 1}
    with (
        receiving() as (server, url),
        pytest.raises(KeyboardInterrupt),
        Notifier(Receiver(url), tmp_path, "train", lambda: now),
    ):
        raise KeyboardInterrupt
    assert not server.told


@pytest.mark.parametrize(
    ("statuses", "asked", "told"),
    [
        ([503, 429], 3, ""),
        ([408, 425], 3, ""),
        ([500] * 9, 3, "status 500"),
        ([404], 1, "status 404"),
        ([302], 1, "status 302"),
        (["hang", "hang", "hang"], 3, "TimeoutError"),
    ],
)
def test_attempts_are_few_and_short_and_no_secret_is_logged(tmp_path, caplog, statuses, asked, told):
    begun = time.monotonic()
    with receiving(*statuses) as (server, url), caplog.at_level(logging.INFO, "lightrft"):
        leave(tmp_path, url, key="word")
    assert time.monotonic() - begun < 8
    assert [path for path, _, _ in server.told] == ["/hook/SECRET"] * asked
    assert (told in caplog.text) if told else not caplog.records
    assert "SECRET" not in caplog.text
    assert "word" not in caplog.text


def test_a_receiver_that_is_not_there_stops_nothing(tmp_path, caplog):
    with receiving() as (_, url):
        pass
    leave(tmp_path, url)
    assert "log.notify: 127.0.0.1 could not be told (ConnectionRefusedError" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("name", ["MY_HOOK", "MY_KEY"])
@pytest.mark.parametrize(
    "value", ["https://h.org/SECRET\nX: y", "https://h.org/SECRÉT", "https://h.org/SEC RET", " \n"]
)
def test_what_a_request_cannot_carry_is_refused_by_name(monkeypatch, name, value):
    for one in ("MY_HOOK", "MY_KEY"):
        monkeypatch.setenv(one, value if one == name else "https://h.org/x")
    with pytest.raises(ValueError, match=f"{name}: the environment variable of this name holds") as refused:
        found_receiver("MY_HOOK", "MY_KEY")
    assert "SEC" not in str(refused.value)


def test_files_of_secrets_may_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "word\n")
    with receiving() as (_, url):
        monkeypatch.setenv("MY_HOOK", f"{url}\r\n")
        assert found_receiver("MY_HOOK", "MY_KEY") == Receiver(url, "word")
    with pytest.raises(ValueError, match="percent-encoded"):
        LogConfig(notify="https://host/é")
    monkeypatch.setenv("MY_HOOK", "https://host:SECRET/x")
    with pytest.raises(ValueError, match="holds no address") as refused:
        found_receiver("MY_HOOK", "")
    assert "SECRET" not in str(refused.value)


def test_whatever_fails_in_the_sender_is_told_by_its_kind_alone(tmp_path, caplog, capfd):
    with receiving() as (server, url):
        leave(tmp_path, url, key="TOPSECRET\n")
    assert not server.told
    assert "could not be told (ValueError)" in caplog.text
    assert "TOPSECRET" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("error", [None, ValueError("mine")])
def test_scores_that_cannot_be_read_are_left_out(tmp_path, caplog, error):
    folder = learning_run(tmp_path / "demo", steps=1, groups=1, siblings=2)
    for label in ("before", "after"):
        RunFolder(folder).evaluation.joinpath(f"{label}.json").write_text('{"a": ')
    with receiving() as (server, url):
        leave(folder, url, error)
    ((_, _, told),) = server.told
    assert (told["event"], told["evaluation"]) == ("failed" if error else "finished", {})
    assert "the scores could not be read (JSONDecodeError)" in caplog.text


def test_an_error_without_a_text_is_that_of_the_run_still(tmp_path, caplog):
    class MuteError(Exception):
        def __str__(self):
            raise TypeError

    with receiving() as (_, url):
        leave(tmp_path, url, MuteError())
    assert "could not be put together (TypeError)" in caplog.text


def test_a_score_that_is_no_number_is_null_and_an_earlier_end_is_not_told_of_a_failure(tmp_path):
    folder = learning_run(tmp_path / "demo", steps=1, groups=1, siblings=2)
    for label in ("before", "after"):
        RunFolder(folder).evaluation.joinpath(f"{label}.json").write_text(
            '{"a": {"score": {"mean": NaN, "low": 0.5}}}'
        )
    with receiving() as (server, url):
        leave(folder, url)
        leave(folder, url, ValueError("later"))
    (_, _, ended), (_, _, failed) = server.told
    wanted = {"a": {"mean": None, "low": 0.5, "high": None}}
    assert ended["evaluation"] == {"before": wanted, "after": wanted}
    assert failed["evaluation"] == {"before": wanted}


def test_a_process_that_its_watch_ends_is_told_of(tmp_path, monkeypatch):
    with receiving() as (server, url):
        child = os.fork()
        if not child:
            watch = Watch(0, 2, dist.HashStore(), 1.0)
            monkeypatch.setattr(STATUS, "watch", watch)
            with Notifier(Receiver(url), tmp_path, "train"):
                watch._end("rank 1 ended without a word")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    ((_, _, told),) = server.told
    assert (told["event"], told["error"]) == ("failed", "RuntimeError: rank 1 ended without a word")
    assert told["done"] is None


def test_an_address_can_be_a_secret_in_the_environment(monkeypatch):
    monkeypatch.setenv("MY_HOOK", "https://hooks.example.org/SECRET")
    monkeypatch.setenv("MY_KEY", "word")
    assert found_receiver("MY_HOOK", "MY_KEY") == Receiver("https://hooks.example.org/SECRET", "word")
    assert found_receiver("", "") is None
    monkeypatch.setenv("MY_HOOK", "hooks.example.org/SECRET")
    with pytest.raises(ValueError, match=r"log.notify=MY_HOOK: .* holds no address") as refused:
        found_receiver("MY_HOOK", "")
    assert "SECRET" not in str(refused.value)
    with pytest.raises(ValueError, match="there is no such environment variable"):
        found_receiver("MY_OTHER", "")
    with pytest.raises(ValueError, match="unencrypted"):
        found_receiver("http://node7/x", "MY_KEY")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"notify": "ftp://host/x"}, "http"),
        ({"notify": "not a name"}, "name of an environment variable"),
        ({"notify": "https://me:pa55@host/x"}, "log.notify_key"),
        ({"notify_key": "MY_KEY"}, "has no effect without log.notify"),
    ],
)
def test_what_is_no_address_is_refused(options, told):
    with pytest.raises(ValueError, match=told) as refused:
        LogConfig(**options)
    assert "pa55" not in str(refused.value)


def test_a_run_that_ends_and_one_that_fails_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def breaks(answer):
        raise ArithmeticError("no reward")

    with receiving() as (server, url):
        log = {"progress": False, "tensorboard": False, "curves": False, "notify": url}
        common = {"layers": "tiny", "steps": 1, "log": log, "evaluate": {"limit": 4}}
        lightrft.train(run="ends", **common)
        with pytest.raises(RuntimeError, match="no reward"):
            lightrft.train(run="fails", rewards=breaks, **common)
        with pytest.raises(Exception, match="no-such-model"):
            lightrft.train(run="loads", model="no-such-model", **common)
    (_, _, ended), (_, _, failed), (_, _, unloaded) = server.told
    assert (unloaded["event"], unloaded["done"]) == ("failed", None)
    assert unloaded["text"].endswith(", while loading")
    assert (ended["event"], ended["done"], ended["run"]) == ("finished", 1, "ends")
    assert ended["evaluation"]["after"]["tiny"].keys() == {"mean", "low", "high"}
    assert (failed["event"], failed["run"]) == ("failed", "fails")
    assert "no reward" in failed["error"]
