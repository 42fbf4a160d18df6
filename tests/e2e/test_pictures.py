"""A tiny pipeline learns by the same commands as a language model: trained, resumed, replayed, evaluated and looked at."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from tests.e2e.runs import DRAWING, PLAIN, steps

FILE = "diffusion_pytorch_model.safetensors"


def weights(run):
    return load_file(run / "model/transformer" / FILE)


def test_before_the_first_update_ratio_and_mismatch_are_none_and_the_divergence_too(drawing_run):
    first, *later = steps(drawing_run)
    assert first["mismatch/max"] < 1e-3  # the sum over 64 numbers, each to rounding
    assert first["mismatch/ratio"] == pytest.approx(1, abs=1e-3)
    assert all(row["kl"] > first["kl"] >= 0 for row in later)
    assert first["length/mean"] == 4
    assert 0.05 < first["diversity/image"] < 1.5


def test_only_the_transformer_has_changed(drawing_run, drawn_pipeline):
    files = {f.relative_to(drawn_pipeline) for f in drawn_pipeline.rglob("*") if f.is_file()}
    assert files == {
        f.relative_to(drawing_run / "model") for f in (drawing_run / "model").rglob("*") if f.is_file()
    }
    changed = {
        str(f) for f in files if (drawn_pipeline / f).read_bytes() != (drawing_run / "model" / f).read_bytes()
    }
    assert changed == {"transformer/diffusion_pytorch_model.safetensors"}


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(lightrft, drawing_run, drawn_pipeline):
    flags = ["--model.path", str(drawn_pipeline), "--run", "cut", "--log.capture-steps", "2"]
    lightrft("train", *DRAWING, *flags, "--steps", "2")
    lightrft("train", "--resume", "cut", "--steps", "3")
    found, whole = weights(lightrft.cwd / "cut"), weights(drawing_run)
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())


@pytest.mark.extended
@pytest.mark.parametrize("layer", ["grpo_guard", "flow_grpo_noise_aware", "diffusion_nft"])
def test_a_run_with_weighted_steps_is_resumed_and_replayed_bit_for_bit(lightrft, drawn_pipeline, layer):
    flags = [
        DRAWING[0], layer, *DRAWING[1:], "--model.path", str(drawn_pipeline), "--log.capture-steps", "2",
        "--rollout.denoise.max-text-tokens", "1", "--evaluate.before-and-after=false",
    ]  # fmt: skip
    lightrft("train", *flags, "--run", "whole", "--steps", "3")
    lightrft("train", *flags, "--run", "parted", "--steps", "2")
    lightrft("train", "--resume", "parted", "--steps", "3")
    found, whole = weights(lightrft.cwd / "parted"), weights(lightrft.cwd / "whole")
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())
    assert "equal bit for bit" in lightrft("replay", lightrft.cwd / "parted", "--step", "2")
    assert all(row["grad_norm"] > 0 and row["mismatch/max"] < 1e-5 for row in steps(lightrft.cwd / "whole"))


def test_a_captured_step_comes_out_the_same(lightrft, drawing_run):
    assert "equal bit for bit" in lightrft("replay", drawing_run, "--step", "2")


def test_pictures_are_saved_shown_and_evaluated(lightrft, drawing_run):
    assert (drawing_run / "evaluation/after.png").read_bytes().startswith(b"\x89PNG")
    assert {f.name for f in (drawing_run / "trajectories").glob("*.png")} == {
        f"step-{n:06d}.png" for n in (1, 2, 3)
    }
    assert "\u2580" * 8 in lightrft("view", drawing_run, "--step", "3", "--best", "1")
    report = json.loads((drawing_run / "evaluation/after.json").read_text())["digits"]
    assert report["responses"] == 8
    assert report["diversity"]["mean"] > 0.05


def test_what_is_drawn_now_is_what_the_written_folder_draws(lightrft, drawing_run):
    flags = [
        "--model.path",
        str(drawing_run / "model"),
        "--evaluate.samples",
        "2",
        "--evaluate.limit",
        "4",
    ]
    denoise = [
        "--rollout.engine",
        "denoise",
        "--rollout.denoise.steps",
        "8",
        "--rollout.denoise.max-text-tokens",
        "1",
    ]
    lightrft("evaluate", "digits", *flags, *denoise, "--run", "again")
    found = next(lightrft.cwd.rglob("responses.json"))
    before = json.loads((drawing_run / "evaluation/after.json").read_text())["digits"]
    assert json.loads(found.read_text())["digits"]["diversity"]["mean"] == pytest.approx(
        before["diversity"]["mean"], abs=1e-4
    )


def test_algorithms_of_language_models_learn_from_pictures_without_a_line(lightrft, drawn_pipeline):
    rows = {
        "rloo": ["rloo", "--rollout.max-tokens", "4"],
        "window": [
            "flow_grpo_fast",
            "--rollout.denoise.max-text-tokens",
            "1",
            "--rollout.denoise.likelihood",
            "normed",
            "--rollout.denoise.weighting",
            "noise",
        ],
    }
    for name, (layer, *flags) in rows.items():
        own = ["--model.path", drawn_pipeline, "--run", name, "--steps", "2", "--checkpoint.every-steps", "0"]
        lightrft("train", DRAWING[0], layer, *DRAWING[1:], *flags, *own, "--evaluate.before-and-after=false")
        assert all(row["grad_norm"] > 0 for row in steps(lightrft.cwd / name)), name


def test_adapters_learn_and_a_checkpoint_is_exported_as_the_folder_that_the_run_wrote(
    lightrft, drawn_pipeline
):
    own = ["--model.path", drawn_pipeline, "--run", "adapted", "--steps", "2", "--model.lora.rank", "2"]
    lightrft("train", *DRAWING, *own, "--evaluate.before-and-after=false")
    assert all(row["grad_norm"] > 0 for row in steps(lightrft.cwd / "adapted"))
    lightrft("export", "adapted", "exported")
    found, written = (
        weights(lightrft.cwd / "adapted"),
        load_file(lightrft.cwd / "exported/transformer" / FILE),
    )
    began = load_file(drawn_pipeline / "transformer" / FILE)
    assert found.keys() == written.keys() == began.keys()
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in written.items())
    changed = {name for name, weight in began.items() if not torch.equal(weight, found[name])}
    assert changed
    assert all(name.startswith("transformer_blocks.") and name.endswith(".weight") for name in changed)


def test_a_run_is_checked_before_it_costs_anything(lightrft, drawn_pipeline):
    told = " ".join(lightrft("check", *DRAWING, "--model.path", drawn_pipeline).split())
    assert "4 prompts x 4 responses = 16 responses of at most 4 denoising steps" in told
    assert "engine and trainer agree" in told
    assert "sampled denoising steps" in told
    assert "4 denoising steps, stop" in told
    assert "tokens, stop" not in told
    assert "larger batch of its own" not in told
    assert "pictures/s, 8 at a time (measured)" in told
    assert "denoising steps/s, 16 at a time (measured)" in told
    assert "16 pictures of 4 learned steps" in told
    assert "states of the drawn steps" in told
    assert "the largest phase needs about" in told
    assert "ready" in told


def test_a_reward_model_that_was_taught_by_pairs_of_pictures_rates_what_is_drawn(lightrft, drawn_pipeline):
    taught = [
        "--model",
        "random:llava",
        "--tasks.train",
        "digit_pairs",
        "1",
        "--evaluate.limit",
        "8",
        "--steps",
        "2",
    ]
    lightrft("reward", "reward_tiny", *taught, *PLAIN[2:], "--batch-size", "4", "--run", "rated")
    rated = ["--reward_model.paths", "rated", "rated/model", "--rewards.functions", "rated", "1"]
    own = [*DRAWING, "--model.path", drawn_pipeline, *rated, "--run", "drawn", "--steps", "2"]
    lightrft("train", *own)
    found = steps(lightrft.cwd / "drawn")
    assert all(row["reward/rated"] == row["reward/mean"] and row["reward/std"] > 0 for row in found)
    assert all(row["grad_norm"] > 0 for row in found)
    report = json.loads((lightrft.cwd / "drawn/evaluation/after.json").read_text())["digits"]
    assert 0 <= report["score"]["mean"] <= 1  # the held-out score is that of the task: a program's
    lightrft("reward", "reward_tiny", *PLAIN[2:], "--steps", "1", "--run", "reads")
    blind = [*own[:-4], "--reward_model.paths", "rated", "reads/model"]
    assert "it reads text, and the responses hold image" in lightrft("train", *blind, status=2)
