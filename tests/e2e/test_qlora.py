"""Adapters beside matrices of 4 bits in all commands: one model in training, sampling, saved folders, exports and after a resume."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lightrft.models.export import save_model
from lightrft.models.tiny import tiny_model
from lightrft.testing import tiny_folder, tiny_processor
from tests.e2e.runs import PLAIN, assert_same_run, cut_back, rows, steps, summary

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)
QUIET = ["--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
RATE = ["--optimizer.learning-rate", "0.01", "--model", "./m"]
SAVING = ["--steps", "4", "--checkpoint.every-steps", "2", "--evaluate.limit", "4"]
LINEARS = 14
"""Matrices that adapters are beside: seven in each of two layers."""


@pytest.fixture
def base(tmp_path):
    return tiny_folder(tmp_path / "m", "qwen2")


@needs_bitsandbytes
def test_what_learns_is_sampled_saved_exported_and_gone_on_with(lightrft, tmp_path, base):
    lightrft("train", "tiny", "grpo", "qlora", *PLAIN, *RATE, *SAVING, "--run", "run")
    taken = steps(tmp_path / "run")
    assert max(row["mismatch/mean_abs"] for row in taken) < 1e-5, "the engine samples from what learns"
    assert taken[-1]["grad_norm"] > 0
    assert abs(taken[0]["kl"]) < 1e-6 < abs(taken[-1]["kl"]), "the reference is the rounded model, too"

    cut_back(tmp_path / "run", tmp_path / "again", step=2)
    lightrft("train", "--resume", "again")
    assert_same_run(tmp_path / "again", tmp_path / "run")
    cut_back(tmp_path / "run", tmp_path / "other", step=2)
    refused = lightrft("train", "--resume", "other", "--model.lora.quantize-base", "off", status=2)
    assert "was learned with model.lora.quantize_base=nf4" in refused
    assert "Set model.lora.quantize_base=nf4." in refused

    lightrft("export", "run", "out")
    saved, out = (load_file(tmp_path / name / "model.safetensors") for name in ("run/model", "out"))
    assert saved.keys() == out.keys()
    for name, weight in saved.items():
        assert_close(out[name], weight, atol=1e-6, rtol=1e-6, msg=name)
    lightrft("export", "run", "adapter", "--adapter")
    for folder in (tmp_path / "run" / "adapter", tmp_path / "adapter"):
        assert json.loads((folder / "adapter_config.json").read_text())["quantize_base"] == "nf4"
        assert "rounded to nf4" in (folder / "README.md").read_text()
    assert_close(by_peft(base, tmp_path / "adapter"), logits(tmp_path / "run" / "model"), atol=1e-4, rtol=0)

    start = ["--model.lora.start", "./adapter", "--model.lora.rank", "32", "--model.lora.alpha", "64"]
    refused = lightrft("train", "tiny", *PLAIN, *RATE, *start, "--steps", "1", status=2)
    assert "quantize_base=nf4, and model.lora.quantize_base=off" in refused
    assert "--model.lora.quantize-base nf4" in refused


def by_peft(base, adapter):
    """Logits of the adapters on a base that transformers has rounded."""
    rounded = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=rounded, dtype=torch.float32, device_map="cpu"
    )
    return PeftModel.from_pretrained(model, adapter)(torch.tensor([[1, 2, 3, 4]])).logits.detach()


def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[1, 2, 3, 4]])).logits.detach()


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("sft", ["--model.lora.dropout", "0.1"]),
        ("reward", []),
        ("dpo", ["--model.lora.modules-to-save", "norm"]),  # whose reference is read apart
    ],
    ids=["sft", "reward", "dpo"],
)
def test_other_commands_learn_beside_rounded_matrices_and_export_what_they_saved(
    lightrft, tmp_path, base, command, flags
):
    words = [command, f"{command}_tiny", "qlora", *QUIET, *RATE, *SAVING, *flags]
    printed = lightrft(*words, "--run", "run")
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert len(losses) == 4, printed
    if command == "dpo":
        assert losses[0] == pytest.approx(0.6931, abs=1e-4), "policy and reference begin as one"
    lightrft("export", "run", "out")
    saved, out = (load_file(tmp_path / name / "model.safetensors") for name in ("run/model", "out"))
    plain = load_file(base / "model.safetensors")
    changed = [n for n in plain if n.endswith("proj.weight") and not torch.equal(saved[n], plain[n])]
    assert len(changed) == LINEARS
    for name, weight in saved.items():
        assert_close(out[name], weight, atol=1e-6, rtol=1e-6, msg=name)


@needs_bitsandbytes
def test_adapters_beside_rounded_matrices_learn_as_others_do(lightrft, tmp_path):
    """On a model whose frozen head is sharp enough to prefer anything at all."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    save_model(model, tiny_processor(), tmp_path / "model")
    lightrft(
        *("train", "tiny", "grpo", "qlora", *PLAIN, "--model", "./model", "--run", "run", "--steps", "40"),
        *("--optimizer.learning-rate", "3e-3", "--update.tokens-per-micro-batch", "2048"),
        *("--rollout.prompts-per-step", "8", "--rollout.group-size", "8", "--evaluate.limit", "60"),
        *("--checkpoint.every-steps", "0", "--log.trajectories-every-steps", "0"),
    )
    score = summary(tmp_path / "run")["evaluation"]
    assert score["before"] < 0.2
    assert score["after"] > score["before"] + 0.3


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_the_package_that_rounds_is_named_where_it_is_missing(lightrft):
    told = lightrft("train", "tiny", "qlora", *PLAIN, "--steps", "1", status=2)
    assert (
        "bitsandbytes is not installed: pip install bitsandbytes, or take model.lora.quantize_base=off"
        in told
    )
    assert "Traceback" not in told
