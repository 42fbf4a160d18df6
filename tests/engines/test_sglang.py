"""Real SGLang on a CPU against the list of what every engine must do. It shares vLLM's environment, see .ci/run."""

import multiprocessing
import os
import random
import signal
import socket
import time
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

import pytest
import torch

from lightrft.config import ModelConfig, RolloutConfig, SglangConfig
from lightrft.engines.base import EngineDiedError, EngineError, give
from lightrft.engines.external import check_kinds, engine_requests, refuse_unknown
from lightrft.engines.lmdeploy import LmdeployEngine, question
from lightrft.engines.sglang import SglangEngine, free_port, known_arguments, seeded_draw
from lightrft.models.load import load_model, load_processor
from lightrft.models.tiny import tiny_model
from lightrft.testing import check_engine, media_prompts, tiny_prompt
from lightrft.types import Sampling
from tests.engines.models import media_model, text_model

needs_sglang = pytest.mark.skipif(
    find_spec("sglang") is None, reason="SGLang is not installed: pip install sglang"
)
SHAPE = {
    "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
}  # fmt: skip


@needs_sglang
@pytest.mark.timeout(600)
def test_sglang_does_all_and_a_scheduler_that_dies_is_started_again(tmp_path):
    module, processor = text_model(tmp_path / "m", SHAPE)
    config = SglangConfig(max_total_tokens=8192, bucket_mib=1)
    engine = SglangEngine(module, processor, RolloutConfig(engine="sglang", sglang=config))
    reference = tiny_model("llama", attention="sdpa", **SHAPE)
    found = check_engine(engine, reference, processor.text)
    assert found.ok, str(found)

    prompts, sampling = (
        [tiny_prompt(9, seed=n) for n in range(4)],
        Sampling(n=2, max_tokens=8, ignore_eos=True),
    )
    before = [[a.token_ids for a in answers] for answers in engine.generate(prompts, sampling)]
    for child in engine._engine.get_all_child_pids():
        os.kill(child, signal.SIGKILL)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGQUIT)  # as its watchdog does, sooner or later
    with pytest.raises(EngineDiedError, match="SGLang's scheduler died") as died:
        engine.generate(prompts, sampling)
    died.value.restart()
    assert engine.weight_version == -1
    give(engine, reference.named_parameters())
    assert [[a.token_ids for a in answers] for answers in engine.generate(prompts, sampling)] == before
    engine._engine.shutdown()
    assert all_gone()


def all_gone():
    """Whether all processes of this one end soon."""
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.2)
    return not multiprocessing.active_children()


@needs_sglang
@pytest.mark.timeout(120)
def test_a_start_that_takes_too_long_is_ended(tmp_path):
    module, processor = text_model(tmp_path / "m", SHAPE)
    config = SglangConfig(max_total_tokens=8192, start_seconds=3.0)
    with pytest.raises(RuntimeError, match="SGLang did not start within rollout.sglang.start_seconds=3"):
        SglangEngine(module, processor, RolloutConfig(engine="sglang", sglang=config))
    assert all_gone()


@needs_sglang
@pytest.mark.timeout(120)
def test_a_start_that_fails_leaves_no_process(tmp_path):
    module, processor = text_model(tmp_path / "m", SHAPE)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        options = {"nccl_port": str(taken.getsockname()[1])}
        config = SglangConfig(max_total_tokens=8192, options=options)
        with pytest.raises(EngineError, match="SGLang did not start .*its processes have printed above"):
            SglangEngine(module, processor, RolloutConfig(engine="sglang", sglang=config))
    assert all_gone()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("attention_backend", "fa3", "=fa3: it has to be torch_native, .* Leave it out"),
        ("sampling_backend", "flashinfer", "=flashinfer: it has to be pytorch"),
        ("disable_overlap_schedule", "false", "=false: it has to be true"),
    ],
)
def test_an_argument_that_draws_with_seeds_need_on_a_cpu_keeps_its_value(name, text, told, tmp_path):
    """Told before SGLang is imported."""
    module, processor = text_model(tmp_path / "m", SHAPE)
    config = RolloutConfig(engine="sglang", sglang=SglangConfig(options={name: text}))
    with pytest.raises(ValueError, match=f"rollout.sglang.options.{name}{told}"):
        SglangEngine(module, processor, config)


@needs_sglang
def test_an_argument_that_sglang_does_not_have_is_told_before_it_starts():
    with pytest.raises(ValueError, match="rollout.sglang.options.chunked_prefil_size: SGLang has no argument of this name. Is it chunked_prefill_size"):  # fmt: skip
        known_arguments(SglangConfig(options={"chunked_prefil_size": "512"}), {})


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(ValueError, match=r"rollout.sglang.options.page_sise: SGLang has no argument of this name. Is it page_size\?"):  # fmt: skip
        refuse_unknown("rollout.sglang.options", {"page_sise": 1}, ["page_size", "dtype"], "SGLang")
    refuse_unknown("rollout.sglang.options", {"page_size": 1}, ["page_size", "dtype"], "SGLang")


def test_processes_that_are_seeded_alike_draw_ports_of_their_own():
    drawn = []
    for _ in range(3):
        random.seed(0)
        drawn.append(free_port())
    assert len(set(drawn)) > 1
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"no port from {port} to {port} is free"):
            free_port([port])


@contextmanager
def seeing(folder, family):
    """An engine with a small model that sees, its processor, and what transformers makes of the same weights."""
    module, processor, reference = media_model(folder, family, head_dim=64)
    config = SglangConfig(max_total_tokens=8192)
    engine = SglangEngine(module, processor, RolloutConfig(engine="sglang", sglang=config))
    try:
        yield engine, processor, reference
    finally:
        engine._engine.shutdown()


@needs_sglang
@pytest.mark.timeout(300)
def test_sglang_reads_media_as_the_trainer(tmp_path):
    with seeing(tmp_path / "m", "qwen3_vl") as (engine, processor, reference):
        media = media_prompts(processor, ["image", "video"])
        found = check_engine(engine, reference, processor.text, requests=20, media=media)
        assert found.ok, str(found)


@needs_sglang
@pytest.mark.timeout(300)
def test_pictures_whose_tokens_see_each_other_are_refused_on_a_cpu(tmp_path):
    """SGLang computes so with one of its attention kernels only, which is not for CPUs."""
    with seeing(tmp_path / "m", "gemma3_vl") as (engine, processor, reference):
        found = check_engine(engine, reference, processor.text, requests=20)
        assert found.ok, str(found)
        with pytest.raises(ValueError, match="rollout.engine=sglang on a CPU hides from a picture's tokens"):
            engine.generate(media_prompts(processor, ["image"]), Sampling(max_tokens=4))


@pytest.mark.parametrize(
    ("family", "kinds", "engine", "reads"),
    [
        ("qwen2_audio", ["audio"], "sglang", "image, video"),
        ("qwen2_audio", ["audio"], "lmdeploy", "image"),
        ("llava", ["image"], "sglang", ""),
        ("llava", ["image"], "lmdeploy", ""),
        ("qwen2_audio", ["audio"], "vllm", ""),
    ],
)
def test_media_that_an_engine_does_not_read_are_refused(family, kinds, engine, reads):
    processor = load_processor(ModelConfig(path=f"random:{family}"))
    prompts = media_prompts(processor, kinds)
    check = partial(check_kinds, engine, reader=processor.media, device=torch.device("cpu"))
    check(prompts[:1])
    if not reads:
        check(prompts)
        return
    with pytest.raises(
        ValueError, match=f"prompt 'one {kinds[0]}' holds .* rollout.engine={engine} reads only: {reads}"
    ):
        check(prompts)


def test_pictures_that_sglang_would_see_otherwise_are_refused_before_it_starts():
    processor = load_processor(ModelConfig(path="random:gemma3_vl"))
    check = partial(check_kinds, prompts=media_prompts(processor, ["image"]), reader=processor.media)
    check("vllm", device=torch.device("cpu"))
    check("sglang", device=torch.device("cuda"))
    with pytest.raises(ValueError, match="rollout.engine=sglang on a CPU hides from a picture's tokens"):
        check("sglang", device=torch.device("cpu"))


def test_a_seeded_draw_follows_its_distribution():
    logprobs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    tokens = seeded_draw(logprobs, torch.arange(4000), torch.full((4000,), 7))
    shares = torch.bincount(tokens[:, 0], minlength=4) / 4000
    torch.testing.assert_close(shares, logprobs[0].exp(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("option", "value"), [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1), ("first_token_top_k", 3)]
)
def test_draws_whose_logprobs_sglang_does_not_tell_are_refused_before_it_starts(option, value):
    settings = ModelConfig(path="random:llama")
    config = RolloutConfig(engine="sglang", **{option: value})
    with pytest.raises(ValueError, match=f"rollout.{option}={value}: rollout.engine=sglang cannot sample so"):
        SglangEngine(load_model(settings, trainable=False), load_processor(settings), config)


def test_lmdeploy_is_asked_about_pictures_in_marked_tokens():
    processor = load_processor(ModelConfig(path="random:llava"))
    (mark,) = processor.tokenizer.encode("<image>", add_special_tokens=False)
    prompts = media_prompts(processor, ["image"])
    for prompt, one, count in zip(
        prompts, engine_requests(prompts, Sampling(), processor.media), (0, 1, 2), strict=True
    ):
        told = question(one)
        if not count:
            assert told == {"messages": None, "input_ids": prompt.token_ids}
            continue
        text, *pictures = told["messages"][0]["content"]
        assert text["text"].count(mark) == len(pictures) == count
        assert all(picture["image_data"]["data"].size == (56, 56) for picture in pictures)


def test_lmdeploy_needs_an_accelerator_and_says_so():
    settings = ModelConfig(path="random:llama")
    module, processor = load_model(settings, trainable=False), load_processor(settings)
    with pytest.raises(ValueError, match="rollout.engine=lmdeploy needs an accelerator"):
        LmdeployEngine(module, processor, RolloutConfig(engine="lmdeploy"))
    with pytest.raises(ValueError, match="LMDeploy ends a response at tokens only"):
        LmdeployEngine(module, processor, RolloutConfig(engine="lmdeploy", stop=["x"]))
