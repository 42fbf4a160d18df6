"""Reward models against transformers' own classes, one conversation at a time."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lightrft.config import ModelConfig
from lightrft.models.reward import load_reward_model, scores
from lightrft.models.tiny import tiny_config
from lightrft.testing import tiny_folder, tiny_processor


def reward_folder(folder, family, labels=1):
    """A random reward model with the byte tokenizer; and the model itself, with transformers' attention."""
    config = tiny_config(family, num_labels=labels, pad_token_id=PADDING)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5.0)
    model.save_pretrained(folder)
    tiny_processor().save(folder)
    return model


PADDING = 256
"""Also what ends a turn: then transformers looks at the token before."""


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tokens_per_micro_batch", [1, 60, 10_000])
def test_scores_are_those_of_transformers_however_conversations_are_packed(
    tmp_path, family, tokens_per_micro_batch
):
    theirs = reward_folder(tmp_path, family, labels=2)
    draw = torch.Generator().manual_seed(1)
    conversations = [torch.randint(1, 250, (n,), generator=draw).tolist() for n in (9, 40, 1, 17, 30)]
    conversations += [[7, PADDING, 9, 11, PADDING], [5, PADDING, PADDING], [PADDING]]
    ours = load_reward_model(ModelConfig(path=str(tmp_path)))
    found = [row[1] for row in scores(ours, conversations, tokens_per_micro_batch)]
    with torch.no_grad():
        right = [float(theirs(torch.tensor([tokens])).logits[0, 1]) for tokens in conversations]
    assert max(right) - min(right) > 0.1
    assert found == pytest.approx(right, abs=1e-5)
    assert scores(ours, [], 100) == []


def test_a_language_model_is_no_reward_model(tmp_path):
    path = str(tiny_folder(tmp_path / "m"))
    with pytest.raises(
        ValueError, match=r"model.path=.* holds no trained head for scores \(score.weight is missing"
    ):
        load_reward_model(ModelConfig(path=path))
