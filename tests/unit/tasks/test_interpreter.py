"""Generated functions return what the task says, by running them."""

import pytest

from lightrft.tasks import interpreter
from lightrft.tasks.interpreter import FORMS


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_results_are_those_of_the_functions(split):
    for messages, result in interpreter.questions(split, 0):
        function, question = messages[-1]["content"].split("\n")
        held: dict = {}
        exec(function, held)
        assert str(eval(question.removeprefix("What is ").removesuffix("?"), held)) == result


def test_what_is_evaluated_on_is_never_trained_on_and_forms_are_equally_often():
    held_out = {messages[-1]["content"] for messages, _ in interpreter.questions("evaluate", 0)}
    assert held_out == {messages[-1]["content"] for messages, _ in interpreter.questions("evaluate", 5)}
    for seed in (0, 1):
        trained = {messages[-1]["content"] for messages, _ in interpreter.questions("train", seed)}
        assert len(trained) == interpreter.TRAIN
        assert not trained & held_out
        letters = sum("s.count" in question for question in trained)
        assert abs(letters / interpreter.TRAIN - 1 / len(FORMS)) < 0.04
