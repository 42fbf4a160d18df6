"""Plans of every shipped backend and engine in literal numbers, so that no rearrangement of the code changes one unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightrft.cli import main
from lightrft.config import layers

MODEL = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 4,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 32000, "tie_word_embeddings": True,
}  # fmt: skip
FIXED = [
    "--model.dtype", "bfloat16", "--strategy.device", "cuda", "--gpu-memory", "80",
    "--update.logits-per-chunk", "4194304", "--json",
]  # fmt: skip
PLANS = [
    ("grpo", (1488656384, 1526589184, 1413158912, 2114918912), 306913, 0.0956001),
    ("grpo fsdp", (340646304, 384989856, 331209120, 843139680), 312083, 0.0416469),
    ("ppo zero1", (826362307, 908335299, 794905027, 1540826243), 309247, 0.0564515),
    ("ppo zero2", (826362307, 908335299, 794905027, 1768568643), 308321, 0.063136),
    ("ppo zero3", (1789700417, 1871673409, 1758243137, 2372832577), 305865, 0.0814724),
    ("dapo vllm", (35596252416, 1349944320, 1413158912, 1938274048), 307631, 0.132734892),
    ("grpo fsdp sglang", (34514302624, 384989856, 331209120, 843139680), 312083, 0.0402045441),
    ("grpo fsdp lmdeploy", (34620289542, 384989856, 331209120, 843139680), 312083, 0.0402045441),
    ("grpo vllm_server", (1413158912, 1526589184, 1413158912, 2114918912), 306913, 0.0840613620),
    # Adapters are float32 beside a bfloat16 model: 4 bytes of each of 2,932,736 and no second float32, which would make 2 and 4.
    ("grpo lora", (412499712, 355492608, 337002240, 692937472), 226304, 0.0967661),
    # Less than lora by 1.4375 bytes of each of 59,637,760 numbers in 4 bits; while a layer computes, 896 x 4864 of them are whole.
    ("grpo qlora", (326770432, 278479616, 251272960, 615924480), 226531, 0.0967661),
    (
        "ppo fsdp --algorithm.kl-coefficient 0.1",
        (495151393, 517474849, 463694113, 975624673),
        311544,
        0.0888955,
    ),
]
"""Layers and flags; bytes of a device in rollout, score, sync and train; the largest batch that fits; seconds of a step."""


@pytest.mark.parametrize(("words", "sums", "largest", "seconds"), PLANS, ids=[plan[0] for plan in PLANS])
def test_a_plan_has_the_numbers_it_always_had(
    words: str,
    sums: tuple[int, ...],
    largest: int,
    seconds: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    named, flags = layers.split(words.split())
    shared = {"fsdp", "zero1", "zero2", "zero3"} & set(named)
    where = ["--model.path", str(tmp_path), "--gpus", "8" if shared else "1"]
    assert main(["plan", *named, *where, *FIXED, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found["memory"]["sums"].values()) == sums
    assert found["batch"]["largest"] == largest
    assert found["seconds"] == pytest.approx(seconds, rel=1e-5)
    assert found["learned"] == (
        found["weights"] if not {"lora", "qlora"} & set(named) else 91255168 - 88322432
    )
