"""Child processes that make calls: any function, with a time limit, and no knowledge of what it is for."""

from contextlib import closing
from pathlib import Path

import pytest

from lightrft.workers.pool import Call, Failure, Inline, Pool, Work

ARITHMETIC = Path(__file__).parent / "arithmetic.py"
WORK = Work(f"{ARITHMETIC}:load", noun="sum", limit="sums.timeout_seconds")


def pool(*names, seconds=60.0, workers=1, work=WORK):
    return closing(Pool(work, names, workers, seconds))


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
    lost = Work("lightrft.rewards.table:lode_values", noun="sum", limit="sums.timeout_seconds")
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
