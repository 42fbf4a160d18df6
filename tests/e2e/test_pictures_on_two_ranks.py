"""Under FSDP2 two processes learn what one learns, of every network and with adapters beside one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from tests.e2e.runs import steps
from tests.pipelines import (
    flux_pipeline,
    qwen_pipeline,
    sd3_pipeline,
    sd_pipeline,
    sdxl_pipeline,
    wan_pipeline,
)

ROWS = {
    "sd3 with adapters": (sd3_pipeline, "flow_grpo", ["--model.lora.rank", "2"]),
    "sd": (sd_pipeline, "dpok", ["--rollout.denoise.max-text-tokens", "256"]),
    "sdxl": (
        sdxl_pipeline,
        "ddpo",
        ["--rollout.denoise.max-text-tokens", "256", "--update.tokens-per-micro-batch", "9999"],
    ),
    "flux": (flux_pipeline, "flow_grpo", []),
    "qwen": (qwen_pipeline, "flow_grpo", ["--rollout.denoise.max-text-tokens", "48"]),
    "nft": (sd3_pipeline, "diffusion_nft", []),
    "wan": (wan_pipeline, "flow_grpo", ["--rollout.denoise.frames", "5"]),
}
RUN = (
    "--tasks.train", "digits", "1", "--rewards.functions", "digit", "1", "--rollout.denoise.height", "16", "--rollout.denoise.width", "16",
    "--rollout.denoise.max-text-tokens", "8", "--rollout.denoise.steps", "5", "--rollout.prompts-per-step", "4", "--rollout.group-size", "4",
    "--steps", "3", "--checkpoint.every-steps", "0", "--evaluate.before-and-after=false",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.extended if n == "nft" else ()) for n in ROWS]
)
def test_two_processes_learn_what_one_learns(lightrft, tmp_path, name):
    make, layer, flags = ROWS[name]
    make().save_pretrained(tmp_path / "pipeline")
    own = ["--model.path", tmp_path / "pipeline", *RUN, *flags]
    lightrft("train", layer, *own, "--run", "one")
    lightrft("train", layer, "fsdp", "--processes", "2", *own, "--run", "two")
    one, two = steps(lightrft.cwd / "one"), steps(lightrft.cwd / "two")
    assert [row["reward/mean"] for row in one] == [row["reward/mean"] for row in two]
    assert [row["grad_norm"] for row in one] == pytest.approx([row["grad_norm"] for row in two], rel=1e-4)
    assert any(row["grad_norm"] > 0 for row in one)
    part = "unet" if name.startswith("sd") and make is not sd3_pipeline else "transformer"
    found, other, began = (
        load_file(folder / part / "diffusion_pytorch_model.safetensors")
        for folder in (lightrft.cwd / "one/model", lightrft.cwd / "two/model", tmp_path / "pipeline")
    )
    moved = max((found[n] - w).abs().max().item() for n, w in began.items())
    apart = torch.cat([(found[n] - w).abs().flatten() for n, w in other.items()])
    assert moved > 0
    # A weight whose gradient is nothing but rounding may go either way: Adam divides by its size.
    assert (apart > 0.05 * moved).float().mean() < 1e-4
    assert apart.max() < moved
