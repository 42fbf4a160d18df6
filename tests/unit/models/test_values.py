"""The critic: its values stand where the log-probs of the same tokens do, whatever is packed beside them."""

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.source import CriticSource
from lightrft.models.values import critic_config, critic_size, values
from lightrft.testing import tiny_folder, tiny_trajectories
from lightrft.trainer.batching import pack

ANSWERS = tiny_trajectories([(6, [5, 3]), (4, [1])])
TINY = ModelConfig(path="random:llama")


def critic_with_a_head(model=TINY, path=""):
    critic = CriticSource(critic_config(model, path)).full()
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.head.weight)
    return critic


def test_a_new_critic_expects_nothing_and_can_learn():
    critic = CriticSource(critic_config(TINY, "")).full()
    found = values(critic, pack(ANSWERS))
    assert found.tolist() == [0.0] * 9
    found.sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_float32_and_all_of_the_body_learns(dtype):
    critic = critic_with_a_head(ModelConfig(path="random:llama", dtype=dtype, lora=LoraConfig(rank=2)))
    found = values(critic, pack(ANSWERS))
    assert found.dtype == torch.float32
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())


def test_the_value_of_a_token_is_read_where_the_token_was_not_yet_known():
    """Changing a token changes the values behind it, not its own nor those before."""
    critic = critic_with_a_head()
    before = values(critic, pack(ANSWERS[:1])).tolist()
    changed = tiny_trajectories([(6, [5, 3])])[:1]
    changed[0].token_ids[2] = (changed[0].token_ids[2] + 1) % 256
    after = values(critic, pack(changed)).tolist()
    assert after[:3] == before[:3]
    assert after[3] != before[3]


def test_packed_values_are_those_of_each_answer_alone():
    critic = critic_with_a_head()
    alone = torch.cat([values(critic, pack([t])) for t in ANSWERS])
    assert_close(values(critic, pack(ANSWERS)), alone, atol=1e-5, rtol=0)


def test_the_size_is_told_without_loading(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen3", num_hidden_layers=3)
    for model, path in ((TINY, ""), (TINY, str(folder)), (ModelConfig(path=str(folder)), "random:gemma3")):
        critic = CriticSource(critic_config(model, path)).full()
        assert critic_size(model, path) == sum(p.numel() for p in critic.body.parameters())
