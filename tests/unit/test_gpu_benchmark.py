"""benchmarks/gpu.py on this machine's CPU, at sizes that measure nothing: every part gives its numbers, or says why it has none."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = {"questions": 2, "answers": 2, "tokens": 6, "length": 9, "batch": 64, "decode": 3}


@pytest.fixture(scope="module")
def parts():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_parts

        yield gpu_parts
    finally:
        sys.path.remove(str(BENCHMARKS))


def measured(parts, part):
    return parts.measured(part, "tiny", argparse.Namespace(**SIZES, record=False, fused="plain"))


def test_one_command_writes_one_file_with_what_each_part_found(tmp_path):
    flags = [x for name, value in SIZES.items() for x in (f"--{name}", str(value))]
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--parts",
        "nccl",
        "step",
        "--shapes",
        "tiny",
        *flags,
    ]
    out = tmp_path / "there" / "found.json"
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["work"] == {**SIZES, "record": True, "fused": "plain"}
    assert found["machine"]["torch"]
    assert list(found["parts"]) == ["nccl", "step tiny"]
    assert "skipped" in found["parts"]["nccl"]  # two devices are not there
    step = found["parts"]["step tiny"]
    assert step["seconds"].keys() == {"rollout", "score", "train"} == step["planned_gib"].keys()
    assert min(step["share_of_matrix_rate"].values()) > 0
    # Of 2 x (9 + 2 x 6) tokens 24 meet the head of 64 x 512; a layer has 64 x (64 + 2 x 32 + 64) + 3 x 64 x 128 weights.
    head, body = 24 * 64 * 512, 42 * 2 * (64 * 192 + 3 * 64 * 128)
    seen = 2 * 2 * 64 * 2 * (9 * 9 / 2 + 2 * (6 * 9 + 6 * 6 / 2))
    assert step["head_share"]["of_operations"] == pytest.approx(head / (head + body + seen))
    assert step["head_share"]["of_seconds"] > 0


def test_what_finds_no_time_says_so(tmp_path):
    out = tmp_path / "found.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--parts",
        "peak",
        "--minutes",
        "0",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(out.read_text())["parts"]["peak"] == {"skipped": "no time is left of --minutes=0"}


def test_engines_draw_the_same_number_of_tokens(parts):
    found = measured(parts, "engine")
    assert found["sequences"] == 64
    ratio = found["native_tokens_per_second"] / found["generate_tokens_per_second"]
    assert ratio == pytest.approx(found["native_over_generate"])
    assert found["native_share_of_memory_limit"] > 0
    if parts.ON_CPU:
        assert "attention_backend=flash: its kernel is for" in found["flash"]


def test_the_head_is_measured_against_products_of_the_same_machine(parts):
    assert 0 < measured(parts, "head")["share_of_matrix_rate"] < 20


def test_what_cannot_be_measured_here_says_why(parts):
    if parts.ON_CPU:
        assert "skipped" in measured(parts, "offload")
        assert "skipped" in measured(parts, "nccl")


@pytest.mark.extended
def test_compiled_layers_are_measured_beside_plain_ones(parts):
    """On a CPU the code that torch.compile writes has to be compiled first, which takes minutes."""
    found = measured(parts, "layers")
    assert found["tokens"] == 3 * (9 + 2 * 6)
    assert found["compiled"]["first"] > found["compiled"]["seconds"] > 0
    assert found["compiled"]["plain_over"] == pytest.approx(
        found["plain"]["seconds"] / found["compiled"]["seconds"]
    )
    assert "skipped" in found["liger"] or found["liger"]["seconds"] > 0
