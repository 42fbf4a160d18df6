"""A judge that compares responses, end to end: in training and after a resume, in `check`, in `lightrft judge`, as the policy itself."""

import json

import pytest

from lightrft.runs.reader import Run
from tests.e2e.runs import PLAIN

ENGINE = '''
"""Says of two answers that the one with more letters e is better; a colon alone is better than anything."""
from lightrft.types import Completion


class Counting:
    def __init__(self, module, processor, config):
        self.processor = processor

    def generate(self, prompts, sampling, progress=None):
        return [[self.reply(prompt)] for prompt in prompts]

    def reply(self, prompt):
        said = self.processor.text(prompt.token_ids)
        one, other = (said.split(f"[Answer {x}]\\n")[1].split("\\n\\n[")[0] for x in "AB")
        worth = [{":": 99, "Thought process:": -1, "Score: 10": -1}.get(text, text.count("e")) for text in (one, other)]
        text = f"Answer: {'A' if worth[0] > worth[1] else 'B' if worth[0] < worth[1] else 'A'}"
        tokens = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return Completion(tokens, [0.0] * len(tokens), "stop")
'''
JUDGE = [
    "--judge.path",
    "random:llama",
    "--judge.engine",
    "counting.py:Counting",
    "--judge.max-length",
    "2000",
]
REWARD = ["--rewards.functions", "judge", "1"]
OFF = ["--evaluate.before-and-after", "false", "--evaluate.every-steps", "0"]
RUN = ["tiny", *PLAIN, "--steps", "2", "--checkpoint.every-steps", "0", "--run", "run"]


@pytest.fixture(autouse=True)
def engine(tmp_path):
    (tmp_path / "counting.py").write_text(ENGINE)


def steps_of(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "reward/mean" in row]


def win_rates(texts, rivals):
    """By hand: the mean over the next and the previous `rivals` of the ring, all of them once."""
    n = len(texts)
    near = {k: {(k + s) % n for d in range(1, rivals + 1) for s in (d, -d)} - {k} for k in range(n)}
    count = [t.count("e") if t.strip() != ":" else 99 for t in texts]
    return [
        sum((count[k] > count[m]) + 0.5 * (count[k] == count[m]) for m in near[k]) / len(near[k])
        for k in near
    ]


def test_siblings_are_compared_by_a_ring_and_a_run_resumes_with_it(lightrft, tmp_path):
    options = [*JUDGE, *REWARD, *OFF, "--judge.against", "siblings", "--judge.rivals", "1"]
    lightrft("train", *RUN, *options)
    run = Run(tmp_path / "run")
    assert len(run.steps) == 2
    for step in run.steps:
        groups = {}
        for row in run.responses(step):
            groups.setdefault(row["group"], []).append(row)
        for group in groups.values():
            assert [row["reward"] for row in group] == pytest.approx(
                win_rates([r["response"] for r in group], 1)
            )
    lightrft("train", "--resume", "run", "--steps", "3")
    rows = steps_of(tmp_path)
    assert len(rows) == 3
    for row in rows:
        assert row["reward/mean"] == pytest.approx(0.5)
        assert 0 <= row["counts/judge_contradictions"] <= row["counts/judge_comparisons"]
        assert row["counts/judge_failed_comparisons"] == 0


def test_pairs_teach_a_judge_by_sft_and_by_reinforcement_and_what_is_right_gets_full_marks(
    lightrft, tmp_path
):
    rows = [
        {"prompt": f"{n}?", "chosen": f"{n}", "rejected": "x", "rationale": "So {chosen}."} for n in range(16)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = ["--tasks.format", "lightrft.datasets.preferences:judged"]
    tasks = ["--tasks.train", "file", "1", "--tasks.train-file", "pairs.jsonl", *form, *OFF]
    quiet = [word for word in PLAIN if word.startswith("--log")]
    lightrft("sft", "sft_tiny", *quiet, *tasks, "--steps", "1", "--max-tokens", "64", "--run", "taught")
    (row,) = (json.loads(line) for line in (tmp_path / "taught" / "metrics.jsonl").read_text().splitlines())
    assert row["length/mean"] == len("So A.\nAnswer: A") + 1
    choice = ["--rewards.functions", "choice", "1"]
    lightrft("train", *RUN, *tasks, "--model.path", "taught/model", *choice, "--steps", "1")
    assert len(steps_of(tmp_path)) == 1
    out = lightrft("evaluate", "file", *tasks[: -len(OFF)], "--check", "--tasks.rewards", "choice", "1")
    assert "16 of 16 gold answers score full marks" in out


def test_a_policy_that_judges_and_names_no_letter_is_a_named_failure(lightrft):
    options = ["--judge.path", "policy", "--judge.max-length", "2000", "--judge.max-tokens", "4", *REWARD]
    out = lightrft("train", *RUN, *options, "--judge.against", "siblings", status=2)
    assert "reward 'judge' failed" in out
    assert "the judge named neither A nor B" in " ".join(out.split())


def test_check_names_what_is_compared_and_what_fools_the_judge(lightrft, tmp_path):
    rows = [{"prompt": f"Say {n}", "target": "e" * n} for n in range(1, 17)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = ["--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl"]
    out = lightrft("check", "tiny", *PLAIN, *tasks, *JUDGE, *REWARD, *OFF, "--judge.against", "target")
    told = " ".join(out.split())
    assert "responses compared with what is right in both orders" in told
    assert "answers that say nothing" in told
    assert "reward 'judge' gives more to ':' than to a wrong answer" in told


def test_lightrft_judge_asks_both_orders_and_tells_contradictions_and_fools(lightrft, tmp_path):
    rows = [
        {"prompt": "1?", "chosen": "eee", "rejected": "e"},
        {"prompt": "2?", "chosen": "ee", "rejected": "x"},
        {"prompt": "3?", "chosen": "x", "rejected": "e"},
        {"prompt": "4?", "chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [*JUDGE, *REWARD, "--judge.against", "siblings", "--rewards.workers", "0"]
    out = lightrft("judge", "pairs.jsonl", *options, "--out", "out.json")
    assert "contradict each other in 25.0% of 4 comparisons" in out
    assert "Right in both orders: 50.0%" in out
    assert "Warning: reward 'judge' gives more to ':' than to a wrong answer" in out
    said = json.loads((tmp_path / "out.json").read_text())
    found = said["rewards"]["judge"]["all"]
    assert (found["accuracy"], found["tied"], found["right_in_both_orders"]) == (0.625, 0.25, 0.5)
    assert (found["both_orders_low"], found["both_orders_high"]) == pytest.approx((0.150, 0.850), abs=1e-3)
    assert [fool["text"] for fool in said["fools"]["judge"] if fool["score"] > fool["wrong"]] == [":"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--judge.against", "target", "--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl"],
            "judge.against=target compares responses with the target, and file/rows.jsonl:1 has none",
        ),
        (["--judge.against", "siblings", "--judge.rivals", "9"], "judge.rivals=9: a response has 3 siblings"),
        (["remax", "--judge.against", "siblings"], "compares with a response that is judged alone"),
    ],
)
def test_what_cannot_be_compared_is_named_before_anything_loads(lightrft, tmp_path, options, told):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1"}\n')
    layer = [word for word in options if word == "remax"]
    flags = [*(word for word in options if word not in layer), "--tasks.target-field", ""]
    out = lightrft("train", "tiny", *layer, *RUN[1:], *JUDGE, *REWARD, *flags, *OFF, status=2)
    assert told in " ".join(out.split())
