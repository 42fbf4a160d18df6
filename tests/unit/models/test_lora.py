"""Low-rank adapters: what trains, what is sampled from, what is saved."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lightrft.config import LoraConfig, ModelConfig, NativeEngineConfig, OptimizerConfig, RolloutConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.export import save_model
from lightrft.models.load import load_model
from lightrft.models.logprobs import causal_lm, logprobs
from lightrft.models.lora import full_weights, is_adapted, merged_adapters, plain_state
from lightrft.models.source import Source
from lightrft.models.tiny import FAMILIES
from lightrft.strategy.single import SingleTrainable, WithoutAdapters
from lightrft.testing import tiny_folder, tiny_processor, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout, training_sampling

ANSWERS = tiny_trajectories([(6, [5, 3]), (4, [1, 8])])
SETTINGS = LoraConfig(rank=4, alpha=8)


def adapted(family="llama", dtype="float32", lora=SETTINGS, path="", **changes):
    """A model whose adapters have learned something: fresh ones change nothing."""
    torch.manual_seed(0)
    model = load_model(ModelConfig(path=path or f"random:{family}", dtype=dtype, lora=lora, **changes))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    return model


def values(model, answers=ANSWERS):
    with torch.no_grad():
        return logprobs(model, pack(answers), temperature=1.0, max_logits=10**9).values


def base_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}


def assert_base_untouched(model, before):
    after = base_weights(model)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_fresh_adapters_change_nothing():
    plain = load_model(ModelConfig(path="random:llama"))
    fresh = load_model(ModelConfig(path="random:llama", lora=SETTINGS))
    assert torch.equal(values(fresh), values(plain))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_train(dtype):
    model = adapted(dtype=dtype)
    before = base_weights(model)
    old = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    actor = SingleTrainable(model, OptimizerConfig(learning_rate=0.01), 3)
    learning = {n for n in actor.tensor_state() if n.startswith("weights/")}
    assert learning == {f"weights/{name}" for name in old}
    for _ in range(3):
        actor.backward(logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9).values.sum())
        actor.step(actor.gradient_norm())
    assert_base_untouched(model, before)
    assert all(not torch.equal(p, old[name]) for name, p in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_merging_and_unmerging_leaves_every_bit_of_the_base_as_it_was(family):
    model = adapted(family)
    before, answers = base_weights(model), values(model)
    for _ in range(3):
        with merged_adapters(model):
            assert any(not torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)
    assert_base_untouched(model, before)
    assert torch.equal(values(model), answers)


@pytest.mark.parametrize(
    "kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_are_the_bits_that_other_backends_and_exports_make(dtype, kind):
    """Merged by peft, 14 tensors of a small bfloat16 model were one rounding away."""
    model = adapted(dtype=dtype, lora=LoraConfig(rank=4, alpha=8, **kind))
    wanted = dict(full_weights(model, lambda t, kept: t.detach().to(kept), getattr(torch, dtype)))
    with merged_adapters(model):
        found = {name: weight.clone() for name, weight in plain_state(model).items()}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_an_error_while_merged_leaves_the_base_as_it_was():
    model = adapted()
    before, answers = base_weights(model), values(model)
    with pytest.raises(KeyError), merged_adapters(model):
        raise KeyError
    assert_base_untouched(model, before)
    assert torch.equal(values(model), answers)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_merged_weights_answer_as_the_adapters_do(dtype, tolerance):
    model = adapted(dtype=dtype)
    apart = values(model)
    with merged_adapters(model):
        assert_close(values(model), apart, atol=tolerance, rtol=0)
    with model.disable_adapter():
        assert (values(model) - apart).abs().max() > 3 * tolerance, "the adapters matter"


def test_the_engine_samples_from_the_adapted_model():
    """Log-probs of the rollout, with adapters merged, are those of the trainer, with adapters beside."""
    model = adapted("qwen3")
    engine = NativeEngine(
        causal_lm(model), tiny_processor().stop_ids, tiny_processor().text, NativeEngineConfig()
    )
    sampling = training_sampling(RolloutConfig(group_size=3, max_tokens=12), seed=1)
    with merged_adapters(model):
        engine.load_weights(plain_state(model).items())
        groups = rollout(engine, [tiny_prompt(9)], sampling, tiny_processor())
    answers = [t for group in groups for t in group]
    assert_close(
        values(model, answers), torch.tensor([x for t in answers for x in t.behavior]), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_model_is_the_merged_model(tmp_path, dtype):
    model = adapted("qwen2", dtype)
    before = base_weights(model)
    save_model(model, tiny_processor(), tmp_path)
    assert_base_untouched(model, before)
    tokens = torch.tensor([[1, 2, 3, 4]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert plain.dtype == getattr(torch, dtype)
    causal_lm(model).set_attn_implementation("eager")
    close = {"atol": 1e-6, "rtol": 1e-6} if dtype == "float32" else {"atol": 1e-2, "rtol": 1e-2}
    with torch.no_grad(), merged_adapters(model):
        saved = plain.state_dict()
        for name, weight in plain_state(model).items():
            assert torch.equal(saved[name], weight), name
        assert_close(plain(tokens).logits, causal_lm(model)(tokens).logits, **close)


def test_the_reference_of_an_adapted_model_is_the_model_it_started_from():
    plain, model = load_model(ModelConfig(path="random:llama")), adapted()
    reference = WithoutAdapters(SingleTrainable(model, OptimizerConfig(), 1))
    apart = values(model)
    assert torch.equal(reference.compute(values), values(plain))
    assert torch.equal(values(model), apart)
    assert reference.parts() == {}


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for again in (False, True):
        model = adapted(gradient_checkpointing=again)
        logprobs(model, pack(ANSWERS), temperature=1.0, max_logits=10**9).values.sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_chosen_layers_alone_are_adapted():
    model = adapted(lora=LoraConfig(rank=2, targets=["q_proj", "v_proj"]))
    adapters = {
        name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name
    }
    assert adapters == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_all_linear_leaves_experts_in_one_tensor_as_they_are(family):
    model = adapted(family, lora=LoraConfig(rank=2))
    adapters = {
        name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_" in name
    }
    assert adapters == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["p_proj"], "no layer of the model is called 'p_proj'. Its linear layers: down_proj, gate_proj"),
        (["q_proj", "p_proj"], "no layer of the model is called 'p_proj'"),
        (["lm_head"], "'lm_head' is the head of the model"),
        (["o_proj", "lm_head"], "'lm_head' is the head of the model"),
        (["q_proj", "embed_tokens"], "'model.embed_tokens' is of type Embedding"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_targets_that_something_would_miss_are_refused_by_name(tmp_path, targets, told, tied, sharded):
    """The loss and the engine multiply with the head's own matrix: an adapter beside it would never learn."""
    folder = tiny_folder(tmp_path, tie_word_embeddings=tied)
    (folder / "model.safetensors").unlink()  # refused before weights are read
    source = Source(ModelConfig(path=str(folder), lora=LoraConfig(rank=2, targets=targets)))
    with pytest.raises(ValueError, match="model.lora.targets: ") as error:
        source.empty() if sharded else source.full()
    assert told in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["all-linear"], ["o_proj"], ["q_proj", "down_proj"]], ids=",".join)
def test_trainer_engine_saved_model_and_export_are_one_model(tmp_path, family, tied, targets):
    lora = LoraConfig(rank=2, alpha=8, targets=targets)
    source = tiny_folder(tmp_path / "source", family, tie_word_embeddings=tied)
    model = adapted(path=str(source), lora=lora)
    engine = NativeEngine(
        causal_lm(model), tiny_processor().stop_ids, tiny_processor().text, NativeEngineConfig()
    )
    with merged_adapters(model):
        engine.load_weights(plain_state(model).items())
        sampling = training_sampling(RolloutConfig(group_size=2, max_tokens=8), seed=1)
        answers = [
            t for group in rollout(engine, [tiny_prompt(5)], sampling, tiny_processor()) for t in group
        ]
    live = values(model, answers)
    assert_close(torch.tensor([x for t in answers for x in t.behavior]), live, atol=2e-5, rtol=0)
    save_model(model, tiny_processor(), tmp_path / "saved")
    assert_close(
        values(load_model(ModelConfig(path=str(tmp_path / "saved"))), answers), live, atol=1e-5, rtol=0
    )
    exported = dict(full_weights(model, lambda tensor, dtype: tensor.detach().to(dtype), torch.float32))
    saved = load_model(ModelConfig(path=str(tmp_path / "saved"))).state_dict()
    assert exported.keys() == saved.keys()
    for name, weight in exported.items():
        assert_close(weight, saved[name], atol=1e-6, rtol=1e-6, msg=name)


def test_the_weights_for_the_engine_have_the_names_of_the_plain_model():
    plain = load_model(ModelConfig(path="random:llama"))
    assert list(plain_state(adapted())) == list(plain.state_dict())


def test_a_copy_of_an_adapted_model_is_one():
    assert is_adapted(copy.deepcopy(adapted()))
    assert not is_adapted(load_model(ModelConfig(path="random:llama")))
