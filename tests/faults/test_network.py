"""Without a network: every command says so in one sentence, at once, before any weight is read."""

import json
import subprocess
import sys

import pytest

NOWHERE = {"HF_ENDPOINT": "https://hub.invalid"}  # a name that no network knows (RFC 2606)
MODEL = ["--model.path", "Qwen/Qwen2.5-0.5B"]
COMMANDS = {
    "train": ["tiny", *MODEL, "--run", "run"],
    "plan": ["tiny", *MODEL],
    "check": ["tiny", *MODEL],
    "evaluate": ["tiny", *MODEL, "--run", "evaluated"],
    "sft": ["sft_tiny", *MODEL, "--run", "taught"],
    "serve": ["vllm_server", *MODEL],
}
ONE_BY_ONE = """
import json, subprocess, sys, time
import torch, transformers, lightrft.build.rl, lightrft.cli.commands, os

found = {}
for command, line in json.loads(sys.argv[1]).items():
    begun = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1), os.dup2(writing, 2)
        os.close(reading), os.close(writing)
        from lightrft.cli import main
        code = main([command, *line])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        output = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found[command] = [status, output, time.monotonic() - begun]
print(json.dumps(found))
"""
"""Imports once, after the environment of the test is set, and forks for each command."""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Command -> its status, what it printed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NOWHERE, "HF_HOME": str(folder / "cache"), "COLUMNS": "500"}.items():
            patch.setenv(name, value)
        line = [sys.executable, "-c", ONE_BY_ONE, json.dumps(COMMANDS)]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=200, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_there_is_told_at_once(told, command):
    status, output, seconds = told[command]
    assert status in (1, 2)
    assert "model.path=Qwen/Qwen2.5-0.5B: there is no network (the host hub.invalid is not found)" in output
    assert "Traceback" not in output
    assert "Retry" not in output
    assert seconds < 20  # none of the hub's own pauses before it tries again
