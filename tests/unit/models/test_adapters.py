"""Adapter folders: peft loads them onto the plain model, and a run starts from them."""

import json
import math

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lightrft.build.models import build_reference, check_reference
from lightrft.config import Config, LoraConfig, ModelConfig, OptimizerConfig, StrategyConfig
from lightrft.models.adapters import LearningDropout, adapter_name
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import check_whole, full_weights, merged_adapters, plain_state
from lightrft.models.source import Source
from lightrft.models.tiny import FAMILIES
from lightrft.parallel.world import World
from lightrft.strategy.single import Single, SingleFrozen, SingleTrainable, WithoutAdapters
from lightrft.testing import tiny_folder
from lightrft.trainer.write import write_adapters

TOKENS = torch.tensor([[1, 2, 3, 4]])


def learned_something(config):
    """A model whose adapters, norms and whole parts have moved: fresh adapters change nothing."""
    torch.manual_seed(0)
    model = load_model(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    return model


def logits(model):
    causal_lm(model).set_attn_implementation("eager")
    with torch.no_grad():
        return causal_lm(model)(TOKENS).logits if not isinstance(model, PeftModel) else model(TOKENS).logits


def saved(model, folder):
    write_adapters(SingleTrainable(model, OptimizerConfig(), 1), folder, World())
    return folder


KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "norms": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "plain") for family in FAMILIES), *(("qwen2", kind) for kind in KINDS if kind != "plain")],
)
def test_peft_loads_the_folder_to_the_logits_of_the_merged_model(tmp_path, family, kind):
    base = tiny_folder(tmp_path / "base", family)
    model = learned_something(ModelConfig(path=str(base), lora=LoraConfig(rank=2, alpha=8, **KINDS[kind])))
    saved(model, tmp_path / "adapter")
    with merged_adapters(model):
        merged = {name: weight.clone() for name, weight in plain_state(model).items()}
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    before = logits(plain)
    plain.load_state_dict(merged)
    wanted = logits(plain)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), tmp_path / "adapter"
    )
    assert_close(logits(theirs), wanted, atol=1e-5, rtol=0)
    assert (wanted - before).abs().max() > 1e-3, "the adapters matter"
    gathered = dict(full_weights(model, lambda t, dtype: t.detach().to(dtype), torch.float32))
    for name, weight in merged.items():
        assert_close(gathered[name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank():
    model = load_model(ModelConfig(path="random:llama", lora=LoraConfig(rank=4, alpha=8, use_rslora=True)))
    scales = {m.scaling["default"] for m in model.modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")}
    assert scales == {8 / math.sqrt(4)}


def test_merging_adapters_with_norms_leaves_every_bit_as_it_was():
    model = learned_something(ModelConfig(path="random:llama", lora=LoraConfig(rank=2, use_dora=True)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with merged_adapters(model):
        pass
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_inputs_are_dropped_in_passes_with_a_gradient_alone():
    model = learned_something(ModelConfig(path="random:llama", lora=LoraConfig(rank=2, dropout=0.5)))
    assert torch.equal(logits(model), logits(model))
    one, two = causal_lm(model)(TOKENS).logits, causal_lm(model)(TOKENS).logits
    assert (one - two).abs().max() > 1e-4
    dropped = LearningDropout(0.25)(torch.ones(4000, requires_grad=True))
    assert_close(dropped.mean().detach(), torch.tensor(1.0), atol=0.05, rtol=0)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
def test_a_run_starts_from_the_adapters_of_a_folder(tmp_path, kind):
    lora = LoraConfig(rank=2, alpha=8, **KINDS[kind])
    model = learned_something(ModelConfig(path="random:qwen3", lora=lora))
    folder = saved(model, tmp_path / "adapter")
    again = load_model(
        ModelConfig(path="random:qwen3", lora=LoraConfig(rank=2, alpha=8, start=str(folder), **KINDS[kind]))
    )
    assert torch.equal(logits(again), logits(model))
    assert any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(
    ("changes", "path", "told"),
    [
        ({"rank": 4}, "random:llama", "have r=2, and model.lora.rank=4. Set: --model.lora.start"),
        ({"use_rslora": True}, "random:llama", "have use_rslora=False"),
        ({"targets": ["q_proj"]}, "random:llama", "has shape"),
        ({}, "random:qwen2", "has shape"),
        ({"start": "nowhere"}, "random:llama", "adapter_config.json cannot be read"),
    ],
)
def test_adapters_of_another_kind_are_refused_by_name(tmp_path, changes, path, told):
    lora = LoraConfig(rank=2, alpha=8, targets=["q_proj", "v_proj"])
    folder = saved(load_model(ModelConfig(path="random:llama", lora=lora)), tmp_path / "adapter")
    given = {"rank": 2, "alpha": 8, "targets": ["q_proj", "v_proj"], "start": str(folder), **changes}
    if path == "random:qwen2":
        given["targets"] = ["all-linear"]
    with pytest.raises(ValueError, match="model.lora.start=") as error:
        load_model(ModelConfig(path=path, lora=LoraConfig(**given)))
    assert told in str(error.value)


def test_a_model_path_that_holds_adapters_says_how_to_take_them(tmp_path):
    model = load_model(ModelConfig(path="random:llama", lora=LoraConfig(rank=2, alpha=8, use_rslora=True)))
    folder = saved(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds adapters, not a model") as error:
        load_processor(ModelConfig(path=str(folder)))
    wanted = f"--model.lora.start {folder} --model.lora.rank 2 --model.lora.alpha 8 --model.lora.use-rslora"
    assert wanted in str(error.value)


def test_the_folder_names_its_base(tmp_path):
    base = tiny_folder(tmp_path / "base")
    folder = saved(load_model(ModelConfig(path=str(base), lora=LoraConfig(rank=2))), tmp_path / "adapter")
    said = json.loads((folder / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["inference_mode"]) == (str(base), True)


@pytest.mark.parametrize(
    ("name", "tied", "told"),
    [
        ("nowhere", False, "names no part of the model"),
        ("mlp", False, "has adapters in it"),
        ("lm_head", True, "ties its head to its embedding"),
        ("embed_tokens", True, "ties its head to its embedding"),
    ],
)
def test_whole_parts_that_could_not_be_given_back_are_refused(tmp_path, name, tied, told):
    base = tiny_folder(tmp_path, tie_word_embeddings=tied)
    lora = LoraConfig(rank=2, modules_to_save=[name])
    with pytest.raises(ValueError, match=f"model.lora.modules_to_save: '{name}'") as error:
        load_model(ModelConfig(path=str(base), lora=lora))
    assert told in str(error.value)


def test_the_reference_is_read_apart_where_whole_parts_learn():
    strategy = Single(StrategyConfig(), torch.device("cpu"))
    for whole, kind in (([], WithoutAdapters), (["norm"], SingleFrozen)):
        lora = LoraConfig(rank=2, modules_to_save=whole)
        source = Source(ModelConfig(path="random:llama", lora=lora))
        actor = strategy.trainable(source, OptimizerConfig(), 1)
        assert isinstance(build_reference(source, actor, strategy), kind)
    with pytest.raises(ValueError, match="Set model.path to the merged model"):
        check_reference(ModelConfig(lora=LoraConfig(rank=2, start="there")))


def test_settings_that_do_not_go_together_are_refused_by_name():
    with pytest.raises(ValueError, match=r"model.lora.dropout=0.1 has no effect"):
        LoraConfig(dropout=0.1)
    with pytest.raises(ValueError, match=r"dropout=0.1 with model.lora.use_dora"):
        LoraConfig(rank=2, dropout=0.1, use_dora=True)
    with pytest.raises(ValueError, match=r"model.lora.dropout=1"):
        LoraConfig(rank=2, dropout=1.0)
    with pytest.raises(ValueError, match="strategy.backend=fsdp: a norm is of whole weights"):
        check_whole(LoraConfig(rank=2, use_dora=True), "fsdp")
    with pytest.raises(
        ValueError, match="quantize_base=nf4 with strategy.backend=zero1: .* Set model.lora.quantize_base=off"
    ):
        check_whole(LoraConfig(rank=2, quantize_base="nf4"), "zero1")
    with pytest.raises(ValueError, match="model.lora.quantize_base=nf4 has no effect"):
        LoraConfig(quantize_base="nf4")
    with pytest.raises(ValueError, match="model.lora.quantize_base=nf4 with model.compile=true"):
        ModelConfig(path="random:llama", compile=True, lora=LoraConfig(rank=2, quantize_base="nf4"))
    with pytest.raises(ValueError, match="model.lora.dropout=0.1 with lightrft train"):
        Config(model=ModelConfig(path="random:llama", lora=LoraConfig(rank=2, dropout=0.1)))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("base_model.model.q_proj.lora_A.default.weight", "base_model.model.q_proj.lora_A.weight"),
        ("base_model.model.default.q.lora_B.default.bias", "base_model.model.default.q.lora_B.bias"),
        (
            "base_model.model.q.lora_magnitude_vector.default.weight",
            "base_model.model.q.lora_magnitude_vector",
        ),
        ("base_model.model.default.weight", "base_model.model.default.weight"),
    ],
)
def test_names_in_a_folder_are_those_of_peft(name, wanted):
    assert adapter_name(name) == wanted
