"""Search: BM25 is its formula, and replies hold the passages that fit best."""

import json
import math
import random
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig
from lightrft.environments.episodes import Episodes
from lightrft.environments.search import BM25, Search, words

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared/data/search_xquad"
TEXTS = ["the red fox", "the blue whale and the red bus", "a fox is a fox", "", "nothing here"]


def by_formula(texts, query, k1=1.2, b=0.75):
    """Scores of all passages, term by term."""
    passages = [words(text) for text in texts]
    average = sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        score = 0.0
        for word in words(query):
            n, f = sum(word in other for other in passages), passage.count(word)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(passage) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_the_ranking_is_that_of_the_formula(seed):
    draw = random.Random(seed)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(0, 12))) for _ in range(15)] + TEXTS
    query = " ".join(draw.choices("abcdefgh", k=3)) + " fox"
    scores = by_formula(texts, query)
    best = BM25(texts).best(query, 5)
    right = sorted((i for i in range(len(texts)) if scores[i] > 0), key=lambda i: (-scores[i], i))[:5]
    assert [scores[i] for i in best] == pytest.approx([scores[i] for i in right])


def test_a_reply_shows_the_best_passages_and_no_others(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"title": f"T{n}", "text": text}) for n, text in enumerate(TEXTS)))
    search = Search(str(corpus), top=2, calls="tags")
    said, _, done, _, info = search.step("<search>fox</search>")
    assert said == [{"role": "tool", "content": "[1] T2: a fox is a fox\n[2] T0: the red fox"}]
    assert (done, info["counts"]) == (False, {"calls": 1, "errors": 0})
    assert search.step("<search>zebra</search>")[0][0]["content"] == "(nothing was found)"
    assert search.step("It is a fox.")[2]


def test_a_folder_of_texts_is_a_corpus(tmp_path):
    (tmp_path / "a.md").write_text("red fox")
    (tmp_path / "b.txt").write_text("blue whale")
    (tmp_path / "c.bin").write_text("fox")
    with Episodes(EnvironmentConfig(name="search", options={"corpus": str(tmp_path)}, workers=0)) as episodes:
        assert [s["function"]["name"] for s in episodes.schemas()] == ["search"]
        ((episode, _),) = episodes.begin([(0, {})])
        call = '<tool_call>{"name": "search", "arguments": {"query": "fox"}}</tool_call>'
        (reply,) = episodes.step([(episode, call, False)])
    assert reply.messages == ({"role": "tool", "content": "[1] a.md: red fox"},)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("", "holds no text"),
        ("{\n", ":1: no JSON"),
        ('{"body": "x"}', "a field 'text'"),
        ('{"text": 5}', "is no text"),
    ],
)
def test_a_corpus_that_is_none_is_refused_by_file_and_line(content, told, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    if content is not None:
        corpus.write_text(content)
    options = EnvironmentConfig(name="search", options={"corpus": str(corpus)}, workers=0)
    with Episodes(options) as episodes, pytest.raises(ValueError, match=told):
        episodes.schemas()


def test_an_index_of_ones_own_takes_the_place_of_the_ranking(tmp_path):
    """A dense one finds what no word is shared with."""
    pytest.importorskip("sklearn", reason="the package scikit-learn is not installed")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    dense = f"{ROOT}/examples/dense_index.py:Dense"
    misspelt = "<search>whales</search>"
    assert Search(str(corpus), calls="tags").step(misspelt)[0][0]["content"] == "(nothing was found)"
    found = Search(str(corpus), top=1, index=dense, calls="tags").step(misspelt)[0][0]["content"]
    assert found == "[1] the blue whale and the red bus"


def test_an_index_that_is_none_is_refused(tmp_path):
    (tmp_path / "corpus.md").write_text("red fox")
    for index, told in (
        (f"{__file__}:words_of", r"index=.*:words_of makes nothing with a method best"),
        ("bm26", "bm26"),
    ):
        with pytest.raises(ValueError, match=told):
            Search(str(tmp_path), index=index)


def words_of(texts):
    return list(texts)


def test_of_real_questions_most_find_their_passage():
    """At least 92 % of the questions of XQuAD find it first."""
    if not REAL.is_dir():
        pytest.skip("no real data here: ../shared/data/search_xquad")
    rows, questions = (
        [json.loads(line) for line in (REAL / f"{name}.jsonl").read_text().splitlines()]
        for name in ("corpus", "qa")
    )
    index = BM25([f"{row['title']}: {row['text']}" for row in rows])
    found = sum(rows[index.best(q["question"], 1)[0]]["id"] == q["gold_doc"] for q in questions)
    assert found / len(questions) >= 0.92
