"""The same trainer learns from pictures and from sounds; what it saw stays behind in words only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

from lightrft.models.tiny import tiny_model
from lightrft.runs import trajectories
from lightrft.runs.media import copy_of
from lightrft.runs.reader import Run
from tests.e2e.runs import PLAIN, steps, summary

Image = pytest.importorskip("PIL.Image")

RATE, SECONDS = 16_000, 0.5
KINDS = {"7": ("0123456789", 0), "a": ("abcdefghijklmnopqrstuvwxyz", 1)}
"""A right answer -> the characters that are as right, and the light or tone that asks for them."""
STEPS = [
    *("--steps", "40", "--optimizer.learning-rate", "3e-3", "--update.tokens-per-micro-batch", "4096"),
    *("--rollout.prompts-per-step", "8", "--rollout.group-size", "8", "--rollout.max-tokens", "4"),
    *("--checkpoint.every-steps", "20", "--evaluate.limit", "40"),
]
REWARD = '''
KINDS = {"7": "0123456789", "a": "abcdefghijklmnopqrstuvwxyz"}

def said(answer, target):
    """Share of the characters that are of the kind asked for."""
    return sum(c in KINDS[target] for c in answer) / max(1, len(answer))
'''


def picture(path, kind, draw):
    """Bright above and dark below, or the other way round."""
    pixels = draw.integers(0, 60, (28, 28, 3), dtype=numpy.uint8)
    half = slice(0, 14) if KINDS[kind][1] else slice(14, 28)
    pixels[half] += 180
    Image.fromarray(pixels).save(path)


def sound(path, kind, draw):
    """A high or a low tone."""
    soundfile = pytest.importorskip("soundfile")
    time = numpy.arange(int(RATE * SECONDS)) / RATE
    tone = numpy.sin(2 * numpy.pi * (300, 2500)[KINDS[kind][1]] * time + draw.uniform(0, 6))
    soundfile.write(path, 0.5 * tone, RATE)


def rows(folder, name, count, write, kind_of_medium, suffix):
    """A data file with questions that are all the same but for the medium."""
    draw = numpy.random.default_rng(len(name))
    (folder / "media").mkdir(exist_ok=True)
    lines = []
    for n in range(count):
        kind = list(KINDS)[n % 2]
        file = f"media/{name}-{n}{suffix}"
        write(folder / file, kind, draw)
        content = [{"type": kind_of_medium, kind_of_medium: file}, {"type": "text", "text": "?"}]
        lines.append(json.dumps({"prompt": [{"role": "user", "content": content}], "target": kind}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


FILES = [
    *(
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ),
    *("--tasks.rewards", "rewards.py:said", "1"),
]


@pytest.mark.parametrize(
    ("family", "kind", "write", "suffix"),
    [("llava", "image", picture, ".png"), ("qwen2_audio", "audio", sound, ".wav")],
    ids=["pictures", "sounds"],
)
def test_it_learns_to_answer_as_a_medium_asks(lightrft, tmp_path, family, kind, write, suffix):
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 60, write, kind, suffix)
    rows(tmp_path, "held", 40, write, kind, suffix)
    flags = ["--model", f"random:{family}", *FILES, *STEPS]
    lightrft("train", "tiny", "dr_grpo", *PLAIN, *flags, "--run", "run")
    score = summary(tmp_path / "run")["evaluation"]
    assert score["before"] < 0.3
    assert score["after"] > 0.75, "half is to be had without looking"
    assert max(row["mismatch/mean_abs"] for row in steps(tmp_path / "run")) < 0.01
    row = trajectories.load(tmp_path / "run", 40)[0]
    assert row["messages"][0]["content"][0][kind].endswith(suffix)


def test_a_frozen_tower_stays_as_it_was_and_plain_transformers_loads_the_rest_changed(lightrft, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 8, picture, "image", ".png")
    rows(tmp_path, "held", 8, picture, "image", ".png")
    flags = ["--model", "random:llava", *FILES, "--model.freeze", "vision", "--steps", "2"]
    lightrft("train", "tiny", *PLAIN, *flags, "--run", "run")
    saved = AutoModelForMultimodalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    before = tiny_model("llava").state_dict()
    changed = {name for name, value in saved.items() if not value.equal(before[name])}
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed)
    output = lightrft("evaluate", "file", "--model", "./run/model", *FILES[3:], "--evaluate.limit", "8")
    assert "file" in output


def test_a_run_about_pictures_goes_on_bit_for_bit_with_earlier_answers(lightrft, tmp_path):
    """Answers that are learned from again keep their pictures in the checkpoint."""
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 12, picture, "image", ".png")
    rows(tmp_path, "held", 4, picture, "image", ".png")
    flags = [
        "--model",
        "random:llava",
        *FILES,
        "--replay.groups-per-step",
        "2",
        "--checkpoint.every-steps",
        "2",
    ]
    lightrft("train", "tiny", *PLAIN, *flags, "--steps", "4", "--run", "whole")
    lightrft("train", "tiny", *PLAIN, *flags, "--steps", "2", "--run", "halves")
    lightrft("train", "--resume", "halves", "--steps", "4")
    whole, halves = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert all(value.equal(halves[name]) for name, value in whole.items())
    for file in (one for one in (tmp_path / "halves").rglob("*") if one.is_file()):
        assert str(tmp_path).encode() not in file.read_bytes(), f"{file}: it names a folder of this machine"
    run = Run(tmp_path / "halves")
    for row in [*run.evaluation("after").responses, *run.responses(-1)]:
        shown = row["messages"][0]["content"][0]
        assert shown["image"] == Path(shown["image"]).name
        assert copy_of(run.folder / "media", shown).is_file()


def test_what_an_engine_does_not_read_is_refused_before_it_or_any_weight_is_there(lightrft, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 4, sound, "audio", ".wav")
    rows(tmp_path, "held", 4, sound, "audio", ".wav")
    flags = ["--model", "random:qwen2_audio", *FILES, "--rollout.engine", "sglang"]
    for command in (["train", "tiny", *PLAIN, "--run", "run"], ["check", "tiny"]):
        out = " ".join(lightrft(*command, *flags, status=2 if command[0] == "train" else 1).split())
        assert "kind 'audio', and rollout.engine=sglang reads only: image, video" in out


def test_the_check_reads_some_media_and_names_what_cannot_be_read(lightrft, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 10, picture, "image", ".png")
    rows(tmp_path, "held", 4, picture, "image", ".png")
    flags = ["--model", "random:llava", *FILES]
    output = " ".join(lightrft("check", "tiny", *PLAIN, *flags).split())
    assert "media read for 10 of 10 prompts" in output
    assert "[image" in output, "the sampled answers show which picture was asked about"
    (tmp_path / "media" / "train-3.png").write_bytes(b"nothing")
    output = " ".join(lightrft("check", "tiny", *PLAIN, *flags, status=1).split())
    assert "the media of 1 of 10 prompts cannot be read" in output
    assert "the run would stop there" in output
    output = " ".join(
        lightrft("train", "tiny", *PLAIN, *flags, "--steps", "4", "--run", "stops", status=2).split()
    )
    assert "train-3.png" in output
    assert "tasks.on_bad_record=skip" in output
    lightrft("train", "tiny", *PLAIN, *flags, "--tasks.on-bad-record", "skip", "--run", "skips")
    assert len(steps(tmp_path / "skips")) == 4
