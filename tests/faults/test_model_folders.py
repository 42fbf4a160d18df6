"""Model folders that two readers would read differently, or that hold no plain weights: refused by name before weights load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightrft.config import ModelConfig
from lightrft.models.describe import model_folder
from lightrft.models.lazy import empty_model
from lightrft.models.load import load_model, load_processor
from lightrft.models.packages import package_model
from lightrft.models.weights import Weights
from lightrft.testing import tiny_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "base", "llama", seed=0)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return tiny_folder(
        tmp_path_factory.mktemp("models") / "untied", "llama", seed=0, tie_word_embeddings=False
    )


@pytest.fixture
def copy(base, tmp_path):
    def make(of=None, **changes):
        folder = shutil.copytree(of or base, tmp_path / "odd")
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **changes}))
        return folder

    return make


def stale(folder):
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    )


def both(folder):
    (folder / "adapter_config.json").write_text("{}")


def eight_bits(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(n for n, w in weights.items() if w.dim() == 2 and "layers" in n)
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
CODE = {"model_type": "xmodel", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}


@pytest.mark.parametrize(
    ("spoil", "changes", "told"),
    [
        (stale, {}, "two saves"),
        (both, {}, "a model and an adapter"),
        (eight_bits, {}, "F8_E4M3"),
        (None, QUANTISED, "quantised .bitsandbytes."),
        (None, CODE, "needs code of its own"),
    ],
)
def test_every_reader_refuses_an_odd_folder_by_the_same_words(copy, spoil, changes, told):
    folder = copy(**changes)
    if spoil is not None:
        spoil(folder)
    config = ModelConfig(path=str(folder))
    for reader in (model_folder, load_processor, load_model, empty_model, Weights.of):
        with pytest.raises(ValueError, match=told):
            reader(config)


def test_two_matrices_that_should_be_one_are_refused(copy, untied):
    with pytest.raises(ValueError, match="holds? two different matrices|two different matrices"):
        load_model(ModelConfig(path=str(copy(untied, tie_word_embeddings=True))))


def test_two_equal_matrices_that_should_be_one_are_read(copy, base):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(ModelConfig(path=str(folder)))


def test_weights_that_are_no_numbers_are_named(copy):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.norm.weight holds NaN"):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("name", ["--requirement=req.txt", "-r", "a b", "../x", "a/b", ""])
def test_a_package_is_named_by_a_name_and_no_option_of_pip(tmp_path, name):
    with pytest.raises(ValueError, match="not the name of a package"):
        package_model(name, tmp_path)


def test_plain_text_begins_as_the_tokenizer_begins_it(copy):
    folder = copy(vocab_size=264)
    weights = load_file(folder / "model.safetensors")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    special = {
        "content": "<bos>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokens["added_tokens"].append({"id": 260, **special})
    piece = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokens["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, a], "pair": [piece, a, b],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [260], "tokens": ["<bos>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<bos>"}))
    assert weights
    processor = load_processor(ModelConfig(path=str(folder), chat_template="plain"))
    talk = [{"role": "user", "content": "hi"}]
    assert processor.tokens(talk) == processor.tokenizer("hi\n")["input_ids"]
