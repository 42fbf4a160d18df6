"""A reward model's folder in real vLLM, as a pooling model: its scores are ours. In an environment of its own, see .ci/run."""

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest
from transformers import AutoTokenizer

from lightrft.config import ModelConfig
from lightrft.models.reward import load_reward_model, scores
from lightrft.tasks.tiny import pairs
from lightrft.testing import tiny_folder

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install vllm")
SHAPE = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip
"""Within this process, beside others on the same cores and in the same memory."""


@needs_vllm
@pytest.mark.timeout(400)
def test_vllm_scores_as_we_do(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    from vllm import LLM
    from vllm.config import PoolerConfig

    run = tmp_path / "run"
    flags = {"--model.path": tiny_folder(tmp_path / "m", "llama", **SHAPE), "--steps": 20, "--run": run}
    said = [str(x) for flag in flags.items() for x in flag]
    command = [sys.executable, "-m", "lightrft", "reward", "reward_tiny", "--evaluate.limit=4", *said]
    subprocess.run(command, check=True, timeout=200)

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    talks = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in pairs("evaluate", 0)[:25]
        for side in ("chosen", "rejected")
    ]
    tokens = [tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"] for talk in talks]
    ours = [row[0] for row in scores(load_reward_model(ModelConfig(path=str(run / "model"))), tokens, 10_000)]
    assert max(ours) - min(ours) > 0.1

    # Its default puts a sigmoid on a single label.
    raw = PoolerConfig(task="classify", use_activation=False)
    small = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.1}
    llm = LLM(str(run / "model"), runner="pooling", pooler_config=raw, **small)
    try:
        theirs = llm.classify([{"prompt_token_ids": row} for row in tokens], use_tqdm=False)
    finally:
        importlib.import_module("vllm.distributed").cleanup_dist_env_and_memory()
    assert [one.outputs.probs[0] for one in theirs] == pytest.approx(ours, abs=1e-3)
