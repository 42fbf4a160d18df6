"""Reward models of pairs whose prompts, or whose responses, are pictures and sounds, from the command line."""

from __future__ import annotations

import json

import numpy

from tests.e2e.runs import PLAIN, model_bytes, rows, summary
from tests.e2e.test_media_learning import KINDS, picture, sound

QUIET = ["--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
FILES = [
    *("--tasks.train", "file", "1", "--tasks.train-file", "train.jsonl"),
    *("--tasks.evaluate-file", "held.jsonl", "--optimizer.learning-rate", "3e-3", "--batch-size", "8"),
]


def said(kind, draw):
    """Two characters of a kind."""
    return "".join(draw.choice(list(KINDS[kind][0]), 2))


def about_media(folder, name, count, write, medium, suffix):
    """Pairs of texts of which one fits the medium in the prompt."""
    draw, lines = numpy.random.default_rng(len(name)), []
    for n in range(count):
        kind, other = list(KINDS) if n % 2 else list(KINDS)[::-1]
        write(folder / f"{name}-{n}{suffix}", kind, draw)
        content = [{"type": medium, medium: f"{name}-{n}{suffix}"}, {"type": "text", "text": "?"}]
        lines.append(
            {
                "prompt": [{"role": "user", "content": content}],
                "target": kind,
                "chosen": said(kind, draw),
                "rejected": said(other, draw),
            }
        )
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def of_media(folder, name, count, write, medium, suffix):
    """Pairs of media to one text: the one that is bright below is better, and less safe."""
    draw, lines = numpy.random.default_rng(len(name)), []
    for n in range(count):
        responses, order = [], list(KINDS) if n % 2 else list(KINDS)[::-1]
        for kind in order:
            file = f"{name}-{n}-{kind}{suffix}"
            write(folder / file, kind, draw)
            responses.append([{"role": "assistant", "content": [{"type": medium, medium: file}]}])
        better = [1 if kind == "7" else 0 for kind in order]
        grades = {"general": better, "cost": [1 if one else -1 for one in better]}
        lines.append({"prompt": "Bright below", "responses": responses, "grades": grades})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_it_learns_which_of_two_pictures_is_better_and_which_is_safe(lightrft, tmp_path):
    for name, count in (("train", 32), ("held", 20)):
        of_media(tmp_path, name, count, picture, "image", ".png")
    graded = ["--tasks.format", "lightrft.datasets.preferences:graded"]
    flags = [*FILES, *graded, "--outputs", "general", "cost", "--signed", "cost", "--model", "random:llava"]
    lightrft("reward", "reward_tiny", *QUIET, *flags, "--steps", "12", "--run", "run")
    found = summary(tmp_path / "run")["pairs_by_task"]["after"]
    assert found["file/general/pairs"] == found["file/cost/pairs"] == 20
    assert found["file/general/accuracy"] > 0.9
    assert found["file/cost/accuracy"] > 0.9
    assert found["file/cost/sign_accuracy"] > 0.9
    assert found["file/general/longer_wins"] == 0.5
    rewards = ["--rewards.functions", "general", "1", "cost", "1", "length", "1"]
    models = ["--reward_model.paths", "general", "run/model", "cost", "run/model"]
    lightrft("judge", "held.jsonl", *graded, *models, *rewards, "--out", "judged.json")
    judged = json.loads((tmp_path / "judged.json").read_text())["rewards"]
    for name in ("general", "cost"):
        assert judged[name]["all"]["accuracy"] == found[f"file/{name}/accuracy"]
    assert judged["length"]["all"]["tied"] == 1.0


def test_pairs_about_sounds_are_learned_resumed_bit_for_bit_and_teach(lightrft, tmp_path):
    for name, count in (("train", 24), ("held", 8)):
        about_media(tmp_path, name, count, sound, "audio", ".wav")
    flags = [*FILES, "--model", "random:qwen2_audio", "--optimizer.schedule", "constant"]
    lightrft("reward", "reward_tiny", *QUIET, *flags, "--steps", "4", "--run", "whole")
    lightrft("reward", "reward_tiny", *QUIET, *flags, "--steps", "2", "--run", "half")
    lightrft("reward", "--resume", "half", "--steps", "4")
    assert model_bytes(tmp_path / "half") == model_bytes(tmp_path / "whole")
    taught = [*FILES[:7], "--model", "random:qwen2_audio", "--steps", "2", "--rollout.max-tokens", "4"]
    taught += ["--reward_model.paths", "rated", "whole/model", "--rewards.functions", "rated", "1"]
    lightrft("train", "tiny", *PLAIN, *taught, "--evaluate.before-and-after=false", "--run", "rl")
    assert len([row for row in rows(tmp_path / "rl") if "reward/rated" in row]) == 2
