"""`lightrft dpo` of a pipeline: it resumes bit for bit, learns with adapters, and two processes under FSDP2 learn what one learns."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from tests.e2e.runs import Lightrft, cut_back, rows
from tests.pipelines import sd_pipeline

FILE = "diffusion_pytorch_model.safetensors"
RUN = (
    "digits_dpo", "--batch-size", "6", "--evaluate.limit", "4", "--pictures.levels", "2", "--checkpoint.every-steps", "1",
    "--log.held-out-prompts", "0", "--log.tensorboard=false", "--log.curves=false", "--log.progress=false", "--optimizer.schedule", "constant",
)  # fmt: skip
FSDP = ("--strategy.backend", "fsdp", "--processes", "2")


def updates(run):
    return [row for row in rows(run) if "logp_shift/chosen" in row]


def weights(folder, part="transformer"):
    return load_file(folder / part / FILE)


@pytest.fixture(scope="module")
def whole(server, drawn_pipeline, tmp_path_factory):
    """The folder of three steps, which tests read and never change."""
    place = tmp_path_factory.mktemp("pairs")
    Lightrft(server, place)("dpo", *RUN, "--model.path", drawn_pipeline, "--steps", "3", "--run", "run")
    return place / "run"


def test_the_first_loss_is_ln_2_and_the_network_alone_changes(whole, drawn_pipeline):
    first, *later = updates(whole)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert all(row["grad_norm"] > 0 for row in [first, *later])
    assert any(row["logp_shift/chosen"] != 0 for row in later)
    changed = {
        str(f.relative_to(drawn_pipeline))
        for f in drawn_pipeline.rglob("*")
        if f.is_file() and f.read_bytes() != (whole / "model" / f.relative_to(drawn_pipeline)).read_bytes()
    }
    assert changed == {f"transformer/{FILE}"}


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(lightrft, whole, drawn_pipeline):
    cut_back(whole, lightrft.cwd / "cut", step=2)
    lightrft("dpo", "--resume", "cut")
    found, right = weights(lightrft.cwd / "cut/model"), weights(whole / "model")
    began = weights(drawn_pipeline)
    assert all(torch.equal(found[name], weight) for name, weight in right.items())
    assert any(not torch.equal(found[name], weight) for name, weight in began.items())
    assert updates(lightrft.cwd / "cut") == updates(whole)


def assert_same(one, two, began, part="transformer"):
    """Losses and weights of two runs to rounding, of which the first moved the weights of folder `began`."""
    for mine, theirs in zip(updates(one), updates(two), strict=True):
        for name in ("loss", "logp_shift/chosen", "logp_shift/rejected"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert mine["grad_norm"] > 0
    found, other, before = weights(one / "model", part), weights(two / "model", part), weights(began, part)
    moved = max((found[n] - w).abs().max().item() for n, w in before.items())
    apart = torch.cat([(found[n] - w).abs().flatten() for n, w in other.items()])
    assert moved > 0
    # A weight whose gradient is nothing but rounding may go either way: Adam divides by its size.
    assert (apart > 0.05 * moved).float().mean() < 1e-3
    assert apart.max() < moved


def test_a_checkpoint_is_exported_as_the_folder_that_the_run_wrote(lightrft, whole):
    lightrft("export", whole, "exported")
    found = {f.relative_to(whole / "model") for f in (whole / "model").rglob("*") if f.is_file()}
    assert all(
        (lightrft.cwd / "exported" / f).read_bytes() == (whole / "model" / f).read_bytes() for f in found
    )


@pytest.mark.extended
def test_two_processes_learn_what_one_does(lightrft, whole, drawn_pipeline):
    lightrft("dpo", *RUN, "--model.path", drawn_pipeline, "--steps", "3", *FSDP, "--run", "two")
    assert_same(whole, lightrft.cwd / "two", drawn_pipeline)


@pytest.mark.extended
def test_adapters_learn_with_the_bare_network_as_reference(lightrft, drawn_pipeline):
    own = [
        *RUN,
        "--model.path",
        drawn_pipeline,
        "--model.lora.rank",
        "2",
        "--optimizer.learning-rate",
        "3e-3",
    ]
    lightrft("dpo", *own, "--steps", "3", "--run", "one")
    first, *later = updates(lightrft.cwd / "one")
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert later[-1]["logp_shift/chosen"] != 0
    found, began = weights(lightrft.cwd / "one/model"), weights(drawn_pipeline)
    changed = {name for name, weight in began.items() if not torch.equal(weight, found[name])}
    assert found.keys() == began.keys()
    assert changed
    assert all(name.startswith("transformer_blocks.") and name.endswith(".weight") for name in changed)
    lightrft("export", "one", "exported")
    written = weights(lightrft.cwd / "exported")
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in written.items())
    lightrft("export", "one", "adapter", "--adapter")
    peft = json.loads((lightrft.cwd / "adapter/adapter_config.json").read_text())
    assert peft["r"] == 2


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["adapters", "unet"])
def test_two_processes_learn_what_one_does_with_adapters_and_of_a_unet(
    lightrft, drawn_pipeline, tmp_path, kind
):
    own = ["--model.path", drawn_pipeline, "--model.lora.rank", "2", "--optimizer.learning-rate", "3e-3"]
    began, part = drawn_pipeline, "transformer"
    if kind == "unet":
        began, part = tmp_path / "saved", "unet"
        sd_pipeline().save_pretrained(began)
        own = ["--model.path", began, "--pictures.max-text-tokens", "256", "--pictures.height", "16", "--pictures.width", "16"]  # fmt: skip
    lightrft("dpo", *RUN, *own, "--steps", "3", "--run", "one")
    lightrft("dpo", *RUN, *own, "--steps", "3", *FSDP, "--run", "two")
    assert_same(lightrft.cwd / "one", lightrft.cwd / "two", began, part)


@pytest.mark.extended
def test_adapters_are_resumed_bit_for_bit(lightrft, drawn_pipeline):
    own = [*RUN, "--model.path", drawn_pipeline, "--model.lora.rank", "2"]
    lightrft("dpo", *own, "--steps", "3", "--run", "whole")
    cut_back(lightrft.cwd / "whole", lightrft.cwd / "cut", step=2)
    lightrft("dpo", "--resume", "cut")
    found, right = (weights(lightrft.cwd / name / "model") for name in ("cut", "whole"))
    assert all(torch.equal(found[name], weight) for name, weight in right.items())
    assert updates(lightrft.cwd / "cut") == updates(lightrft.cwd / "whole")


def test_held_out_pairs_are_measured_at_both_ends(whole):
    told = json.loads((whole / "summary.json").read_text())
    before, after = (
        {name.rpartition("/")[2]: value for name, value in told["pairs_by_task"][end].items()}
        for end in ("before", "after")
    )
    assert told["pair_accuracy"] == {"before": before["accuracy"], "after": after["accuracy"]}
    assert (before["pairs"], before["tied"], before["accuracy"]) == (4, 1, 0.5), "nothing has moved yet"
    assert (after["pairs"], after["tied"]) == (4, 0), "the network that has learned prefers one of each pair"
    assert after["accuracy"] in (0, 0.25, 0.5, 0.75, 1), "of four pairs without a tie"
