"""Child processes that make calls: any function, with a time limit, and no knowledge of what it is for."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from lightrft.workers.pool import Allowed, Call, Failure, Inline, Pool, Work

ARITHMETIC = Path(__file__).parent / "arithmetic.py"
WORK = Work(f"{ARITHMETIC}:load", noun="sum", limit="sums.timeout_seconds", memory="sums.memory_gb")


ANY = Allowed()


def pool(*names, seconds=60.0, workers=1, work=WORK, allowed=ANY):
    return closing(Pool(work, names, workers, seconds, allowed))


def test_results_come_in_the_order_of_the_calls():
    with pool("halve", workers=2) as two:
        assert two.run([Call("halve", n) for n in range(6)]) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_a_result_that_is_text_is_no_failure():
    with pool("say") as one:
        assert one.run([Call("say", 5)]) == ["5"]


def test_what_a_function_raises_is_a_failure_with_its_place():
    with pool("halve") as one:
        failure, result = one.run([Call("halve", "four"), Call("halve", 4)])
    assert isinstance(failure, Failure)
    assert "arithmetic.py" in failure.reason
    assert "TypeError" in failure.reason
    assert result == 2.0


def test_a_call_that_takes_too_long_names_the_option_and_its_worker_is_replaced():
    with pool("sleep", "halve", seconds=5.0) as one:
        failure, result = one.run([Call("sleep", 60), Call("halve", 4)])
        assert failure == Failure("it took longer than sums.timeout_seconds=5 and was killed.")
        assert result == 2.0


def test_a_worker_that_dies_is_replaced():
    with pool("die", "halve") as one:
        assert one.run([Call("die", 3), Call("halve", 4)]) == [
            Failure("its process died (exit code 3)."),
            2.0,
        ]


def test_a_function_that_cannot_be_loaded_is_an_error_with_the_noun_of_the_work():
    with (
        pool("third") as one,
        pytest.raises(ValueError, match=r"(?s)a sum cannot be loaded: .*KeyError: 'third'"),
    ):
        one.run([Call("third", 1)])


def test_a_loader_that_does_not_exist_is_named():
    lost = Work(
        "lightrft.rewards.table:lode_values",
        noun="sum",
        limit="sums.timeout_seconds",
        memory="sums.memory_gb",
    )
    with (
        pool(work=lost) as one,
        pytest.raises(ValueError, match="no 'lode_values'. Did you mean 'load_values'"),
    ):
        one.run([Call("halve", 1)])


def test_a_child_imports_neither_torch_nor_rewards():
    with pool("modules") as one:
        assert one.run([Call("modules", "torch"), Call("modules", "lightrft.rewards")]) == [[], []]


def test_inline_calls_give_the_same_outcomes():
    outcomes = Inline({"halve": lambda number: number / 2}).run([Call("halve", 3), Call("halve", "x")])
    assert outcomes[0] == 1.5
    assert isinstance(outcomes[1], Failure)


def test_a_child_gets_what_programs_need_and_what_is_named_of_the_environment(monkeypatch):
    for name in ("MY_API_KEY", "HF_TOKEN", "MY_TABLE", "OMP_NUM_THREADS", "HF_HOME", "https_proxy", "LC_ALL"):
        monkeypatch.setenv(name, "1")
    asked = ["MY_API_KEY", "HF_TOKEN", "MY_TABLE", "OMP_NUM_THREADS", "HF_HOME", "https_proxy", "LC_ALL"]
    with pool("variable", allowed=Allowed(variables=("MY_TABLE",))) as one:
        assert one.run([Call("variable", name) for name in asked]) == [None, None, *["1"] * 5]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_a_call_that_needs_too_much_memory_names_the_option_and_its_worker_is_replaced():
    with pool("hold", "number", allowed=Allowed(memory_gb=0.5)) as one:
        first, failure, held, second = one.run(
            [Call("number", 0), Call("hold", 10**9), Call("hold", 10**8), Call("number", 0)]
        )
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("it needed more memory than sums.memory_gb=0.5 and was ended.")
    assert held == 10**8
    assert first != second


def test_a_worker_outlives_the_thread_that_began_the_pool():
    with ThreadPoolExecutor(1) as brief:
        one = brief.submit(Pool, WORK, ["halve"], 1, 60.0).result()
    time.sleep(0.3)
    with closing(one):
        assert one.run([Call("halve", 3)]) == [1.5]


PARENT = f"""
import sys
from lightrft.workers.pool import Call, Pool, Work
one = Pool(Work({str(ARITHMETIC) + ":load"!r}, "sum", "a", "b"), ["stick", "number"], 1, 600.0)
print(one.run([Call("number", 0)])[0], flush=True)
one.run([Call("stick", "a" * 60 + "b")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process that holds Python's lock")
def test_a_worker_that_is_stuck_with_pythons_lock_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    spent = worker.cpu_times().user
    while worker.cpu_times().user < spent + 0.2:  # it is inside the regular expression
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    worker.wait(timeout=5)
