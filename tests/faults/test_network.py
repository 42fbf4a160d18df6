"""Without a network: every command says so in one sentence, at once, before any weight is read."""

import subprocess
import sys

import pytest

NOWHERE = {"HF_ENDPOINT": "https://hub.invalid"}  # a name that no network knows (RFC 2606)
MODEL = ["--model.path", "Qwen/Qwen2.5-0.5B"]
COMMANDS = {
    "train": ["tiny", *MODEL, "--run", "run"],
    "plan": ["tiny", *MODEL],
    "check": ["tiny", *MODEL],
    "evaluate": ["tiny", *MODEL, "--run", "run"],
    "sft": ["sft_tiny", *MODEL, "--run", "run"],
    "serve": ["vllm_server", *MODEL],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_there_is_told_at_once(tmp_path, monkeypatch, command):
    for name, value in {**NOWHERE, "HF_HOME": str(tmp_path / "cache"), "COLUMNS": "500"}.items():
        monkeypatch.setenv(name, value)
    line = [sys.executable, "-m", "lightrft", command, *COMMANDS[command]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2)
    assert "model.path=Qwen/Qwen2.5-0.5B: there is no network (the host hub.invalid is not found)" in output
    assert "Traceback" not in output
    assert "Retry" not in output
