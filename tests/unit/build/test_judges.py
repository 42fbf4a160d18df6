"""The model that judges in words: where its engine thinks it is."""

import torch

from lightrft.build.judges import model_judge
from lightrft.config import Config, JudgeConfig, ModelConfig, StrategyConfig


def test_the_engine_of_a_judge_that_rests_in_host_memory_computes_on_the_device():
    """An engine looks once where its model is, and so do kernels. The memory plan moves it out when it begins."""
    device = torch.device("meta")
    config = Config(
        model=ModelConfig(path="random:llama"),
        judge=JudgeConfig(path="random:llama"),
        strategy=StrategyConfig(offload=True),
    )
    output, residents = model_judge(config, None, None, device)
    assert output.model._ask.__self__.device == device
    assert residents["judge weights"].moves
    assert residents["judge weights"].device == "meta"
