"""Folders of weights that come one at a time: what plain transformers loads from them is the model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lightrft.cli import main
from lightrft.commands.export import export, export_adapter
from lightrft.config import CheckpointConfig, Config, LoraConfig, ModelConfig, OptimizerConfig
from lightrft.engines.external import WeightNames
from lightrft.models.export import published, save_model, write_folder
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.lora import plain_state
from lightrft.models.source import Source
from lightrft.models.tiny import tiny_model
from lightrft.models.tiny_media import MEDIA
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.batching import pack

TOKENS = torch.tensor([[1, 2, 3, 4]])


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="auto")


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}.items()


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_many_files_is_the_model(tmp_path, tied):
    path = tiny_folder(tmp_path / "made", "qwen2", tie_word_embeddings=tied)
    model = load_model(ModelConfig(path=str(path), dtype="bfloat16"))
    write_folder(model, tiny_processor(), weights_of(model), tmp_path / "out", file_bytes=50_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    again = loaded(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert again.config.architectures == ["Qwen2ForCausalLM"]
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_the_weights_of_a_layer_stay_in_one_file(tmp_path):
    model = load_model(ModelConfig(path="random:llama"))
    write_folder(model, tiny_processor(), weights_of(model), tmp_path, file_bytes=1)
    found = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for layer in ("model.layers.0.", "model.layers.1."):
        assert len({file for name, file in found.items() if name.startswith(layer)}) == 1
    assert len(set(found.values())) == 4  # embeddings, two layers, the last norm


def taught(tmp_path, rank):
    """Settings and a checkpoint, in tmp_path/run, of a model that has learned for three updates; the model beside them."""
    base = tiny_folder(tmp_path / "base", "llama")
    config = Config(model=ModelConfig(path=str(base), lora=LoraConfig(rank=rank)))
    torch.manual_seed(0)
    actor = SingleTrainable(Source(config.model).full(), OptimizerConfig(learning_rate=1e-2), 3)
    for _ in range(3):
        batch = pack(tiny_trajectories([(4, [5, 3])]))
        actor.backward(-logprobs(actor.module, batch, temperature=1.0, max_logits=10**6).values.sum())
        actor.step(actor.gradient_norm())
    Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig(), World()).save(
        3, {"numbers": {"actor": actor.scalar_state()}}, {"actor": actor.tensor_state()}
    )
    return config, actor


@pytest.mark.parametrize("rank", [0, 4])
def test_an_exported_checkpoint_is_the_model_that_was_saved(tmp_path, rank):
    config, actor = taught(tmp_path, rank)
    base, run = tmp_path / "base", tmp_path / "run"
    save_model(actor.module, tiny_processor(), tmp_path / "live")
    being_written = run / "checkpoints" / ".tmp-step-000004-1"
    being_written.mkdir()
    export(config, run, tmp_path / "out", None, 5.0)
    assert being_written.is_dir(), "a live run may be writing there"
    with torch.no_grad():
        found, expected = (loaded(tmp_path / name)(TOKENS).logits for name in ("out", "live"))
        assert not torch.allclose(expected, loaded(base)(TOKENS).logits, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_exported_adapter_makes_the_model_that_was_saved_of_its_base(tmp_path):
    config, actor = taught(tmp_path, 4)
    save_model(actor.module, tiny_processor(), tmp_path / "live")
    export_adapter(config, tmp_path / "run", tmp_path / "out", 3)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(".lora_" in name and tensor.dtype is torch.float32 for name, tensor in stored.items())
    with torch.no_grad():
        found = PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "out")(TOKENS).logits
        expected = loaded(tmp_path / "live")(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    resized = replace(config, model=replace(config.model, lora=LoraConfig(rank=2)))
    with pytest.raises(ValueError, match="the checkpoint is of another model: .*lora_A"):
        export_adapter(resized, tmp_path / "run", tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


def test_an_adapter_is_exported_only_of_a_run_that_learned_one(tmp_path, capsys):
    with pytest.raises(ValueError, match="--adapter: .*run learned no adapters .model.lora.rank=0.. Leave"):
        export_adapter(Config(), tmp_path / "run", tmp_path / "out", None)
    for flag, value in (("--output", "cost"), ("--file-gb", "2")):
        assert main(["export", "run", "out", "--adapter", flag, value]) == 2
        assert f"{flag} has no effect with --adapter" in capsys.readouterr().err


def test_an_export_goes_into_a_new_folder_only(tmp_path):
    run = tmp_path / "run"
    Checkpoints(run / "checkpoints", CheckpointConfig(), World()).save(
        3, {}, {"actor": {"w": torch.zeros(2)}}
    )
    with pytest.raises(ValueError, match="is not empty"):
        export(Config(), run, run, None, 5.0)
    with pytest.raises(ValueError, match="step-000007 cannot be used: meta.json"):
        export(Config(), run, tmp_path / "out", 7, 5.0)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        export(Config(), tmp_path / "other", tmp_path / "out", None, 5.0)


EXPERTS = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 260, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
}  # fmt: skip


def of_kind(kind):
    if kind != "qwen3_moe":
        return tiny_model(kind)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **EXPERTS))


@pytest.mark.parametrize("kind", ["llama", "qwen2_vl", "qwen3_moe"])
def test_other_programs_are_given_weights_as_transformers_writes_them(tmp_path, kind):
    """Experts, computed in one tensor, are written one by one; pictures' parts have other names."""
    model = of_kind(kind)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    once = WeightNames.of(model)
    found = dict(once.for_checkpoint((n, p.detach()) for n, p in model.state_dict().items()))
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
    assert (found.keys() <= model.state_dict().keys()) == (kind == "llama")


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", *MEDIA])
def test_other_programs_are_given_the_same_names_whatever_files_a_model_came_from(tmp_path, kind):
    """Files as transformers writes them, files under the names that it computes with, and none (a sharding backend's model)."""
    model = of_kind(kind)
    model.save_pretrained(tmp_path / "written")
    shutil.copytree(tmp_path / "written", tmp_path / "computed")
    usual = WeightNames.of(model)
    computed = {n: t.contiguous() for n, t in plain_state(model).items() if n not in usual.tied}
    save_file(computed, tmp_path / "computed" / "model.safetensors", metadata={"format": "pt"})
    names = []
    for folder in ("written", "computed"):
        source = Source(ModelConfig(path=str(tmp_path / folder)), learns=False)
        for module in (source.full("cpu"), source.empty()):
            found = WeightNames.of(module).for_checkpoint(iter(plain_state(module).items()))
            names.append([name for name, _ in found])
    assert names[0] == names[1] == names[2] == names[3]
    written = set(load_file(tmp_path / "written" / "model.safetensors"))
    if kind in ("llava", "gemma3_vl"):
        written = {name.replace("vision_tower.", "vision_tower.vision_model.") for name in written}
    assert set(names[0]) == written


@pytest.mark.parametrize("kind", ["llava", "gemma3_vl"])
def test_towers_that_see_are_named_as_in_checkpoints_that_people_publish(tmp_path, kind):
    """As in llava-hf/llava-1.5-7b-hf and google/gemma-3-4b-it; transformers leaves a part out for a model that came from no file."""
    model = tiny_model(kind)
    save_model(model, load_processor(ModelConfig(path=f"random:{kind}")), tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    given = dict(WeightNames.of(model).for_checkpoint(plain_state(model).items()))
    assert written.keys() == given.keys()
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in given
    assert "language_model.model.embed_tokens.weight" in given
    again = type(model).from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.mark.parametrize("from_folder", [False, True])
def test_of_most_models_one_weight_is_in_memory_at_a_time(tmp_path, from_folder):
    held, model = [], tiny_model("llama")
    if from_folder:
        model = load_model(ModelConfig(path=str(tiny_folder(tmp_path / "m"))), trainable=False)

    def weights():
        for name, parameter in model.named_parameters():
            held.append(name)
            yield name, parameter.detach()

    for count, _ in enumerate(published(model, weights()), 1):
        assert len(held) == count
