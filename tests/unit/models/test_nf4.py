"""QLoRA (model.lora.quantize_base=nf4): what is rounded, and that the trainer, engines, saved folders and the reference have one and the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lightrft.build.tables import footprint
from lightrft.commands.plan.shape import Shape
from lightrft.config import (
    LoraConfig,
    ModelConfig,
    NativeEngineConfig,
    OptimizerConfig,
    RolloutConfig,
    StrategyConfig,
)
from lightrft.engines.native import NativeEngine
from lightrft.models.export import save_model
from lightrft.models.load import load_model
from lightrft.models.logprobs import causal_lm, logprobs
from lightrft.models.lora import full_weights, merged_adapters, plain_state
from lightrft.models.nf4 import BLOCK, Nf4Linear, nf4_bytes, numbers, round_linear, whole_bytes
from lightrft.models.source import Source
from lightrft.strategy.single import SingleTrainable, WithoutAdapters
from lightrft.testing import tiny_folder, tiny_processor, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout, training_sampling

pytest.importorskip("bitsandbytes", reason="bitsandbytes, which rounds, is not installed")

ANSWERS = tiny_trajectories([(6, [5, 3]), (4, [1, 8])])
LORA = LoraConfig(rank=2, alpha=8, quantize_base="nf4")
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314), appendix E."""


def by_the_paper(row):
    """Numbers of blocks of 64, each rounded to the nearest of CODE times the largest of its block; in plain Python."""
    found = []
    for start in range(0, len(row), 64):
        block = row[start : start + 64]
        largest = max(abs(x) for x in block)
        found += [largest * min(CODE, key=lambda code, x=x: abs(code * largest - x)) for x in block]
    return found


def learned(source):
    """A model whose adapters have learned something: fresh ones change nothing."""
    torch.manual_seed(0)
    model, draw = source.full(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    return model


def adapted(path="random:llama", lora=LORA, **changes):
    return learned(Source(ModelConfig(path=str(path), lora=lora, **changes)))


def with_dequantised_weights(folder, target, **changes):
    """The same model with adapters beside plain matrices that hold the rounded numbers, read from a folder of them."""
    model = adapted(folder, **changes)
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    rounded = plain_state(model)
    own = load_file(folder / "model.safetensors")
    save_file(
        {n: rounded[n].contiguous() for n in own}, target / "model.safetensors", metadata={"format": "pt"}
    )
    return adapted(target, replace(changes.pop("lora", LORA), quantize_base="off"), **changes)


def values(model, answers=ANSWERS):
    with torch.no_grad():
        return logprobs(model, pack(answers), temperature=1.0, max_logits=10**9).values


def gradients(model):
    logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9).values.sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("shape", [(6, 64), (3, 50), (5, 7), (1, 1)], ids=str)
def test_numbers_are_rounded_as_the_paper_says(shape):
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=draw) * torch.logspace(-3, 2, shape[0])[:, None]
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    layer.weight.data = weight
    round_linear(layer)
    assert_close(
        layer.weight.flatten(), torch.tensor(by_the_paper(weight.flatten().tolist())), atol=0, rtol=1e-6
    )
    assert torch.equal(layer.rounded(weight), layer.weight)
    assert torch.equal(layer.rounded(layer.weight), layer.weight), "what is rounded stays as it is"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_type_holds_the_same_numbers_rounded_to_it(dtype):
    layer = torch.nn.Linear(64, 32, bias=False).to(getattr(torch, dtype))
    exact = by_the_paper(layer.weight.float().flatten().tolist())
    round_linear(layer)
    assert layer.weight.dtype == layer.dtype == getattr(torch, dtype)
    assert torch.equal(layer.weight.flatten(), torch.tensor(exact).to(layer.dtype))


def test_a_matrix_takes_four_and_a_half_bits_a_number():
    model = adapted()
    layers = [m for m in model.modules() if isinstance(m, Nf4Linear)]
    assert len(layers) == 14, "seven in each of two layers, and not the head"
    for layer in layers:
        assert [n for n, _ in layer.named_parameters()] == ["packed"]
        assert layer.packed.nbytes == 4.5 / 8 * layer.in_features * layer.out_features
    assert nf4_bytes(2 * BLOCK + 1) == 3 * 4 + 65
    plain = adapted(lora=replace(LORA, quantize_base="off"))
    held, whole = (sum(p.nbytes for p in m.parameters()) for m in (model, plain))
    assert whole - held == sum((4 - 4.5 / 8) * m.in_features * m.out_features for m in layers)
    assert sum(n for *_, n in numbers(model)) == sum(p.numel() for p in plain.parameters())
    parts = SingleTrainable(model, OptimizerConfig(), 1).parts()
    assert parts["weights"].nbytes() == held, "what the memory plan counts and moves"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "kind", [{}, {"use_dora": True}, {"use_rslora": True, "targets": ["q_proj", "down_proj"]}], ids=str
)
def test_passes_and_gradients_are_those_of_a_model_that_holds_the_rounded_numbers(
    tmp_path, kind, checkpointing
):
    settings = {"lora": replace(LORA, **kind), "gradient_checkpointing": checkpointing}
    folder = tiny_folder(tmp_path / "source", "qwen2")
    plain = with_dequantised_weights(folder, tmp_path / "rounded", **settings)
    model = adapted(folder, **settings)
    assert torch.equal(values(model), values(plain))
    found, expected = gradients(model), gradients(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], g) for n, g in expected.items())
    assert any(g.any() for g in found.values())


def test_a_plan_knows_what_such_a_model_holds_and_that_it_computes_as_much(tmp_path):
    model = ModelConfig(path=str(tiny_folder(tmp_path, "llama")), lora=LORA)
    shape, plain = (
        Shape(Source(replace(model, lora=replace(LORA, quantize_base=q)))) for q in ("nf4", "off")
    )
    for name in (
        "weights",
        "learned",
        "plain",
        "body",
        "inside",
        "largest_block",
        "linears",
        "kept",
        "operations",
    ):
        assert getattr(shape, name) == getattr(plain, name), name
    held = SingleTrainable(shape.source.full(), OptimizerConfig(), 1)
    stated = footprint(StrategyConfig(), shape, 1)
    assert stated.weights == shape.weight_bytes == held.parts()["weights"].nbytes()
    assert stated.optimizer == held.parts()["optimizer"].nbytes()
    assert whole_bytes(held.module) == 4 * shape.weights == plain.weight_bytes
    assert (shape.made_whole, plain.made_whole) == (4 * 64 * 128, 0), "gate, up or down"


def test_the_rounding_matters(tmp_path):
    folder = tiny_folder(tmp_path)
    assert (
        values(adapted(folder)) - values(adapted(folder, replace(LORA, quantize_base="off")))
    ).abs().max() > 1e-3


def test_nothing_but_the_packed_numbers_is_kept_for_the_backward_pass():
    layer = torch.nn.Linear(256, 512)
    round_linear(layer)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 256, requires_grad=True))
    assert [t.data_ptr() for t in kept] == [layer.packed.data_ptr()]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe", "qwen2_vl"])
def test_trainer_engine_saved_model_and_export_are_one_model(tmp_path, family):
    source = Source(ModelConfig(path=str(tiny_folder(tmp_path / "source", family)), lora=LORA))
    model, words = learned(source), tiny_processor()
    engine = NativeEngine(causal_lm(model), words.stop_ids, words.text, NativeEngineConfig())
    with merged_adapters(model):
        engine.load_weights(plain_state(model).items())
        sampling = training_sampling(RolloutConfig(group_size=2, max_tokens=8), seed=1)
        answers = [t for group in rollout(engine, [tiny_prompt(5)], sampling, words) for t in group]
    live = values(model, answers)
    assert_close(torch.tensor([x for t in answers for x in t.behavior]), live, atol=2e-5, rtol=0)
    save_model(model, words, tmp_path / "saved")
    saved = load_model(ModelConfig(path=str(tmp_path / "saved")))
    assert_close(values(saved, answers), live, atol=1e-5, rtol=0)
    empty = source.empty()
    for exported in (
        dict(full_weights(model, whole, torch.float32)),
        dict(full_weights(empty, from_files(source, empty, model), torch.float32)),
    ):
        assert exported.keys() == saved.state_dict().keys()
        for name, weight in exported.items():
            assert_close(weight, saved.state_dict()[name], atol=1e-6, rtol=1e-6, msg=name)


def whole(tensor, dtype):
    assert tensor.is_floating_point(), "the bytes of rounded numbers are no weight"
    return tensor.detach().to(dtype)


def from_files(source, empty, model):
    """What `lightrft export` reads: the files of the model as they were, and what has learned."""
    stored, own = source.whole(), {p: n for n, p in source.missing(empty).items()}
    names, learning = {p: n for n, p in empty.named_parameters()}, dict(model.named_parameters())
    return lambda p, dtype: (learning[names[p]] if p.requires_grad else stored[own[p]]).detach().to(dtype)


def test_the_reference_is_the_rounded_model_without_adapters(tmp_path):
    folder = tiny_folder(tmp_path / "source")
    plain = load_model(ModelConfig(path=str(folder)))
    model = adapted(folder)
    apart = Source(ModelConfig(path=str(folder), lora=LORA), learns=False, rounded=True).full()
    own = WithoutAdapters(SingleTrainable(model, OptimizerConfig(), 1))
    assert torch.equal(own.compute(values), values(apart))
    assert not torch.equal(values(plain), values(apart))
    assert list(plain_state(apart)) == list(plain.state_dict())
    assert sum(isinstance(m, Nf4Linear) for m in apart.modules()) == 14, "it takes as little memory"


def test_folding_adapters_in_and_out_leaves_every_bit_as_it_was():
    model = adapted()
    before, answers = {n: p.clone() for n, p in model.named_parameters()}, values(model)
    for error in (None, KeyError):
        try:
            with merged_adapters(model):
                assert not [m for m in model.modules() if isinstance(m, Nf4Linear)]
                assert_close(values(model), answers, atol=1e-5, rtol=0)
                if error is not None:
                    raise error
        except KeyError:
            pass
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in after.items())
    assert torch.equal(values(model), answers)


def test_transformers_rounds_the_same_matrices_to_the_same_numbers(tmp_path):
    """What a user gets who loads the base by BitsAndBytesConfig to put the adapters beside it."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    folder = tiny_folder(tmp_path / "source", "qwen2")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    found = {n: m.weight for n, m in theirs.named_modules() if type(m).__name__ == "Linear4bit"}
    ours = plain_state(adapted(folder))
    assert found.keys() == {n.removesuffix(".packed") for n in source_names(folder)}
    for name, weight in found.items():
        assert torch.equal(dequantize_4bit(weight.data, weight.quant_state), ours[f"{name}.weight"]), name


def source_names(folder):
    apart = Source(ModelConfig(path=str(folder), lora=LORA), learns=False, rounded=True).full()
    return [n for n, p in apart.named_parameters() if p.dtype is torch.uint8]


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["p_proj"]], ids=str)
def test_targets_that_cannot_be_adapted_are_refused_as_without(targets):
    with pytest.raises(ValueError, match="model.lora.targets: "):
        Source(ModelConfig(path="random:llama", lora=replace(LORA, targets=targets))).full()


def test_layers_of_another_kind_are_refused_before_weights_load(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from lightrft.models.lora import check_targets

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16)).to("meta")
    with pytest.raises(
        ValueError, match="model.lora.quantize_base=nf4: 'transformer.h.0.attn.c_attn' is of type Conv1D"
    ):
        check_targets(model, ModelConfig(path="random:llama", lora=LORA))
