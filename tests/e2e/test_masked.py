"""A tiny masked diffusion language model learns by the same commands as any other: trained, resumed, replayed, evaluated, looked at."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lightrft.runs.reader import Run
from tests.e2e.runs import PLAIN, cut_back, rows, steps, summary

SMALL = (
    "masked_tiny", *PLAIN, "--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--evaluate.limit", "8",
    "--checkpoint.every-steps", "2", "--rollout.unmask.block", "4",
)  # fmt: skip


@pytest.fixture(scope="module")
def masked_run(server, tmp_path_factory):
    """Three steps, of which the second is captured."""
    from tests.e2e.runs import Lightrft

    place = tmp_path_factory.mktemp("masked")
    Lightrft(server, place)("train", *SMALL, "--run", "run", "--steps", "3", "--log.capture-steps", "2")
    return place / "run"


def test_engine_and_trainer_say_the_same_before_the_first_update(masked_run):
    first, *_ = steps(masked_run)
    assert first["mismatch/max"] < 1e-5
    assert first["mismatch/ratio"] == pytest.approx(1, abs=1e-5)
    assert all(row["grad_norm"] > 0 for row in steps(masked_run))


def test_the_folder_loads_with_transformers_and_says_both_ways_what_it_said_here(masked_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from lightrft.config import ModelConfig
    from lightrft.models.describe import is_masked
    from tests.masked import made, prompts, settings

    folder = masked_run / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain) is LlamaForCausalLM
    assert is_masked(ModelConfig(path=str(folder)))
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == 260
    kind, _, engine = made(settings(path=folder, max_tokens=4))
    (asked, *_) = prompts(kind)
    row = torch.tensor([[*asked.token_ids, 260, 260, 260, 260]])
    (found,) = engine.generate([asked], replace(_sampling(), temperature=0.0))
    first = found[0].states[:, 0].argmin()
    with torch.no_grad():
        logits = plain(row, use_cache=False).logits[0, len(asked.token_ids) :]
    logits[:, 260] = -torch.inf
    assert int(logits[first].argmax()) == found[0].token_ids[first]
    assert float(logits[first].log_softmax(-1).max()) == pytest.approx(found[0].logprobs[first], abs=1e-5)


def _sampling():
    from lightrft.types import Sampling

    return Sampling(n=1, max_tokens=4)


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(lightrft, masked_run):
    lightrft("train", *SMALL, "--run", "cut", "--steps", "2", "--log.capture-steps", "2")
    lightrft("train", "--resume", "cut", "--steps", "3")
    found, whole = (load_file(f / "model/model.safetensors") for f in (lightrft.cwd / "cut", masked_run))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())


def test_a_captured_step_comes_out_the_same(lightrft, masked_run):
    assert "equal bit for bit" in lightrft("replay", masked_run, "--step", "2")


def test_it_is_viewed_and_evaluated_as_it_was_at_the_end(lightrft, masked_run):
    assert "reward" in lightrft("view", masked_run, "--step", "3", "--best", "1")
    flags = [
        "--rollout.engine",
        "unmask",
        "--rollout.unmask.block",
        "4",
        "--rollout.unmask.tokens-per-step",
        "2",
    ]
    own = ["--model.path", str(masked_run / "model"), "--evaluate.limit", "8", "--rewards.workers", "0"]
    lightrft("evaluate", "tiny", *flags, *own, "--run", "again")
    found = json.loads(next(lightrft.cwd.rglob("responses.json")).read_text())["tiny"]
    before = json.loads((masked_run / "evaluation/after.json").read_text())["tiny"]
    assert found["score"] == before["score"]


def test_a_run_is_checked_before_it_costs_anything(lightrft):
    told = " ".join(lightrft("check", *SMALL, "--steps", "3").split())
    assert "engine and trainer agree" in told
    assert "ready" in told


@pytest.mark.extended
def test_algorithms_learn_from_it_by_every_likelihood_without_a_line(lightrft):
    rows = {
        "rloo": [],
        "gspo": ["--rollout.unmask.likelihood", "elbo"],
        "dapo": ["--rollout.unmask.likelihood", "mean_field", "--rollout.unmask.prompt-mask", "0.15"],
        "reinforce_pp": ["--replay.groups-per-step", "2", "--update.tokens-per-micro-batch", "64"],
    }
    for name, flags in rows.items():
        own = [
            "--run",
            name,
            "--steps",
            "3",
            "--checkpoint.every-steps",
            "0",
            "--evaluate.before-and-after=false",
        ]
        overlong = ["--algorithm.overlong-buffer", "0"] if name == "dapo" else []
        lightrft("train", SMALL[0], name, *SMALL[1:], *flags, *own, *overlong)
        found = steps(lightrft.cwd / name)
        assert all(row["grad_norm"] > 0 for row in found), name
        assert found[0]["mismatch/max"] < 1e-4, name


SFT = (
    "sft_masked", "--batch-size", "8", "--evaluate.limit", "4", "--checkpoint.every-steps", "1", "--masked.draws", "2",
    "--optimizer.schedule", "constant", "--log.tensorboard=false", "--log.curves=false", "--log.progress=false",
)  # fmt: skip


def saved(run):
    return load_file(run / "model/model.safetensors")


def losses(run):
    return [(row["loss"], row["grad_norm"]) for row in rows(run) if "grad_norm" in row]


def test_it_learns_from_given_responses_and_resumes_bit_for_bit(lightrft):
    lightrft("sft", *SFT, "--steps", "3", "--run", "whole")
    cut_back(lightrft.cwd / "whole", lightrft.cwd / "cut", step=2)
    lightrft("sft", "--resume", "cut")
    found, whole = (saved(lightrft.cwd / name) for name in ("cut", "whole"))
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())
    assert losses(lightrft.cwd / "cut") == losses(lightrft.cwd / "whole")
    told = summary(lightrft.cwd / "whole")["held_out_nll"]
    assert told["after"] < told["before"]
    own = [r for r in Run(lightrft.cwd / "whole").responses(-1) if r["origin"] == "sampled"]
    assert own
    assert all(0 < len(r["tokens"]["ids"]) <= 8 for r in own)


FSDP = ("--strategy.backend", "fsdp", "--processes", "2")


def assert_same_weights(one, two):
    """Weights of two runs to rounding, which had moved."""
    found, other = saved(one), saved(two)
    apart = torch.cat([(found[n] - w).abs().flatten() for n, w in other.items()])
    # A weight whose gradient is nothing but rounding may go either way: Adam divides by its size.
    assert (apart > 1e-4).float().mean() < 1e-3


@pytest.mark.extended
@pytest.mark.parametrize("adapters", [[], ["--model.lora.rank", "2"]], ids=["whole", "adapters"])
def test_two_processes_learn_from_given_responses_what_one_learns(lightrft, adapters):
    for name, flags in (("one", ()), ("two", FSDP)):
        lightrft("sft", *SFT, *adapters, "--steps", "3", *flags, "--run", name)
    one, two = (losses(lightrft.cwd / name) for name in ("one", "two"))
    assert [x for pair in one for x in pair] == pytest.approx([x for pair in two for x in pair], rel=1e-4)
    assert all(norm > 0 for _, norm in one)
    assert_same_weights(lightrft.cwd / "one", lightrft.cwd / "two")


@pytest.mark.extended
@pytest.mark.parametrize("likelihood", ["path", "elbo"])
@pytest.mark.parametrize("adapters", [[], ["--model.lora.rank", "2"]], ids=["whole", "adapters"])
def test_two_processes_learn_by_rl_what_one_learns(lightrft, adapters, likelihood):
    own = ["--steps", "3", "--checkpoint.every-steps", "0", "--evaluate.before-and-after=false", *adapters]
    for name, flags in (("one", ()), ("two", FSDP)):
        lightrft("train", *SMALL, "--rollout.unmask.likelihood", likelihood, *own, *flags, "--run", name)
    one, two = (steps(lightrft.cwd / name) for name in ("one", "two"))
    assert [row["reward/mean"] for row in one] == [row["reward/mean"] for row in two]
    assert [row["grad_norm"] for row in one] == pytest.approx([row["grad_norm"] for row in two], rel=1e-3)
    assert any(row["grad_norm"] > 0 for row in one)
    assert all(row["mismatch/max"] < 1e-3 for row in one + two)
    assert_same_weights(lightrft.cwd / "one", lightrft.cwd / "two")
