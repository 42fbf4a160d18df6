"""Majority votes among the answers to one draw of a question."""

import pytest

from lightrft.rewards.function import Answer, Question
from lightrft.rewards.vote import majority, majority_right


def answers(*texts, target="4", group=0, finish="stop"):
    question = Question("q", [], target, "task")
    return [Answer(question, group, [], text, finish) for text in texts]


def test_what_most_say_is_right_however_they_write_it():
    said = answers("The answer is 4.", "so \\boxed{4.0}", "It is 5", "4", "no idea")
    assert majority(said) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert majority_right(said) == [1.0] * 5
    assert majority_right(answers("5", "5", "4")) == [0.0] * 3


def test_the_target_is_not_looked_at():
    assert majority(answers("5", "5", "4", target=None)) == [1.0, 1.0, 0.0]


def test_of_equally_frequent_conclusions_the_first_wins():
    assert majority(answers("7", "4", "4", "7")) == [1.0, 0.0, 0.0, 1.0]


def test_who_concludes_nothing_has_no_vote_even_if_most_do():
    assert majority(answers("hm", "well", "oh", "5")) == [0.0, 0.0, 0.0, 1.0]
    assert majority(answers("hm", "well")) == [0.0, 0.0]
    assert majority_right(answers("hm", "well")) == [0.0, 0.0]


def test_an_answer_that_was_cut_has_no_vote():
    said = answers("5", "5", finish="length") + answers("4")
    assert majority(said) == [0.0, 0.0, 1.0]


def test_each_draw_of_a_question_has_its_own_vote():
    said = answers("4", "4", "5", group=3) + answers("5", "5", "4", group=1)
    assert majority(said) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert majority_right(said) == [1.0] * 3 + [0.0] * 3


@pytest.mark.parametrize("order", ['{"b": 2, "a": 1}', 'Sure: {"a": 1, "b": 2} as you asked.'])
def test_json_objects_are_compared_as_objects(order):
    said = answers('{"a": 1, "b": 2}', order, '{"a": 1}', target={"a": 1, "b": 2})
    assert majority(said) == [1.0, 1.0, 0.0]
    assert majority_right(said) == [1.0] * 3
