"""Real vLLM on a CPU against the list of what every engine must do. It lives in an environment of its own, see .ci/run."""

import argparse
import importlib
import json
import os
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.build.memory import build_memory_plan
from lightrft.config import ModelConfig, RolloutConfig, StrategyConfig, VllmConfig
from lightrft.engines.base import EngineDiedError, EngineError, give
from lightrft.engines.vllm import VllmEngine, known_arguments
from lightrft.engines.vllm_serve import actions, flags
from lightrft.models.load import load_model, load_processor
from lightrft.models.source import Source
from lightrft.models.tiny import tiny_model
from lightrft.strategy.memory import Phase
from lightrft.strategy.single import Single
from lightrft.testing import check_engine, media_prompts, tiny_folder, tiny_processor, tiny_prompt
from lightrft.types import Sampling
from lightrft.utils.failures import is_explained
from tests.distributed.launch import together
from tests.engines.models import media_model, text_model

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install vllm")
SHAPE = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def ended():
    """Afterwards, another vLLM may start in this process."""
    yield
    importlib.import_module("vllm.distributed").cleanup_dist_env_and_memory()


@needs_vllm
@pytest.mark.usefixtures("ended")
@pytest.mark.timeout(300)
def test_vllm_does_all_and_is_started_again_when_it_breaks(tmp_path):
    module, processor = text_model(tmp_path / "m", SHAPE)
    engine = VllmEngine(module, processor, RolloutConfig(engine="vllm", vllm=VllmConfig(enforce_eager=True)))
    reference = tiny_model("llama", attention="sdpa", **SHAPE)
    found = check_engine(engine, reference, processor.text)
    assert found.ok, str(found)

    prompts, sampling = (
        [tiny_prompt(9, seed=n) for n in range(4)],
        Sampling(n=2, max_tokens=8, ignore_eos=True),
    )
    before = [[a.token_ids for a in answers] for answers in engine.generate(prompts, sampling)]

    def broken(*args, **options):
        raise RuntimeError("the card has fallen off the bus")

    engine._llm.llm_engine.step = broken
    with pytest.raises(EngineDiedError, match="vLLM failed: RuntimeError: the card has") as died:
        engine.generate(prompts, sampling)
    parts = engine.parts()
    died.value.restart()
    assert engine.weight_version == -1
    for part in parts.values():  # those that a run has had from its beginning
        part.offload()
    assert engine._llm.llm_engine.model_executor.is_sleeping
    give(engine, reference.named_parameters())
    assert [[a.token_ids for a in answers] for answers in engine.generate(prompts, sampling)] == before


@needs_vllm
@pytest.mark.usefixtures("ended")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_and_wakes_part_by_part_as_phases_come(tmp_path, level):
    """A CPU frees nothing, but vLLM answers nothing until all it holds is awake again."""
    module, processor = text_model(tmp_path / "m", SHAPE)
    config = VllmConfig(enforce_eager=True, sleep_level=level, options={"max_num_batched_tokens": "777"})
    engine = VllmEngine(module, processor, RolloutConfig(engine="vllm", vllm=config))
    assert engine._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens == 777
    memory_plan = build_memory_plan(
        {
            "actor": Single(StrategyConfig(), torch.device("cpu")).frozen(
                Source(ModelConfig(path=str(tmp_path / "m")))
            )
        },
        engine,
        {},
        torch.device("cpu"),
    )
    executor = engine._llm.llm_engine.model_executor
    assert executor.is_sleeping
    assert engine.weight_version == -1
    calls, asked = [], ([tiny_prompt(9, seed=1)], Sampling(max_tokens=4, temperature=0, ignore_eos=True))
    for name in ("sleep", "wake_up"):
        real = getattr(engine._llm, name)
        setattr(
            engine._llm, name, lambda real=real, name=name, **how: (calls.append((name, how)), real(**how))
        )
    said = []
    for _ in range(2):
        if engine.weight_version == -1:
            with memory_plan(Phase.SYNC):
                assert executor.sleeping_tags == {"kv_cache"}
                engine.load_weights(module.named_parameters())
                engine.weight_version = 7
        with memory_plan(Phase.ROLLOUT):
            assert not executor.is_sleeping
            said += [[answer.token_ids for (answer,) in engine.generate(*asked)]]
        with memory_plan(
            Phase.SYNC
        ):  # as after a restart: the weights stay, so it cannot let go of the cache
            assert not executor.is_sleeping
        with memory_plan(Phase.ROLLOUT):
            said += [[answer.token_ids for (answer,) in engine.generate(*asked)]]
        with memory_plan(Phase.TRAIN):
            with pytest.raises(RuntimeError, match="vLLM is asked while it sleeps \\(kv_cache, weights\\)"):
                engine.generate(*asked)
            assert executor.sleeping_tags == {"weights", "kv_cache"}
    assert said == said[:1] * 4
    assert engine.weight_version == (7 if level == 1 else -1)
    turn = [
        ("wake_up", {"tags": ["weights"]}),
        ("wake_up", {"tags": ["kv_cache"]}),
        ("sleep", {"level": level}),
    ]
    assert calls == turn * 2


EXPERTS = {
    **SHAPE, "intermediate_size": 96, "moe_intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 260, "num_experts": 4,
    "num_experts_per_tok": 2, "decoder_sparse_step": 1, "eos_token_id": 256,
}  # fmt: skip


@needs_vllm
@pytest.mark.usefixtures("ended")
@pytest.mark.timeout(300)
def test_new_weights_reach_the_experts(tmp_path):
    """On a CPU vLLM packs them once, and its own way of giving new ones forgets that."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **EXPERTS))
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3.0 if p.dim() > 1 else 1.0)
    made.save_pretrained(tmp_path)
    tiny_processor().save(tmp_path)
    settings = ModelConfig(path=str(tmp_path))
    processor, module = load_processor(settings), load_model(settings, trainable=False)
    engine = VllmEngine(module, processor, RolloutConfig(engine="vllm", vllm=VllmConfig(enforce_eager=True)))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    found = check_engine(engine, reference, processor.text, requests=20)
    assert found.ok, str(found)


MEDIA = {
    "qwen2_5_vl": ["image", "video"],
    "qwen3_vl": ["image", "video"],
    "internvl": ["image"],
    "idefics3": ["image"],
    "llava": ["image"],
    "gemma3_vl": ["image"],
    "qwen2_audio": ["audio"],
}


@needs_vllm
@pytest.mark.usefixtures("ended")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", MEDIA)
def test_vllm_reads_media_as_the_trainer(tmp_path, family):
    module, processor, reference = media_model(tmp_path / "m", family, head_dim=32)
    engine = VllmEngine(module, processor, RolloutConfig(engine="vllm", vllm=VllmConfig(enforce_eager=True)))
    media = media_prompts(processor, MEDIA[family])
    found = check_engine(engine, reference, processor.text, requests=20, media=media)
    assert found.ok, str(found)


def answers_of_rank(path, shared_by):
    """The likeliest answers to this rank's prompts, before and after its weights were changed, and what is right."""
    settings, rank = ModelConfig(path=path), dist.get_rank()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }  # as torchrun
    processor, module = load_processor(settings), load_model(settings, trainable=False)
    config = RolloutConfig(engine="vllm", vllm=VllmConfig(enforce_eager=True, tensor_parallel_size=shared_by))
    engine = VllmEngine(module, processor, config)
    prompts = [tiny_prompt(length, seed=10 * rank + length) for length in ((5, 30, 9) if rank else (40, 2))]
    reference, rows = tiny_model("llama", attention="sdpa", **SHAPE), []
    for factor in (1.0, 1.3):
        with torch.no_grad():
            for p in reference.parameters():
                p.mul_(factor)
        give(engine, reference.state_dict().items())
        found = engine.generate(prompts, Sampling(max_tokens=8, temperature=0, ignore_eos=True))
        for prompt, (answer,) in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt.token_ids])
            options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
            right = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
            rows.append((answer.token_ids, right[0, ids.shape[1] :].tolist()))
    return rows


@needs_vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shared_by", [1, 2])
def test_two_processes_have_an_engine_each_or_one_together(tmp_path, shared_by):
    path = str(tiny_folder(tmp_path / "m", "llama", **SHAPE))
    for rows in together(answers_of_rank, 2, path, shared_by, seconds=250):
        assert len(rows) >= 4
        for found, right in rows:
            assert found == right


def test_a_group_that_does_not_fit_is_refused_before_vllm_starts():
    settings = ModelConfig(path="random:llama")
    for share, told in (
        (3, "does not divide the model's 4 attention heads"),
        (2, "1 processes cannot be shared out"),
    ):
        config = RolloutConfig(engine="vllm", vllm=VllmConfig(tensor_parallel_size=share))
        with pytest.raises(ValueError, match=told):
            VllmEngine(load_model(settings, trainable=False), load_processor(settings), config)


@pytest.mark.parametrize(("option", "value"), [("first_token_temperature", 2.0), ("first_token_top_k", 5)])
def test_what_vllm_cannot_draw_is_refused_before_it_starts(option, value):
    settings = ModelConfig(path="random:llama")
    config = RolloutConfig(engine="vllm", **{option: value})
    with pytest.raises(ValueError, match=f"rollout.{option}={value}: rollout.engine=vllm cannot sample so"):
        VllmEngine(load_model(settings, trainable=False), load_processor(settings), config)


def test_settings_of_vllm_without_vllm_are_refused():
    with pytest.raises(
        ValueError, match="rollout.vllm.enforce_eager=True has no effect with rollout.engine=native"
    ):
        RolloutConfig(vllm=VllmConfig(enforce_eager=True))


@needs_vllm
def test_arguments_that_vllm_does_not_have_are_refused():
    with pytest.raises(
        ValueError,
        match="rollout.vllm.options.kv_cache_type: vLLM has no argument of this name. Is it kv_cache_dtype",
    ):
        known_arguments(VllmConfig(options={"kv_cache_type": "fp8"}))


@needs_vllm
@pytest.mark.usefixtures("ended")
def test_an_argument_that_vllm_does_not_start_with_is_told_without_a_traceback(tmp_path):
    module, processor = text_model(tmp_path / "m", SHAPE)  # in float32
    config = RolloutConfig(
        engine="vllm", vllm=VllmConfig(enforce_eager=True, options={"quantization": "fp8"})
    )
    with pytest.raises(EngineError, match=r"vLLM did not start with rollout.vllm.options=\{quantization: fp8\}: .*float32 is not supported") as told:  # fmt: skip
        VllmEngine(module, processor, config)
    assert is_explained(told.value)


def test_arguments_become_flags_of_the_server():
    """As argparse has them: vLLM's own flags are of these kinds."""
    command = argparse.ArgumentParser()
    for name in ("kv_cache_dtype", "block_size", "x", "z"):
        command.add_argument(f"--{name.replace('_', '-')}", type=json.loads if name == "x" else str)
    for name in ("async_scheduling", "y"):
        command.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction)
    command.add_argument("--disable-log-stats", action="store_true")
    command.add_argument("--hf-token", nargs="?", const=True)
    command.add_argument("--sizes", nargs="+", type=int)
    taken = {action.dest: action for action in command._actions}
    further = VllmConfig(
        options={
            "kv_cache_dtype": "fp8", "async_scheduling": "false", "block_size": "32", "x": "[{a: [1]}]", "y": "true", "z": "null",
            "disable_log_stats": "false", "hf_token": "true", "sizes": "[1, 2, 4]",
        }
    ).further()  # fmt: skip
    words = flags(further, taken)
    assert words == [
        *("--kv-cache-dtype", "fp8", "--no-async-scheduling", "--block-size", "32"),
        *("--x", '[{"a": [1]}]', "--y", "--hf-token", "--sizes", "1", "2", "4"),
    ]
    read = command.parse_args(words)
    assert (read.sizes, read.x, read.async_scheduling, read.disable_log_stats) == ([1, 2, 4], [{"a": [1]}], False, False)  # fmt: skip
    with pytest.raises(ValueError, match=r"rollout.vllm.options.sizes=\[\]: .* Leave it out"):
        flags({"sizes": []}, taken)
    with pytest.raises(
        ValueError, match="rollout.vllm.options.model_weights: the command .* has no such flag"
    ):
        flags({"model_weights": "a"}, taken)


@needs_vllm
def test_vllm_reads_the_flags_as_they_were_meant():
    more = {"cudagraph_capture_sizes": "[1, 2]", "disable_log_stats": "false", "async_scheduling": "false", "limit_mm_per_prompt": "{image: 2}"}  # fmt: skip
    further = known_arguments(VllmConfig(options=more))
    from vllm.engine.arg_utils import EngineArgs, FlexibleArgumentParser

    read = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(flags(further, actions()))
    assert {name: getattr(read, name) for name in further} == further


def test_an_argument_that_draws_with_seeds_need_on_a_cpu_keeps_its_value():
    with pytest.raises(ValueError, match="rollout.vllm.options.enable_chunked_prefill=true: it has to be false, .* Leave it out"):  # fmt: skip
        known_arguments(VllmConfig(options={"enable_chunked_prefill": "true"}), on_cpu=True)
