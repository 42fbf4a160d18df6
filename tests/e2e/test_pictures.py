"""A tiny pipeline learns by the same commands as a language model: trained, resumed, replayed, evaluated and looked at."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.models.tiny_pictures import make_pipeline
from tests.e2e.runs import PLAIN, Lightrft, steps

SMALL = (
    "digits_sd3", *PLAIN, "--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--evaluate.samples", "2",
    "--evaluate.limit", "4", "--checkpoint.every-steps", "2",
)  # fmt: skip


def weights(run):
    return load_file(run / "model/transformer/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A pipeline that was hardly taught, since what it draws does not matter here."""
    folder = tmp_path_factory.mktemp("digits") / "pipeline"
    make_pipeline(folder, updates=5)
    return folder


@pytest.fixture(scope="module")
def run(server, pipeline, tmp_path_factory):
    """Three steps, of which the second is captured."""
    place = tmp_path_factory.mktemp("pictures")
    flags = ["--model.path", str(pipeline), "--run", "run", "--steps", "3", "--log.capture-steps", "2"]
    Lightrft(server, place)("train", *SMALL, *flags)
    return place / "run"


def test_before_the_first_update_ratio_and_mismatch_are_none_and_the_divergence_too(run):
    first, *later = steps(run)
    assert first["mismatch/max"] < 1e-3  # the sum over 64 numbers, each to rounding
    assert first["mismatch/ratio"] == pytest.approx(1, abs=1e-3)
    assert all(row["kl"] > first["kl"] >= 0 for row in later)
    assert first["length/mean"] == 4
    assert 0.05 < first["diversity/image"] < 1.5


def test_only_the_transformer_has_changed(run, pipeline):
    files = {f.relative_to(pipeline) for f in pipeline.rglob("*") if f.is_file()}
    assert files == {f.relative_to(run / "model") for f in (run / "model").rglob("*") if f.is_file()}
    changed = {str(f) for f in files if (pipeline / f).read_bytes() != (run / "model" / f).read_bytes()}
    assert changed == {"transformer/diffusion_pytorch_model.safetensors"}


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(lightrft, run, pipeline):
    flags = ["--model.path", str(pipeline), "--run", "cut", "--log.capture-steps", "2"]
    lightrft("train", *SMALL, *flags, "--steps", "2")
    lightrft("train", "--resume", "cut", "--steps", "3")
    found, whole = weights(lightrft.cwd / "cut"), weights(run)
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())


def test_a_captured_step_comes_out_the_same(lightrft, run):
    assert "equal bit for bit" in lightrft("replay", run, "--step", "2")


def test_pictures_are_saved_shown_and_evaluated(lightrft, run):
    assert (run / "evaluation/after.png").read_bytes().startswith(b"\x89PNG")
    assert {f.name for f in (run / "trajectories").glob("*.png")} == {f"step-{n:06d}.png" for n in (1, 2, 3)}
    assert "\u2580" * 8 in lightrft("view", run, "--step", "3", "--best", "1")
    report = json.loads((run / "evaluation/after.json").read_text())["digits"]
    assert report["responses"] == 8
    assert report["diversity"]["mean"] > 0.05


def test_what_is_drawn_now_is_what_the_written_folder_draws(lightrft, run):
    flags = [
        "--model.path",
        str(run / "model"),
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
    before = json.loads((run / "evaluation/after.json").read_text())["digits"]
    assert json.loads(found.read_text())["digits"]["diversity"]["mean"] == pytest.approx(
        before["diversity"]["mean"], abs=1e-4
    )


def test_algorithms_of_language_models_learn_from_pictures_without_a_line(lightrft, pipeline):
    rows = {
        "rloo": ["rloo", "--rollout.max-tokens", "4"],
        "gspo": ["gspo"],
        "late": ["--replay.groups-per-step", "2", "--rollout.overlap-rewards=false"],
        "window": [
            "flow_grpo_fast",
            "--rollout.denoise.max-text-tokens",
            "1",
            "--rollout.denoise.likelihood",
            "mean",
        ],
    }
    for name, (first, *flags) in rows.items():
        layer = [first] if not first.startswith("-") else []
        rest = flags if layer else [first, *flags]
        command = [
            SMALL[0],
            *layer,
            *SMALL[1:],
            *rest,
            "--model.path",
            str(pipeline),
            "--run",
            name,
            "--steps",
            "2",
        ]
        lightrft("train", *command, "--evaluate.before-and-after=false", "--checkpoint.every-steps", "0")
        assert all(row["grad_norm"] > 0 for row in steps(lightrft.cwd / name)), name
