"""`lightrft sft` of a pipeline: the held-out error falls, it resumes bit for bit, and adapters and two processes learn as they should."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.datasets import response_file
from tests.e2e.runs import GIVEN_PICTURES, cut_back, rows
from tests.pipelines import wan_pipeline
from tests.unit.media.test_parts import write_clip

FILE = "diffusion_pytorch_model.safetensors"
RUN = GIVEN_PICTURES
QUIET = ("--log.held-out-prompts", "0", "--pictures.sampled-steps", "28")
FSDP = ("--strategy.backend", "fsdp", "--processes", "2")


def updates(run):
    return [row for row in rows(run) if "grad_norm" in row]


def weights(folder):
    return load_file(folder / "model/transformer" / FILE)


def test_the_held_out_error_falls_and_the_network_alone_changes(taught_to_draw, drawn_pipeline):
    told = json.loads((taught_to_draw / "summary.json").read_text())
    assert told["held_out_error"]["after"] < told["held_out_error"]["before"]
    assert told["held_out_error_by_task"]["after"]["digit_pictures"] == told["held_out_error"]["after"]
    assert all(
        row["grad_norm"] > 0 and row["error"] == pytest.approx(row["loss"]) for row in updates(taught_to_draw)
    )
    changed = {
        str(f.relative_to(drawn_pipeline))
        for f in drawn_pipeline.rglob("*")
        if f.is_file()
        and f.read_bytes() != (taught_to_draw / "model" / f.relative_to(drawn_pipeline)).read_bytes()
    }
    assert changed == {f"transformer/{FILE}"}


def test_its_own_pictures_are_saved_beside_those_of_the_data_and_shown(lightrft, taught_to_draw):
    found = response_file.read(taught_to_draw / "trajectories/step-000004.parquet")
    assert [row["origin"] for row in found] == ["sampled", "given"] * 2
    assert [bool(row.get("made")) for row in found] == [True, False] * 2
    assert found[1]["parts"]["error"] > 0
    assert (taught_to_draw / "trajectories/step-000004.png").read_bytes().startswith(b"\x89PNG")
    assert "\u2580" * 8 in lightrft("view", taught_to_draw, "--step", "4", "--group", "0")


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(lightrft, taught_to_draw):
    cut_back(taught_to_draw, lightrft.cwd / "cut", step=3)
    lightrft("sft", "--resume", "cut")
    found, right = weights(lightrft.cwd / "cut"), weights(taught_to_draw)
    assert all(torch.equal(found[name], weight) for name, weight in right.items())
    assert updates(lightrft.cwd / "cut") == updates(taught_to_draw)


def test_clips_are_learned_and_shown_beside_those_that_are_drawn(lightrft, tmp_path):
    """Rows with files of clips; one is too short, and skipped."""
    wan_pipeline().save_pretrained(tmp_path / "wan")
    made = [write_clip(tmp_path / f"{n}.mp4", seconds=n, fps=4, size=(16, 16)) for n in (1, 2, 3, 4)]
    said = [[{"role": "assistant", "content": [{"type": "video", "video": str(clip)}]}] for clip in made]
    asked = [{"prompt": f"clip {n}", "response": one} for n, one in enumerate(said)]
    for name, some in (("learned", asked[:3]), ("held", asked[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    files = (
        "--tasks.train-file",
        tmp_path / "learned.jsonl",
        "--tasks.evaluate-file",
        tmp_path / "held.jsonl",
    )
    size = (
        "--pictures.height",
        "16",
        "--pictures.width",
        "16",
        "--pictures.frames",
        "5",
        "--pictures.fps",
        "4",
    )
    told = lightrft(
        "sft", "--model.path", tmp_path / "wan", "--tasks.train", "file", "1", "--tasks.evaluate", "file", "1", *files, *size, "--steps", "2",
        "--batch-size", "2", "--tasks.on-bad-record", "skip", "--pictures.max-text-tokens", "8", "--pictures.sampled-steps", "2", "--log.held-out-prompts", "1",
        "--log.tensorboard=false", "--log.curves=false", "--log.progress=false", "--run", "run",
    )  # fmt: skip
    assert "1.mp4: 4 frames in 1 s, where 5 at 4 to a second are taken" in told
    assert [row["error"] > 0 for row in updates(lightrft.cwd / "run")] == [True, True]
    given = response_file.read(lightrft.cwd / "run/trajectories/step-000002.parquet")[1]
    (copy,) = (lightrft.cwd / "run/media").glob("*.webp")
    assert copy.name in json.dumps(given)
    assert "[video 4.mp4]" in lightrft("view", "run", "--step", "2")


def test_the_plan_of_such_a_run_is_shown(lightrft, drawn_pipeline):
    told = lightrft("plan", "sft", *RUN[:1], "--model.path", drawn_pipeline, "--gpus", "1", "--json")
    found = json.loads(told)
    names = {item["name"] for item in found["memory"]["items"]}
    assert {"weights", "optimizer", "gradients"} <= names
    assert found["problems"] == []
    refused = ["plan", "sft", *RUN[:1], "--model.path", drawn_pipeline, "--gpus", "1", "--prompt-tokens", "9"]
    assert "Leave it out, and set pictures.max_text_tokens" in lightrft(*refused, status=2)


@pytest.mark.extended
@pytest.mark.parametrize("more", [[], ["--model.lora.rank", "2", "--optimizer.learning-rate", "1e-2"]])
def test_two_processes_learn_what_one_does_with_and_without_adapters(lightrft, drawn_pipeline, more):
    own = [*RUN, *QUIET, "--model.path", drawn_pipeline, "--steps", "3", *more]
    lightrft("sft", *own, "--run", "one")
    lightrft("sft", *own, *FSDP, "--run", "two")
    for mine, theirs in zip(updates(lightrft.cwd / "one"), updates(lightrft.cwd / "two"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    found, other = (weights(lightrft.cwd / name) for name in ("one", "two"))
    began = load_file(drawn_pipeline / "transformer" / FILE)
    moved = max((found[n] - w).abs().max().item() for n, w in began.items())
    apart = torch.cat([(found[n] - w).abs().flatten() for n, w in other.items()])
    assert moved > 1e-3
    # A weight whose gradient is nothing but rounding may go either way: Adam divides by its size.
    assert (apart > 0.05 * moved).float().mean() < 1e-3


@pytest.mark.extended
def test_adapters_alone_learn_and_are_resumed_bit_for_bit(lightrft, drawn_pipeline):
    own = [*RUN, *QUIET, "--model.path", drawn_pipeline, "--model.lora.rank", "2", "--steps", "3"]
    lightrft("sft", *own, "--run", "whole")
    cut_back(lightrft.cwd / "whole", lightrft.cwd / "cut", step=2)
    lightrft("sft", "--resume", "cut")
    found, right = (weights(lightrft.cwd / name) for name in ("cut", "whole"))
    assert all(torch.equal(found[name], weight) for name, weight in right.items())
    began = load_file(drawn_pipeline / "transformer" / FILE)
    changed = {name for name, weight in began.items() if not torch.equal(weight, right[name])}
    assert changed
    assert all(name.startswith("transformer_blocks.") and name.endswith(".weight") for name in changed)
