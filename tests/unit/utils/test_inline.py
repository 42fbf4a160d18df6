"""Objects of a program: held while a run goes on, found by name, and sent to other processes."""

import threading

import pytest

from lightrft.utils import inline
from lightrft.utils.imports import load_file, resolve
from lightrft.workers.pool import Call, Failure, Pool, Work

FACTOR = 3
WORK = Work(
    "tests.unit.utils.test_inline:load",
    noun="reward",
    limit="rewards.timeout_seconds",
    memory="rewards.memory_gb",
)


def load(name):
    return resolve({}, name, "reward")


def scaled(number):
    return FACTOR * number


def test_names_are_found_while_held_and_the_earlier_ones_come_back():
    with inline.held({"inline:a": 1}):
        assert resolve({}, "inline:a", "reward") == 1
        with inline.held({"inline:b": 2}):
            assert inline.missing(["inline:a", "inline:b", "math"]) == ["inline:a"]
        assert resolve({}, "inline:a", "reward") == 1
    with pytest.raises(ValueError, match=r"reward 'inline:a' was given from Python .* Go on from Python"):
        resolve({}, "inline:a", "reward")


def test_functions_of_programs_files_and_closures_run_in_another_process_and_are_killed_in_time(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("BASE = 10\ndef over(number):\n    return BASE + number\n", encoding="utf-8")
    offset = 4

    def endless(_number):
        while True:
            pass

    objects = {
        "inline:module": scaled,
        "inline:file": load_file(str(file)).over,
        "inline:closure": lambda number: number + offset,
        "inline:endless": endless,
    }
    with inline.held(objects):
        pool = Pool(WORK, list(objects), workers=1, timeout_seconds=2.0)
        try:
            found = pool.run([Call(name, 2) for name in objects])
        finally:
            pool.close()
    assert found[:3] == [6, 12, 6]
    assert isinstance(found[3], Failure)
    assert "rewards.timeout_seconds=2" in found[3].reason


def test_what_does_not_pickle_is_refused_with_the_cure():
    lock = threading.Lock()
    with (
        inline.held({"inline:locked": lambda number: lock.locked()}),
        pytest.raises(ValueError, match=r"reward 'inline:locked' cannot be sent .*inside the function"),
    ):
        inline.packed(["inline:locked"], "reward")
