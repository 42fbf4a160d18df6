"""A judge in words that sees the pictures of prompts: taught, then asked in training, here and behind HTTP."""

import json

import numpy

from tests.e2e.runs import PLAIN, steps
from tests.e2e.test_media_learning import KINDS, picture
from tests.e2e.test_remote_rewards import served

QUIET = [
    "--log.tensorboard=false",
    "--log.curves=false",
    "--log.progress=false",
    "--evaluate.before-and-after",
    "false",
    "--evaluate.every-steps",
    "0",
]
SCORES = {"7": "1", "a": "8"}
JUDGE = ["--judge.path", "taught/model", "--judge.template", "judge.txt", "--judge.max-tokens", "1"]
JUDGE += ["--judge.score-pattern", "([0-9])", "--judge.max-score", "8"]


def data(folder):
    """Pictures to be judged by, and to be asked about."""
    draw, lines = numpy.random.default_rng(1), {"judged": [], "asked": []}
    for name, count in (("judged", 64), ("asked", 16)):
        for n in range(count):
            kind = list(KINDS)[n % 2]
            picture(folder / f"{name}-{n}.png", kind, draw)
            said = "".join(draw.choice(list("0123456789abcdefghijklmnopqrstuvwxyz"), 2))
            parts = [{"type": "image", "image": f"{name}-{n}.png"}]
            texts = ["?", said] if name == "judged" else ["?"]
            content = [*parts, *({"type": "text", "text": text} for text in texts)]
            target = SCORES[kind] if name == "judged" else kind
            lines[name].append({"prompt": [{"role": "user", "content": content}], "target": target})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[name]))
    (folder / "judge.txt").write_text("{question}{answer}")


def given(folder):
    """(target of the prompt, reward) of each saved response."""
    rows = [
        json.loads(line)
        for path in sorted((folder / "trajectories").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [(row["target"], row["reward"]) for row in rows]


def test_a_judge_sees_what_the_prompt_shows_here_and_elsewhere(lightrft, tmp_path):
    """Scores depend on pictures alone, which the judge is not told of in words; an untaught eye would score both kinds alike."""
    data(tmp_path)
    taught = ["--tasks.train", "file", "1", "--tasks.train-file", "judged.jsonl", "--steps", "60"]
    taught += ["--batch-size", "16", "--optimizer.learning-rate", "3e-3", "--model", "random:llava"]
    lightrft("sft", "sft_tiny", *QUIET, *taught, "--run", "taught")
    run = [
        "train",
        "tiny",
        *PLAIN,
        *QUIET,
        "--model",
        "random:llava",
        "--steps",
        "2",
        "--log.trajectories-every-steps",
        "1",
    ]
    run += ["--tasks.train", "file", "1", "--tasks.train-file", "asked.jsonl", "--rollout.max-tokens", "4"]
    run += ["--rollout.prompts-per-step", "8", "--rollout.group-size", "4", "--rewards.on-failure", "drop"]
    lightrft(*run, *JUDGE, "--rewards.functions", "judge", "1", "--run", "own")
    found = given(tmp_path / "own")
    right = [abs(reward - int(SCORES[target]) / 8) < 1e-6 for target, reward in found]
    assert len(found) == 64
    assert sum(right) / len(right) > 0.9
    far = ["--rewards.functions", "far", "1", "--remote.send-media", "true"]
    with served(tmp_path, *JUDGE, "--rewards.functions", "judge", "1", "--tasks.train") as address:
        lightrft(*run, *far, "--remote.urls", "far", f"{address}#judge", "--run", "run")
    assert given(tmp_path / "run") == found
    rewards = [[row["reward/mean"] for row in steps(tmp_path / name)] for name in ("own", "run")]
    assert rewards[0] == rewards[1]
