"""What rewards make of usual surface forms: right where the answer is right, and nothing for what only looks like it."""

import time
from math import nan

import pytest

from lightrft.config import RewardConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.math import last_number, math
from lightrft.rewards.table import REWARDS
from lightrft.rewards.text import choice, json_fields, json_keys, json_object, words
from lightrft.rewards.vote import majority, majority_right
from lightrft.types import Prompt, Trajectory
from lightrft.utils.instructions import KINDS

RIGHT = [
    ("The answer is 42. This answer is correct.", "42"),
    ("... 40 + 2 = 42, so this answer is consistent.", "42"),
    ("Answer: 13 (in base 10)", "13"),
    ("The answer is therefore 7", "7"),
    ("The answer is approximately 7.5", "7.5"),
    ("The answer is (A) 7", "7"),
    ("The answer is USD 7", "7"),
    ("The answer is 7, not 8.", "7"),
    ("The answer is $2k+2$", "2k+2"),
    ("#### 2k+2", "2k+2"),
    ("The answer is 3i", "3i"),
    ("Therefore the probability is $\\frac{14}{3}$.", "\\frac{14}{3}"),
    ("Hence \\sqrt{5}.", "\\sqrt5"),
    ("\\boxed{3/2}", "1 1/2"),
    ("\\boxed{4 2/3}", "\\frac{14}{3}"),
    ("\\boxed{0.000001}", 1e-06),
    ("\\boxed{10000000000000000000000}", 1e22),
    ("\\boxed{1.5e3}", "1500"),
    ("\\boxed{0.5}", "50\\%"),
    ("\\boxed{2^{2010}}", "4^{1005}"),
    ("\\boxed{-1+2^{2023}}", "2^{2023}-1"),
    ("\\boxed{2^{-1007}}", "\\frac{1}{2^{1007}}"),
    ("\\boxed{\\textbf{(051) }}", "051"),
    ("\\boxed{7 m/s}", "7"),
    ("\\boxed{7~\\text{cm}}", "7"),
    ("\\boxed{\\underline{7}}", "7"),
    ("\\boxed{€7}", "7"),
    ("\\boxed{0.\\overline{3}}", "\\frac13"),
    ("\\boxed{\\emptyset}", "\\varnothing"),
    ("\\boxed{1\\,234}", "1234"),
    ("\\boxed{90°}", "90"),
    ("\\boxed{7.}", "7"),
    ("9 million is 9", "9"),
    ("\\boxed{5 thousand}", "5000"),
    ("\\boxed{2+3}", "5"),
    ("\\boxed{50\\%}", "50"),
    ("\\boxed{9 or 10}", "9, 10"),
    ("The answer is 50%.", "0.5"),
    ("Thus x = 5, where $x$ is odd.", "5"),
    ("so $x+y = 5$.", "5"),
    ("\\boxed{2\\pi r}", "2\\pi r"),
    ("\\boxed{10!}", "3628800"),
]
WRONG = [
    ("The answer is $2k+2$", "2"),
    ("The answer is 9 million.", "9"),
    ("The answer is 9 to 10", "9"),
    ("The answer is 9 to 10", "10"),
    ("The answer is 9 or 10", "9"),
    ("The answer is 9 times 2", "9"),
    ("The answer is 5x - 7", "5"),
    ("Thus it is $\\frac{1}{42}$.", "42"),
    ("so $2^{42}$", "42"),
    ("so $10_{42}$", "42"),
    ("so $\\sqrt{42}$", "42"),
    ("\\boxed{4 2}", "42"),
    ("\\boxed{2, 220}", "2220"),
    ("\\boxed{11/2}", "1 1/2"),
    ("\\boxed{1.6\\times10^{-19}}", "9.1\\times10^{-31}"),
    ("\\boxed{\\frac{1}{2^{98}}}", "\\frac{1}{2^{99}}"),
    ("\\boxed{0.0000001}", "10^{-8}"),
    ("\\boxed{2\\mathrm{e}}", "2"),
    ("\\boxed{5\\mathrm{i}}", "5"),
    ("\\boxed{5\\text{ thousand}}", "5"),
    ("\\boxed{nan}", nan),
    ("x", ""),
    ("\\boxed{\\frac{\\pi}{10^{8}}}", "\\frac{\\pi}{10^{9}}"),
    ("\\boxed{2220_5}", "2220_3"),
    ("\\boxed{1/2006!}", "1/2004!"),
    ("\\boxed{4}", "4\\sqrt(2)"),
]
ENDLESS = [
    ("\\boxed{(x+y+z+w)^{999}}", "5"),
    ("\\boxed{(a+b+c)^{200}}", "5"),
    ("\\boxed{(((2^{999})^{999})^{999})^{999}}", "5"),
    ("\\boxed{\\sum_{n=1}^{\\infty} \\frac{\\sin(n^2)}{n^3+n+1}}", "5"),
    (
        "\\boxed{((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))}",
        "5",
    ),
    ("\\boxed{(1+x)^{500}(1-x)^{500}}", "x"),
    (
        "\\boxed{\\{x^{1},x^{2},x^{3},x^{4},x^{5},x^{6},x^{7},x^{8},x^{9},x^{10},x^{11},x^{12},x^{13},x^{14},x^{15},x^{16},x^{17},x^{18},x^{19},x^{20},x^{21},x^{22},x^{23},x^{24},x^{25},x^{26},x^{27},x^{28},x^{29},x^{30},x^{31},x^{32},x^{33},x^{34},x^{35},x^{36},x^{37},x^{38},x^{39},x^{40},x^{41},x^{42},x^{43},x^{44},x^{45},x^{46},x^{47},x^{48},x^{49},x^{50},x^{51},x^{52},x^{53},x^{54},x^{55},x^{56},x^{57},x^{58},x^{59},x^{60},x^{61},x^{62},x^{63},x^{64},x^{65},x^{66},x^{67},x^{68},x^{69},x^{70},x^{71},x^{72},x^{73},x^{74},x^{75},x^{76},x^{77},x^{78},x^{79},x^{80},x^{81},x^{82},x^{83},x^{84},x^{85},x^{86},x^{87},x^{88},x^{89}\\}}",
        "\\{1,2\\}",
    ),
    ("\\boxed{(a+b+c+d+e)^{45}}", "5"),
    ("\\boxed{((a+b)^{40}+c)^{40}}", "5"),
    ("\\boxed{x^{x^{x^x}}}", "5"),
    ("\\boxed{(a+b)^{30}(c+d)^{30}(e+f)^{30}}", "x"),
    ("\\boxed{\\sqrt{\\sqrt{2+x}+(x+y)^{49}}}", "x"),
    ("\\boxed{\\sin^{50}(x)\\cos^{50}(y)}", "\\sin(x)"),
]
CHOICES = [
    ("The answer is a dog.", "A", 0),
    ("The answer is a triangle, so B.", "B", 1),
    ("Answer: I think it is B", "B", 1),
    ("The answer is I don't know", "I", 0),
    ("<answer>B. Paris</answer>", "B", 1),
    ("B. Paris", "B", 1),
    ("B) Paris", "B", 1),
    ("B: Paris", "B", 1),
    ("**B. Paris**", "B", 1),
    ("**Answer**: B", "B", 1),
    ("\\boxed{B. Paris}", "B", 1),
    ("\\boxed{\\text{B. Paris}}", "B", 1),
    ("\\boxed{\\mathrm{B}}", "B", 1),
    ("So it must be B.", "B", 1),
    ("[B]", "B", 1),
    ("The answer is B, not (A).", "B", 1),
    ("Neither (A) nor (B)", "B", 0),
    ("A. x\nB. y\nC. z\nSo it is unclear", "C", 0),
    ("The correct option is B because", "B", 1),
    ("I had a dog", "A", 0),
    ("A dog barks", "A", 0),
    ("Answer: B. Paris", "B", 1),
    ("Answer: **B**", "B", 1),
    ("The answer is:\n\nB", "B", 1),
    ("It is a cat", "A", 0),
    ("the answer is b", "B", 1),
    ("Option A is wrong. Option B is right.", "B", 1),
    ("the answer is option B", "B", 1),
    ("the correct answer is (B) Paris.", "B", 1),
    ("I am sure", "I", 0),
    ("Therefore, B", "B", 1),
    ("The answer is $B$.", "B", 1),
]


@pytest.mark.parametrize(("answer", "target"), [*RIGHT, ("Answer:\n$$\n42\n$$", "42")])
def test_a_right_result_counts_in_every_usual_form(answer, target):
    assert math(answer, target) == 1.0


@pytest.mark.parametrize(("answer", "target"), WRONG)
def test_what_only_looks_like_the_target_counts_for_nothing(answer, target):
    assert math(answer, target) == 0.0


@pytest.mark.parametrize(("answer", "target"), ENDLESS)
def test_an_answer_that_no_checker_finishes_is_wrong_soon_and_no_failure(answer, target):
    start = time.monotonic()
    assert math(answer, target) == 0.0
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(("answer", "target", "score"), [(".5", 0.5, 1.0), (".5", 5, 0.0), ("no", "x", 0.0)])
def test_a_number_may_begin_with_its_point(answer, target, score):
    assert last_number(answer, target) == score


@pytest.mark.parametrize(("answer", "target", "score"), CHOICES)
def test_a_choice_is_a_letter_that_is_committed_to_and_no_article(answer, target, score):
    assert choice(answer, target) == score


def test_an_accent_is_the_same_in_both_ways_to_write_it():
    assert words("cafe\u0301", "caf\u00e9") == 1.0


ONE = {"a": 1}


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ('<think>maybe {"a": 2}</think>{"a": 1}', ONE, 1.0),
        ('perhaps {"a": 3}. <answer>{"a": 1}</answer>', ONE, 1.0),
        ('I use {braces} here: {"a": 1}', ONE, 1.0),
        ('{"a": true, "b": false}', {"a": 1, "b": 0}, 0.0),
        ('{"a": [true]}', {"a": [1]}, 0.0),
        ('{"a": 1.0}', ONE, 1.0),
        ('{"a": 1}', '{"a": 1}', 1.0),
    ],
)
def test_json_reads_the_answer_and_compares_values_by_kind(answer, target, score):
    assert json_object(answer, target) == score
    assert json_fields(answer, target) == score


def test_an_empty_object_is_right_where_none_has_fields_and_text_is_no_object():
    assert json_fields("{}", {}) == json_keys("{}", {}) == 1.0
    with pytest.raises(ValueError, match="the target of a prompt is 'seven'"):
        json_object("{}", "seven")


def said(*texts, target="7"):
    return [Answer(Question("q", [], target, "t"), 0, [0], text, "stop") for text in texts]


def test_an_instruction_quoted_casts_no_vote():
    quoted = [
        r"I write the final answer inside \boxed{}. 3+4 gives \boxed{7}",
        r"I write the final answer inside \boxed{}. It is \boxed{8}",
        r"The final answer goes in \boxed{}: \boxed{9}",
    ]
    assert majority(said(*quoted, r"\boxed{7}", r"\boxed{7}")) == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (["d = {} ; then the answer is 7", "7", "8"], [1, 1, 0]),
        (['<think>{"a": 1}</think>{"a": 2}', '{"a": 2}', '{"a": 1}'], [1, 1, 0]),
        ([r"\boxed{B}", r"\boxed{(B)}", "(B)", "B", "(A)"], [1, 1, 1, 1, 0]),
        ([r"\boxed{5 cm}", r"\boxed{5}", r"\boxed{5\text{ cm}}", "6", "6"], [1, 1, 1, 0, 0]),
    ],
)
def test_votes_are_what_answers_conclude(answers, right):
    assert majority(said(*answers)) == right


def test_a_unit_does_not_hide_that_the_majority_is_right():
    assert majority_right(said(*[r"\boxed{5 cm}"] * 3, target="5")) == [1, 1, 1]


def test_a_reward_named_like_a_metric_keeps_its_whole_name(tmp_path):
    (tmp_path / "odd.py").write_text("def mean(answer):\n    return 7.0\n")
    name = f"{tmp_path}/odd.py:mean"
    judge = RewardRunner({"t": {name: 1.0}}, RewardConfig(workers=0))
    answer = Trajectory(Prompt("q", [1], [], "", "t"), 0, [1], [True], [0.0], "stop", answer="x")
    judge([answer])
    assert answer.parts == {name: 7.0}


SIZE = 200_000
WANTS = {name for _, needs in KINDS.values() for name in needs}
UNITS = {
    "lines": "\n",
    "box": "\\boxed{",
    "tag": "<answer>",
    "brace": "{",
    "json": '{"a":',
    "dollar": "$",
    "paren": "\\(",
    "digits": "1",
    "answer": "answer is ",
    "A": "(A) ",
    "lineB": "\n B ",
    "stop": ".",
    "star": "*",
    "bracket": "[",
    "title": "<<",
    "sp_box": "\\boxed" + " " * 199_990 + "{",
    "blank": "The answer is x" + " " * 199_000 + "y",
}
GIVEN = {
    **dict.fromkeys(["relation", "let_relation", "capital_relation"], "at least"),
    **{
        name: 3
        for name in WANTS
        if name.startswith("num_") or name.endswith("frequency") or name == "nth_paragraph"
    },
    **{
        "keywords": ["a"],
        "forbidden_words": ["b"],
        "keyword": "c",
        "letter": "d",
        "language": "de",
        "first_word": "e",
    },
    **{"end_phrase": "f", "prompt_to_repeat": "g", "postscript_marker": "P.P.S", "section_spliter": "Part"},
}
EVERY_INSTRUCTION = {"instruction_id_list": list(KINDS), "kwargs": [GIVEN] * len(KINDS)}
REPEATED = [
    "answer_tags",
    "choice",
    "exact",
    "format",
    "hotpot_f1",
    "instructions",
    "json",
    "json_fields",
    "json_keys",
    "math",
    "majority",
    "number",
    "repetition",
    "squad_exact",
    "squad_f1",
    "words",
]


@pytest.mark.parametrize("kind", UNITS)
def test_no_reward_takes_more_than_linear_time(kind):
    unit = UNITS[kind]
    text = (unit * (SIZE // len(unit) + 1))[:SIZE] + "x"
    targets = {
        "json": ONE,
        "json_fields": ONE,
        "json_keys": ONE,
        "choice": "B",
        "instructions": EVERY_INSTRUCTION,
    }
    for name in REPEATED:
        question = Question("q", [], targets.get(name, "42"), "t")
        # A short text first: where nothing has asked it before, a reward compiles its patterns and builds a parser's tables.
        REWARDS[name]([Answer(question, 0, [0], text[:100], "stop")])
        start = time.process_time()
        REWARDS[name]([Answer(question, 0, [0], text, "stop")])
        assert time.process_time() - start < 1.0, name
