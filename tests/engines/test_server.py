"""A real vLLM server on a CPU, started by `lightrft serve`, against the list of what every engine must do."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from lightrft.config import ModelConfig, RolloutConfig, ServerConfig
from lightrft.engines.base import give
from lightrft.engines.vllm_serve import serve
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.models.load import load_model, load_processor
from lightrft.models.tiny import tiny_model
from lightrft.testing import check_engine, media_prompts, tiny_folder
from tests.engines.models import media_model
from tests.engines.test_vllm import SHAPE, needs_vllm


@contextmanager
def serving(path, log):
    """The address of a server for that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "lightrft", "serve", "vllm_server", "--model.path", path),
        *("--rollout.vllm.enforce-eager", "true", "--rollout.vllm.options", "max_num_batched_tokens", "777"),
        *("--port", str(port)),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@needs_vllm
@pytest.mark.timeout(600)
def test_a_server_does_all_and_another_run_takes_it_over(tmp_path):
    path = str(tiny_folder(tmp_path / "m", "llama", **SHAPE))
    settings = ModelConfig(path=path)
    processor, module = load_processor(settings), load_model(settings, trainable=False)
    with serving(path, tmp_path / "log") as url:
        config = RolloutConfig(
            engine="vllm_server", server=ServerConfig(urls=[url], wait_seconds=400, bucket_mib=1)
        )
        engine = VllmServerEngine(module, processor, config)
        found = check_engine(engine, tiny_model("llama", attention="sdpa", **SHAPE), processor.text)
        assert found.ok, str(found)
        assert engine._servers[0]._doors, "weights went through HTTP"
        other = VllmServerEngine(module, processor, config)
        give(other, module.named_parameters())
        with pytest.raises(RuntimeError, match="no server holds the present weights"):
            engine._holding()


@needs_vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("family", "kinds"), [("qwen2_5_vl", ["image", "video"]), ("qwen2_audio", ["audio"])]
)
def test_a_server_reads_media_as_the_trainer(tmp_path, family, kinds):
    module, processor, reference = media_model(tmp_path / "m", family, head_dim=32)
    with serving(str(tmp_path / "m"), tmp_path / "log") as url:
        config = RolloutConfig(engine="vllm_server", server=ServerConfig(urls=[url], wait_seconds=400))
        engine = VllmServerEngine(module, processor, config)
        media = media_prompts(processor, kinds)
        found = check_engine(engine, reference, processor.text, requests=20, media=media)
        assert found.ok, str(found)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_no_server_is_started_and_the_package_is_named():
    processor = load_processor(ModelConfig(path="random:llama"))
    config = RolloutConfig(engine="vllm_server")
    with pytest.raises(RuntimeError, match="vllm is not installed"):
        serve(tiny_model("llama"), processor, config, host="127.0.0.1", port=0)
