"""The plan of runs that teach a pipeline by given pictures: batches, and what draws the model's own pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.commands.plan import Hardware
from lightrft.commands.plan.kinds import offline_plan_of
from lightrft.config import RUNS, DPOConfig, SFTConfig, layers
from lightrft.strategy.memory import Phase
from tests.pipelines import sd3_pipeline, wan_pipeline

LARGE = ["--update.tokens-per-micro-batch", "100000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline") / "saved"
    sd3_pipeline().save_pretrained(place)
    return place


def planned(folder, kind, *flags, devices=1, memory=8.0):
    command = next(name for name, one in RUNS.items() if one is kind)
    size = ["--pictures.height", "16", "--pictures.width", "16", "--pictures.max-text-tokens", "8"]
    task = {SFTConfig: "digit_pictures", DPOConfig: "digit_pairs"}[kind]
    own = [f"diffusion_{command}", "--model.path", str(folder), "--tasks.train", task, "1", *size]
    return offline_plan_of(
        layers.load([*own, "--batch-size", "8", *LARGE, *flags], kind), Hardware(devices, memory), 0, 0
    )


@pytest.mark.parametrize(("kind", "rows"), [(SFTConfig, 2), (DPOConfig, 4)])
def test_a_batch_is_no_larger_than_the_pictures_that_there_are(folder, kind, rows):
    """Two levels of noise for each picture, and two pictures of a pair; 8 texts a step, 64 held-out ones at once."""
    one, four = (
        planned(folder, kind, "--pictures.levels", "2", "--evaluate.limit", "0", devices=n) for n in (1, 4)
    )
    assert (one.trained, one.scored) == (8 * rows, 64 * rows)
    assert (four.trained, four.scored) == (2 * rows, 64 * rows)
    sizes = {item.name: item.bytes for item in one.items}
    assert sizes[f"activations, {8 * rows} noised pictures"] == one.model.training(8 * rows)
    assert sizes["activations, no gradient"] == one.model.computing(64 * rows)
    budget = str(3 * one.model.positions)
    small = planned(folder, kind, "--update.tokens-per-micro-batch", budget)
    assert small.trained == small.scored == 3
    assert planned(folder, kind, "--evaluate.limit", "5").scored == {SFTConfig: 5, DPOConfig: 16}[kind]


def test_a_device_draws_its_share_of_the_held_out_texts_and_decodes_it(folder):
    asked = ["--log.held-out-prompts", "1000", "--evaluate.limit", "0"]
    assert planned(folder, SFTConfig, *asked).drawn == 64
    assert planned(folder, SFTConfig, "--log.held-out-prompts", "16", devices=4).drawn == 4
    found = planned(folder, SFTConfig, "--log.held-out-prompts", "16")
    items = {item.name: item for item in found.items}
    assert items["drawing 16 pictures at once"].bytes == found.model.computing(16)
    assert items["decoding a picture"].bytes > 0
    assert items["decoding a picture"].phases == (Phase.ROLLOUT,)
    guided = planned(folder, SFTConfig, "--log.held-out-prompts", "16", "--pictures.guidance", "3")
    assert guided.model.training(3) == found.model.training(3)
    drawn = {item.name: item.bytes for item in guided.items}["drawing 16 pictures at once"]
    assert drawn > items["drawing 16 pictures at once"].bytes


def test_what_draws_too_much_is_told_with_the_setting_of_pictures(folder):
    found = planned(
        folder, SFTConfig, "--log.held-out-prompts", "64", "--update.tokens-per-micro-batch", "24"
    )
    sizes = found.sums
    learning = max(sizes[Phase.SCORE], sizes[Phase.TRAIN])
    assert learning < sizes[Phase.ROLLOUT]
    between = (sizes[Phase.ROLLOUT] + learning) / 2 / 2**30
    tight = replace(found, hardware=Hardware(1, between, reserve=0.0))
    assert "Lower log.held_out_prompts, or set pictures.sampled_steps=0." in tight.problems[-1]


@pytest.mark.parametrize("kind", [SFTConfig, DPOConfig])
def test_clips_are_read_with_all_their_frames(kind, tmp_path):
    """16 x 16 pixels of 5 frames are 8 x 8 numbers of 3, of 9 frames of 5, and a position is 2 x 2 of them; 8 are of text."""
    wan_pipeline().save_pretrained(tmp_path)
    short, long = (planned(tmp_path, kind, "--pictures.frames", frames) for frames in ("5", "9"))
    assert (short.model.positions, long.model.positions) == (3 * 16 + 8, 5 * 16 + 8)
    assert short.encoder.working < long.encoder.working
