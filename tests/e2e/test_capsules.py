"""Steps that went wrong, or were asked for, are written down and computed again bit for bit."""

from __future__ import annotations

import json

import pytest

from lightrft.utils.states import read_state, write_state
from tests.e2e.runs import PLAIN, model_bytes, steps

SMALL = [*PLAIN, "--evaluate.before-and-after=false", "--rollout.max-tokens", "5"]
BROKEN_LOSS = '''
import torch
from lightrft.algorithms.losses import clipped
from lightrft.types import Terms

def at_step_3(new, batch, algo):
    """A step draws 4 prompts, and a group has the number of its prompt: those of step 3 are 8 to 11."""
    terms = clipped(new, batch, algo)
    bad = (batch.groups // 4 == 2)[batch.segments]
    return Terms(torch.where(bad, torch.nan, terms.loss), terms.metrics)

def in_the_gradient_at_step_3(new, batch, algo):
    """The loss is a number, its gradient is not: the derivative of the root at 0 is infinite."""
    terms = clipped(new, batch, algo)
    bad = (batch.groups // 4 == 2)[batch.segments]
    return Terms(terms.loss + (new - new.detach()).abs().sqrt(), terms.metrics) if bad.any() else terms

def always(new, batch, algo):
    return Terms(new * torch.nan)
'''

SHIFTED = """
from lightrft.engines.native import native_engine

def engine(*given, **options):
    made = native_engine(*given, **options)
    generate = made.generate

    def shifted(*asked, **more):
        groups = generate(*asked, **more)
        for answer in (answer for group in groups for answer in group):
            answer.logprobs[:] = [x - 1.5 for x in answer.logprobs]
        return groups

    made.generate = shifted
    return made
"""


@pytest.fixture
def losses(tmp_path):
    (tmp_path / "losses.py").write_text(BROKEN_LOSS)


VARIANTS = {
    "plain": [],
    "updates": [
        "--update.num-minibatches",
        "2",
        "--update.epochs",
        "2",
        "--optimizer.schedule",
        "cosine",
        "--optimizer.weight-decay",
        "0.1",
    ],
    "lora, reference": ["lora", "grpo", "--optimizer.learning-rate", "0.01"],
    "bf16": ["bf16"],
    "preferences": ["online_dpo"],
}


def test_who_looked_at_the_run_is_not_told_of_a_replay(lightrft, tmp_path):
    hook = tmp_path / "hook.py"
    hook.write_text("def watch(step, metrics, run): print('looked at', step)\n")
    told = ["--log.on-step", "hook.py:watch", "--log.notify", "http://127.0.0.1:9/nobody"]
    output = lightrft("train", "tiny", *SMALL, *told, "--run", "run", "--steps", "1", "--capture-steps", "1")
    assert "looked at 1" in output
    hook.unlink()
    output = lightrft("replay", "run", "--step", "1")
    assert "equal bit for bit" in output
    assert "log.notify" not in output


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_step_comes_out_the_same_bit_for_bit(lightrft, tmp_path, variant):
    layers = [x for x in VARIANTS[variant] if x in ("lora", "grpo", "bf16", "online_dpo")]
    flags = [x for x in VARIANTS[variant] if x not in layers]
    lightrft(
        "train", "tiny", *layers, *SMALL, "--run", "run", "--steps", "3", "--capture-steps", "1,3", *flags
    )
    assert sorted(p.name for p in (tmp_path / "run" / "capsules").iterdir()) == ["step-000001", "step-000003"]
    output = lightrft("replay", "run", "--step", "3")
    assert "equal bit for bit" in output
    for name in ("loss", "grad_norm", "entropy", "learning_rate"):
        assert name in output


def test_a_replay_does_without_the_engine_that_drew_the_answers(lightrft, tmp_path):
    (tmp_path / "mine.py").write_text("from lightrft.engines.native import native_engine as engine")
    flags = ["--run", "run", "--steps", "1", "--capture-steps", "1", "--rollout.engine", "mine.py:engine"]
    lightrft("train", "tiny", *SMALL, *flags)
    (tmp_path / "mine.py").unlink()
    assert "equal bit for bit" in lightrft("replay", "run", "--step", "1")


def test_a_capsule_holds_the_setting_as_given_and_a_replay_weighs_as_the_run_did(lightrft, tmp_path):
    """The engine is another program, for which `auto` truncates, and its log-probs are 1.5 too low: ratios of 4.5."""
    (tmp_path / "mine.py").write_text(SHIFTED)
    flags = ["--run", "run", "--steps", "1", "--capture-steps", "1", "--rollout.engine", "mine.py:engine"]
    lightrft("train", "tiny", *SMALL, *flags)
    assert (
        "mismatch_correction: auto"
        in read_state(tmp_path / "run/capsules/step-000001/capsule.pt")["config_yaml"]
    )
    (tmp_path / "mine.py").unlink()
    assert "equal bit for bit" in lightrft("replay", "run", "--step", "1")


def test_a_tampered_record_is_seen(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "1", "--capture-steps", "1")
    record = tmp_path / "run" / "capsules" / "step-000001" / "recorded.json"
    content = json.loads(record.read_text())
    content["updates"][0]["entropy"] *= 1 + 1e-15
    record.write_text(json.dumps(content))
    output = lightrft("replay", "run", "--step", "1", status=1)
    assert "DIFFERS" in output
    (line,) = (line for line in output.splitlines() if "DIFFERS" in line)
    assert "entropy" in line


def test_tampered_weights_and_answers_are_seen(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "1", "--capture-steps", "1")
    capsule = tmp_path / "run" / "capsules" / "step-000001" / "capsule.pt"
    whole = read_state(capsule)
    weights = next(w for name, w in whole["state"]["tensors"].items() if name.startswith("weights/"))
    weights[0, 0] += 1e-6
    rewrite(capsule, whole)
    assert "its weights have the hash" in lightrft("replay", "run", "--step", "1", status=2)
    weights[0, 0] -= 1e-6
    whole = read_state(capsule)
    tensors = whole["state"]["tensors"]
    whole["state"]["tensors"] = {name: tensor for name, tensor in tensors.items() if "norm" not in name}
    rewrite(capsule, whole)
    assert "another model" in lightrft("replay", "run", "--step", "1", status=2)


def rewrite(capsule, content):
    """As one would who knows the format, check sum and all."""
    capsule.with_suffix(".crc32").write_text(write_state(capsule, content))


def test_a_torn_capsule_is_named(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "1", "--capture-steps", "1")
    capsule = tmp_path / "run" / "capsules" / "step-000001" / "capsule.pt"
    data = bytearray(capsule.read_bytes())
    capsule.write_bytes(data[: len(data) // 2])
    assert "step-000001/capsule.pt" in lightrft("replay", "run", "--step", "1", status=2)
    data[len(data) // 2] ^= 1
    capsule.write_bytes(data)
    assert "step-000001/capsule.pt" in lightrft("replay", "run", "--step", "1", status=2)


def test_a_step_without_capsule_says_which_there_are(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "2", "--capture-steps", "2")
    output = lightrft("replay", "run", "--step", "1", status=2)
    assert "no capsule of step 1 (there: 2)" in output


@pytest.mark.parametrize("loss", ["at_step_3", "in_the_gradient_at_step_3"])
@pytest.mark.usefixtures("losses")
def test_a_bad_step_is_skipped_counted_and_captured(lightrft, tmp_path, loss):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "4", "--algorithm.loss", f"losses.py:{loss}")
    taken = steps(tmp_path / "run")
    assert [row.get("counts/skipped_updates", 0) for row in taken] == [0, 0, 1, 0]
    assert [row["rollout/oldest_weight_version"] for row in taken] == [0, 1, 2, 2], (
        "weights are those of before"
    )
    assert [row["grad_norm"] is None for row in taken] == [False, False, True, False]
    assert [p.name for p in (tmp_path / "run" / "capsules").iterdir()] == ["step-000003"]
    assert "add --run-code" in lightrft("replay", "run", "--step", "3", status=2)
    output = lightrft("replay", "run", "--step", "3", "--run-code")
    assert "equal bit for bit" in output
    assert "nan" in output


@pytest.mark.usefixtures("losses")
def test_bad_steps_without_end_stop_the_run_and_the_last_checkpoint_stays(lightrft, tmp_path):
    lightrft("train", "tiny", *SMALL, "--run", "run", "--steps", "2")
    good = model_bytes(tmp_path / "run")
    broken = ["--algorithm.loss", "losses.py:always", "--steps", "9", "--optimizer.max-bad-steps", "3"]
    output = lightrft("train", "--resume", "run", *broken, status=2)
    assert (
        "3 optimizer steps in a row had a NaN or infinite loss or gradient (optimizer.max_bad_steps=3)"
        in output
    )
    assert "lightrft replay" in output
    assert (tmp_path / "run" / "capsules" / "step-000003" / "capsule.pt").is_file()
    assert model_bytes(tmp_path / "run") == good
    lightrft("train", "--resume", "run", "--steps", "5", "--algorithm.loss", "clipped")
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_spike_is_captured(lightrft, tmp_path):
    """Ten quiet steps, then one in which the loss is a thousand times as large."""
    (tmp_path / "losses.py").write_text(
        BROKEN_LOSS.replace(
            "torch.where(bad, torch.nan, terms.loss)", "torch.where(bad, 1000 * terms.loss, terms.loss)"
        ).replace("== 2", "== 11")
    )
    lightrft(
        "train",
        "tiny",
        *SMALL,
        "--run",
        "run",
        "--steps",
        "13",
        "--log.capture-spikes",
        "50",
        "--algorithm.loss",
        "losses.py:at_step_3",
    )
    assert [p.name for p in (tmp_path / "run" / "capsules").iterdir()] == ["step-000012"]
    lightrft("replay", "run", "--step", "12", "--run-code")
