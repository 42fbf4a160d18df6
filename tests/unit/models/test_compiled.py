"""Compiled decoder layers give what plain ones give, for any batch, and are for the trainer alone."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.build.judges import named_judge
from lightrft.build.models import teacher_model
from lightrft.build.process import check_fused
from lightrft.config import (
    AlgorithmConfig,
    Config,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    NativeEngineConfig,
    StrategyConfig,
    TeacherConfig,
)
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.compiled import check_layers, compile_layers
from lightrft.models.linear import use_fast_linear
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.testing import tiny_folder, tiny_model, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.types import Sampling

BATCHES = [[(30, [12, 7, 1]), (5, [33, 2])], [(31, [12, 7]), (5, [3, 2])], [(3, [1])], [(100, [9, 80])]]


def computed(model, shape):
    """Log-probs and entropies, and the gradient of all that learns."""
    found = logprobs(model, pack(tiny_trajectories(shape)), temperature=0.7, max_logits=10_000)
    (found.values.sum() + 0.1 * found.entropy.sum()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found.values.detach(), found.entropy.detach(), gradient


@pytest.mark.parametrize(
    ("backend", "batches", "recomputes"),
    [("eager", BATCHES[1:3], False), pytest.param("aot_eager", BATCHES, True, marks=pytest.mark.extended)],
    ids=["traced", "differentiated-recomputed"],
)
def test_compiled_layers_give_the_same_and_serve_batches_of_all_sizes(backend, batches, recomputes):
    """By torch.compile without the code that it would write: what is traced, shared and differentiated is the same."""
    model = tiny_model("llama", attention=ATTENTION)
    use_fast_linear(model)
    if recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    sampled = drawn(model)
    right = [computed(model, shape) for shape in batches]
    counter = CompileCounterWithBackend(backend)
    compile_layers(model, backend=counter)
    assert drawn(model) == sampled
    assert counter.frame_count == 0  # the engine takes the layers as they are
    found = [computed(model, batches[0])]
    once = counter.frame_count
    assert 0 < once <= 8  # four pieces of a layer, around its attention, shared by both layers
    found += [computed(model, shape) for shape in batches[1:]]
    assert counter.frame_count == once
    for ours, plain in zip(found, right, strict=True):
        for one, other in zip(ours, plain, strict=True):
            assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert drawn(model) == sampled


def drawn(model):
    engine = NativeEngine(model, frozenset(), str, NativeEngineConfig())
    answers = engine.generate([tiny_prompt(9), tiny_prompt(30, seed=1)], Sampling(n=2, max_tokens=12))
    return [(a.token_ids, a.logprobs) for group in answers for a in group]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", {"gradient_checkpointing": True}),
        ("llama", {"lora": LoraConfig(rank=4)}),
        ("gemma3", {"dtype": "bfloat16"}),
    ],
    ids=["recomputed", "lora", "bfloat16"],
)
def test_what_is_compiled_here_gives_the_same(tmp_path, family, options):
    folder = str(tiny_folder(tmp_path / "m", family))
    plain, compiled = (load_model(ModelConfig(path=folder, compile=on, **options)) for on in (False, True))
    for learned, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        if options.get("lora") and learned.requires_grad:
            learned.data = torch.randn_like(learned) * 0.02
        other.data = learned.detach().clone()
    rough = 0.1 if "dtype" in options else 1e-4
    for shape in BATCHES:
        *ours, slope = computed(compiled, shape)
        *right, other = computed(plain, shape)
        for one, two in zip(ours, right, strict=True):
            assert_close(one, two, atol=rough, rtol=0)
        assert float((slope - other).norm() / other.norm()) < rough


@pytest.mark.parametrize("path", ["random:qwen3_moe", "random:mixtral"])
def test_a_mixture_of_experts_is_refused(path):
    with pytest.raises(ValueError, match="model.compile=true: this model has experts"):
        load_model(ModelConfig(path=path, compile=True))


def test_what_is_compiled_needs_no_kernels_besides():
    with pytest.raises(ValueError, match="model.kernels=auto with model.compile=true"):
        ModelConfig(compile=True, kernels="auto")


@pytest.mark.parametrize("setting", [{"backend": "zero1"}, {"backend": "fsdp", "sequence_parallel": 2}])
def test_zero_and_teams_are_refused(setting):
    config = Config(model=ModelConfig(compile=True), strategy=StrategyConfig(**setting))
    told = "=".join(map(str, [*setting.items()][-1]))
    with pytest.raises(ValueError, match=f"model.compile=true with strategy.{told}"):
        check_fused(config, {"model.path": config.model})


def test_a_teacher_that_cannot_be_compiled_is_refused_by_its_own_name():
    config = Config(
        model=ModelConfig(path="random:llama", compile=True),
        algorithm=AlgorithmConfig(teacher_coefficient=1.0),
        teacher=TeacherConfig(path="random:qwen3_moe"),
        judge=JudgeConfig(path="random:mixtral"),  # it samples, and so takes no compiled layers
    )
    models = {"teacher.path": teacher_model(config)} | named_judge(config)
    with pytest.raises(ValueError, match="model.compile=true: teacher.path=random:qwen3_moe has experts"):
        check_fused(config, models)
    del models["teacher.path"]
    check_fused(config, models)
    unfused = replace(config.model, compile=False, kernels="liger")
    with pytest.raises(ValueError, match="model.kernels=liger: these kernels are for"):
        check_fused(config, {"judge.path": unfused})


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}), ("gpt_oss", {"num_local_experts": 4, "head_dim": 8})],
)  # fmt: skip
def test_experts_are_known_whatever_a_family_calls_them(kind, shape):
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, vocab_size=32, **shape))
        dense = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("qwen3_moe", **sizes, vocab_size=32, mlp_only_layers=[0])
        )
    with pytest.raises(ValueError, match="model.path=x has experts"):
        check_layers(model, "model.path=x")
    check_layers(dense)


@pytest.mark.extended
def test_without_a_compiler_it_says_so_before_weights_load(tmp_path):
    hidden = {**os.environ, "CXX": str(tmp_path / "none"), "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}  # fmt: skip
    command = [sys.executable, "-m", "lightrft", "train", "tiny", "--model.compile", "true"]
    done = subprocess.run(command, cwd=tmp_path, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode
    told = " ".join((done.stdout + done.stderr).split())
    assert "model.compile=true: torch.compile does not work here on cpu" in told
    assert "Traceback" not in done.stderr
