"""IFEval's instructions: a text that follows and one that does not for each kind, by hand; the published checker is compared with in
tests/oracles/test_published_instructions.py."""

import pytest

from lightrft.rewards.instructions import (
    instructions,
    instructions_loose,
    instructions_loose_share,
    instructions_share,
)
from lightrft.utils.instructions import KINDS, checks_of
from lightrft.utils.languages import language
from lightrft.utils.prose import capital_words, sentence_count

CASES = {
    "change_case:capital_word_frequency": ({"capital_frequency": 2, "capital_relation": "at least"}, "GO, DR. Who!", "GO on, Dr. Who"),
    "change_case:english_capital": ({}, "THIS IS WHAT THEY HAVE SAID.", "DAS IST DER SATZ UND NICHT DIE FRAGE."),
    "change_case:english_lowercase": ({}, "this is what they have said.", "This is what they have said."),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Why is it so?"}, " why is it SO? Because.", "Because. Why is it so?"),
    "combination:two_responses": ({}, "one\n******\ntwo", "one\n******\none"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [place]", "[name] at home"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. PS More."),
    "detectable_format:constrained_response": ({}, "Well. My answer is maybe.", "Well. Maybe."),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2}, "Part 1\nx\nPart 2\ny", "Part 1\nx\npart 2\ny"
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n - b", "* a\n - b\n- c"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and *b c*", "*a* and * *"),
    "detectable_format:title": ({}, "<<A song>>\nla", "<< >>\nla"),
    "keywords:existence": ({"keywords": ["Red", "C++"]}, "red c++", "green c++"),
    "keywords:forbidden_words": ({"forbidden_words": ["red"]}, "It is reddish.", "It is Red."),
    "keywords:frequency": ({"keyword": "red", "frequency": 2, "relation": "less than"}, "Red reads well.", "red redder"),
    "keywords:letter_frequency": ({"letter": "R", "let_frequency": 2, "let_relation": "at least"}, "Red car", "Red cat"),
    "language:response_language": ({"language": "de"}, "Das ist nicht die Frage, und es war sie nie.", "That is not the question."),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}, 'First.\n\n"then, he left."', "First.\n\nIn the end then."
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n***\n\n***\nb"),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "at least"}, "He came. Dr. Who left!", "Dr. Who left e.g. today."),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "well-known", "well-known man"),
    "punctuation:no_comma": ({}, "So it is.", "So, it is."),
    "startend:end_checker": ({"end_phrase": "Any questions?"}, 'So. "any questions?" ', "Any questions? No."),
    "startend:quotation": ({}, ' "So it is." ', '"So" it is.'),
}  # fmt: skip


def asked(*kinds):
    return {"instruction_id_list": list(kinds), "kwargs": [CASES[kind][0] for kind in kinds]}


def test_there_are_25_kinds_and_a_case_for_each():
    assert set(CASES) == set(KINDS)
    assert len(KINDS) == 25


@pytest.mark.parametrize("kind", CASES)
def test_a_text_that_follows_has_1_and_one_that_does_not_has_0(kind):
    _, right, wrong = CASES[kind]
    assert (instructions(right, asked(kind)), instructions(wrong, asked(kind))) == (1.0, 0.0)
    assert instructions(f"<think>{wrong}</think>{right}", asked(kind)) == 1.0
    assert instructions("", asked(kind)) == instructions_loose("", asked(kind)) == 0.0


def test_the_four_measures_of_two_instructions():
    both = asked("punctuation:no_comma", "startend:end_checker")
    answer = "Sure, here it is:\nAll is well. Any questions?\n(End)"
    assert [
        f(answer, both)
        for f in (instructions, instructions_loose, instructions_share, instructions_loose_share)
    ] == [0, 1, 0, 1]
    partly = "Sure, all is well. Any questions?"
    assert (
        instructions(partly, both),
        instructions_share(partly, both),
        instructions_loose_share(partly, both),
    ) == (0, 0.5, 0.5)


def test_markup_and_first_lines_are_forgiven_loosely():
    kind = asked("startend:quotation")
    assert (instructions('**"So it is."**', kind), instructions_loose('**"So it is."**', kind)) == (0, 1)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("red", "instruction_id_list"),
        ({"instruction_id_list": [], "kwargs": []}, "must name one instruction"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "a list with 1 entries"),
        ({"instruction_id_list": ["no:comma"], "kwargs": [{}]}, "there is no instruction 'no:comma'. Those of IFEval are: change_case"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "'keywords' is None, and must be a list"),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "about"}]},
            "must be 'less than' or 'at least'",
        ),
        ({"instruction_id_list": ["detectable_format:number_bullet_lists"], "kwargs": [{"num_bullets": True}]}, "must be a int"),
    ],
)  # fmt: skip
def test_a_target_that_says_nothing_a_program_could_check_is_refused(target, told):
    with pytest.raises(ValueError, match=told):
        checks_of(target)


def test_numbers_of_a_column_with_gaps_may_be_floats():
    target = {
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 1.0}],
    }
    assert instructions("* one", target) == 1.0


def test_sentences_are_counted():
    texts = {
        "": 0,
        "No stop": 1,
        "One. Two! Three? four": 4,
        "He paid 3.50 to Mr. A. Smith. So": 2,
        "1. First.\n2. Second": 4,
    }
    assert {text: sentence_count(text) for text in texts} == texts


def test_capital_words_are_counted():
    texts = {"I GO": 2, "IT'S 3D": 3, "WELL-KNOWN AND/OR": 2, "Go, U.S. (NASA)!": 2, "CANNOT": 2, "3, 4": 0}
    assert {text: capital_words(text) for text in texts} == texts


def test_a_text_without_letters_or_known_words_has_no_language():
    assert [language(text) for text in ("", "12 + 3", "zzz qqq")] == ["", "", ""]
    assert [language(text) for text in ("日本語のテキストです", "这是中文的句子", "και το είναι")] == [
        "ja",
        "zh",
        "el",
    ]
