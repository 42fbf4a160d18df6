"""What is said of held-out conversations before a run of supervised fine-tuning begins."""

from __future__ import annotations

import pytest

from lightrft.build.sft import prompts_of
from lightrft.config import ModelConfig, SamplingLogConfig, SFTConfig, TaskConfig
from lightrft.datasets.conversations import Conversations
from lightrft.models.describe import context
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_processor


@pytest.mark.parametrize(("split", "beside"), [("evaluate", 0), ("evaluate", -1), ("train", 0)])
def test_a_response_that_may_go_beyond_the_context_of_the_model_is_told(split, beside, caplog):
    model, task = ModelConfig(path="random:llama"), load_task("tiny")

    def prompts(sampled_tokens):
        log = SamplingLogConfig(sampled_tokens=sampled_tokens)
        config = SFTConfig(model=model, tasks=TaskConfig(train={"tiny": 1.0}), log=log)
        return prompts_of(config, Conversations.of(tiny_processor(), config), task, split)

    longest = max(len(p.token_ids) for p in prompts(1)[:16])
    room = context(model)
    prompts(room - longest + 1 + beside)
    told = split == "evaluate" and beside == 0
    assert (
        f"tokens; the model was made for {room}. Lower tasks.max_prompt_tokens or log.sampled_tokens"
        in caplog.text
    ) is told
