import copy
import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.commands.plan.shape import Shape
from lightrft.config import ModelConfig
from lightrft.models.attention import ATTENTION
from lightrft.models.describe import model_folder, without_weights
from lightrft.models.export import save_model
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.tiny import FAMILIES
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.batching import pack

TOKENS = torch.tensor([[1, 2, 3, 4]])


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_again_by_us_and_by_transformers(tmp_path, family):
    model = load_model(ModelConfig(path=f"random:{family}"))
    save_model(model, tiny_processor(), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    again = load_model(ModelConfig(path=str(tmp_path)))
    with torch.no_grad():
        assert_close(plain(TOKENS).logits, model(TOKENS, use_cache=False).logits, atol=1e-5, rtol=0)
    for (name, mine), (_, other) in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_a_saved_model_names_no_attention_of_ours(tmp_path):
    save_model(load_model(ModelConfig(path="random:llama")), tiny_processor(), tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_a_saved_model_brings_its_tokenizer_template_and_end_token(tmp_path):
    save_model(load_model(ModelConfig(path="random:llama")), tiny_processor(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "é?"}]
    ours = tiny_processor().tokens(messages)
    assert (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
        == ours
    )
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_held_in_the_type_that_was_asked_for(tmp_path, dtype):
    tiny_folder(tmp_path)
    for path in (str(tmp_path), "random:llama"):
        model = load_model(ModelConfig(path=path, dtype=dtype))
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_reference_takes_no_gradients():
    model = load_model(ModelConfig(path="random:llama"), trainable=False)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_activation_checkpointing_changes_no_number():
    batch = pack(tiny_trajectories([(6, [5, 3])]))
    found = []
    for again in (
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "checkpoint_every": 2},
    ):
        model = load_model(ModelConfig(path="random:qwen3", **again))
        result = logprobs(model, batch, temperature=1.0, max_logits=10**9).values
        result.sum().backward()
        found.append([result.detach(), *(p.grad for p in model.parameters())])
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_of_several_layers_one_is_recomputed_and_the_others_keep_what_they_computed():
    """Memory lies between that of none and all, counted on a model without weights as `lightrft plan` does."""
    kept = {
        every: Shape(
            Source(
                ModelConfig(
                    path="random:qwen3", gradient_checkpointing=bool(every), checkpoint_every=every or 1
                )
            )
        ).kept
        for every in (0, 1, 2)
    }
    assert kept[2] == pytest.approx((kept[0] + kept[1]) / 2, rel=0.1), (
        "two layers, of which one is recomputed"
    )
    with pytest.raises(ValueError, match="model.checkpoint_every=2 has no effect without"):
        ModelConfig(checkpoint_every=2)


def test_a_copied_model_is_a_model_of_its_own():
    """Its layers multiply with its own weights, not with those of the model it was copied from."""
    model = load_model(ModelConfig(path="random:llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        for p in other.parameters():
            p.zero_()
        assert float(other(TOKENS, use_cache=False).logits.abs().max()) == 0
        assert torch.equal(model(TOKENS, use_cache=False).logits, expected)


# -- end tokens --------------------------------------------------------------------------------------------------------


def test_end_tokens_come_from_tokenizer_model_and_generation_settings(tmp_path):
    """Models with several end tokens list them in one place or another; all of them end an answer."""
    tiny_folder(tmp_path)
    edit(tmp_path / "config.json", eos_token_id=[3, 4])
    edit(tmp_path / "generation_config.json", eos_token_id=[5])
    assert load_processor(ModelConfig(path=str(tmp_path))).stop_ids == {256, 3, 4, 5}


def test_all_end_tokens_are_saved(tmp_path):
    processor = tiny_processor()
    processor.stop_ids = frozenset({256, 7})
    save_model(load_model(ModelConfig(path="random:llama")), processor, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [7, 256]
    assert load_processor(ModelConfig(path=str(tmp_path))).stop_ids == {256, 7}


def test_a_model_without_generation_settings_is_fine(tmp_path):
    tiny_folder(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert load_processor(ModelConfig(path=str(tmp_path))).stop_ids == {256}


# -- where a model lies ------------------------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is_and_a_hub_name_is_left_to_transformers(tmp_path, monkeypatch):
    tiny_folder(tmp_path)
    assert model_folder(ModelConfig(path=str(tmp_path))) == str(tmp_path)
    monkeypatch.setenv(
        "HTTPS_PROXY", "http://localhost:1"
    )  # a proxy may know a name that this machine does not
    assert model_folder(ModelConfig(path="owner/name")) == "owner/name"


@pytest.mark.parametrize("path", ["./none", "/none", "~/none", "none", "a/b/c"])
def test_what_is_neither_folder_nor_hub_name_is_told(path):
    with pytest.raises(ValueError, match=f"model.path={path}: there is no such folder"):
        model_folder(ModelConfig(path=path))


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    tiny_folder(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_folder(ModelConfig(path="~/model")) == str(tmp_path / "model")


def test_an_architecture_that_transformers_does_not_know_is_told(tmp_path):
    tiny_folder(tmp_path)
    edit(tmp_path / "config.json", model_type="unheard_of", architectures=["UnheardOf"])
    with pytest.raises(ValueError, match=f"model.path={tmp_path}"):
        load_processor(ModelConfig(path=str(tmp_path)))


# -- the template ------------------------------------------------------------------------------------------------------


def test_ones_own_chat_template_replaces_the_tokenizers(tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    processor = load_processor(ModelConfig(path=str(folder), chat_template=str(tmp_path / "mine.jinja")))
    assert processor.rendered([{"role": "user", "content": "why?"}]) == "Q: why? A:"


def test_the_plain_template_joins_contents_with_newlines(tmp_path):
    processor = load_processor(ModelConfig(path=str(tiny_folder(tmp_path)), chat_template="plain"))
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert processor.rendered(messages) == "a\nb\n"


def test_ones_own_template_works_for_a_random_model_too(tmp_path):
    processor = load_processor(ModelConfig(path="random:llama", chat_template="plain"))
    assert processor.rendered([{"role": "user", "content": "b"}]) == "b\n"


def test_the_architecture_of_a_folder_can_be_had_untrained_and_always_the_same(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen3", num_hidden_layers=3)
    (folder / "model.safetensors").unlink()
    settings = ModelConfig(path=f"random:{folder}")
    one, other = load_model(settings), load_model(settings)
    assert len(one.model.layers) == 3
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert load_processor(settings).tokenizer.get_vocab()
    assert sum(p.numel() for p in without_weights(settings).parameters()) == sum(
        p.numel() for p in one.parameters()
    )
