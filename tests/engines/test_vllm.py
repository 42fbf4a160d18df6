"""Real vLLM on a CPU against the list of what every engine must do. It lives in an environment of its own, see .ci/run."""

from importlib.util import find_spec

import pytest

from lightrft.config import ModelConfig, RolloutConfig, VllmConfig
from lightrft.models.load import load_model, load_processor
from lightrft.models.tiny import tiny_model
from lightrft.strategy.engines.vllm import VllmEngine
from lightrft.testing import check_engine, tiny_folder

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: pip install 'lightrft[vllm]'"
)
SHAPE = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip


@needs_vllm
@pytest.mark.timeout(300)
def test_vllm_does_all(tmp_path):
    settings = ModelConfig(path=str(tiny_folder(tmp_path / "m", "llama", **SHAPE)))
    processor, module = load_processor(settings), load_model(settings, trainable=False)
    engine = VllmEngine(module, processor, RolloutConfig(engine="vllm", vllm=VllmConfig(eager=True)))
    found = check_engine(engine, tiny_model("llama", attention="sdpa", **SHAPE), processor.text)
    assert found.ok, str(found)


@pytest.mark.parametrize(("option", "value"), [("first_temperature", 2.0), ("first_top_k", 5)])
def test_what_vllm_cannot_draw_is_refused_before_it_starts(option, value):
    settings = ModelConfig(path="random:llama")
    config = RolloutConfig(engine="vllm", **{option: value})
    with pytest.raises(ValueError, match=f"rollout.{option}={value}: vLLM draws all tokens alike"):
        VllmEngine(load_model(settings, trainable=False), load_processor(settings), config)


def test_settings_of_vllm_without_vllm_are_refused():
    with pytest.raises(ValueError, match="rollout.vllm.eager=True has no effect with rollout.engine=native"):
        RolloutConfig(vllm=VllmConfig(eager=True))
