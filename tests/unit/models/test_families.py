"""Parts of models that see or hear: which learn, which carry adapters, which tokens are never said."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from lightrft.config import LoraConfig, MediaConfig, ModelConfig
from lightrft.models.attention import ATTENTION
from lightrft.models.describe import text_shape
from lightrft.models.families import (
    attention_of,
    is_multimodal,
    joined,
    made_for,
    part,
    placeholders,
    position_rows,
    seen_both_ways,
)
from lightrft.models.freezing import freeze
from lightrft.models.load import load_model, load_processor
from lightrft.models.tiny import FAMILIES, tiny_config, tiny_model
from lightrft.models.tiny_media import AUDIO, IMAGE, MEDIA, VIDEO
from lightrft.types import Record


@pytest.mark.parametrize("family", MEDIA)
def test_every_parameter_belongs_to_exactly_one_part(family):
    model = tiny_model(family)
    names = [name for kind in ("vision", "audio", "projector", "language") for name, _ in part(model, kind)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", MEDIA)
def test_only_the_language_part_has_packed_attention(family):
    config = tiny_config(family)
    chosen = attention_of(config)
    assert list(chosen.values()) == [ATTENTION]
    model = tiny_model(family, attention=chosen)
    assert model.config.get_text_config()._attn_implementation == ATTENTION
    towers = [getattr(model.config, name) for name in config.sub_configs if name not in chosen]
    assert towers
    assert all(tower._attn_implementation != ATTENTION for tower in towers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_text_has_no_media(family):
    config = tiny_config(family)
    assert not is_multimodal(config)
    assert attention_of(config) == ATTENTION
    assert placeholders(config) == []
    assert seen_both_ways(config, [IMAGE, IMAGE]) == ()


def test_a_frozen_part_does_not_learn_and_the_others_do():
    model = load_model(ModelConfig(path="random:llava", freeze=["vision", "projector"]))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for kind in ("vision", "projector") for name, _ in part(model, kind)}
    assert frozen != {name for name, _ in model.named_parameters()}


def test_parameters_can_be_frozen_by_the_beginning_of_their_names():
    model = tiny_model("llama")
    freeze(model, ["model.layers.0."])
    assert {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad} == {"0"}


def test_the_embedding_and_the_first_layers_can_be_frozen_together():
    model = tiny_model("llama")
    freeze(model, ["layers:1"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("model.embed_tokens.", "model.layers.0."))
    }
    seeing = load_model(ModelConfig(path="random:llava", freeze=["layers:1"]))
    frozen = {n for n, p in seeing.named_parameters() if not p.requires_grad}
    assert frozen, "the layers are those of the language model"
    assert not any("vision" in name for name in frozen)


@pytest.mark.parametrize("count", [0, 2, 99])
def test_more_layers_than_can_be_frozen_are_refused_with_their_number(count):
    with pytest.raises(ValueError, match=rf"model\.freeze=layers:{count}: this model has 2 layers"):
        freeze(tiny_model("llama"), [f"layers:{count}"])


def test_a_part_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"model\.freeze=audio: .*the parts vision, projector, language"):
        freeze(tiny_model("llava"), ["audio"])
    with pytest.raises(ValueError, match=r"model\.freeze='': no part"):
        freeze(tiny_model("llama"), [""])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_omni_thinker"])
def test_adapters_are_on_the_language_part_only(family):
    model = load_model(ModelConfig(path=f"random:{family}", lora=LoraConfig(rank=2)))
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted
    assert all("lora_" in name and "language_model" in name for name in adapted)
    assert not any("lm_head" in name for name in adapted)


def test_tokens_that_stand_for_media_are_known():
    assert placeholders(tiny_config("llava")) == [IMAGE]
    assert placeholders(tiny_config("qwen2_vl")) == [IMAGE, VIDEO]
    assert placeholders(tiny_config("qwen2_audio")) == [AUDIO]


def test_pictures_of_different_sizes_are_laid_together_with_zeros_behind_the_smaller():
    small, large = torch.ones(1, 2, 1), torch.full((2, 1, 3), 2.0)
    whole = joined([small, large])
    assert whole.shape == (3, 2, 3)
    assert whole[0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert whole[1].tolist() == whole[2].tolist() == [[2, 2, 2], [0, 0, 0]]
    assert joined([small, small]).equal(torch.ones(2, 2, 1))


def test_runs_of_a_picture_see_each_other_in_gemma_only():
    tokens = [5, IMAGE, IMAGE, 6, IMAGE, 7]
    assert seen_both_ways(tiny_config("gemma3_vl"), tokens) == ((1, 3), (4, 5))
    assert seen_both_ways(tiny_config("llava"), tokens) == ()


def test_a_question_without_media_has_the_same_place_in_every_row():
    rows = position_rows(tiny_model("qwen2_vl").model, [1, 2, 3], {})
    assert rows.tolist() == [[0, 1, 2]] * 4


def test_a_picture_takes_places_in_space():
    """4 x 4 patches, merged 2 x 2, between one word and another."""
    tokens = [65, IMAGE, IMAGE, IMAGE, IMAGE, 66]
    grid = {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    rows = position_rows(tiny_model("qwen2_vl").model, tokens, grid)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]


def test_text_after_a_clip_comes_after_all_of_it():
    """Three frame pairs of 2 x 2 patches, merged to one token each; seconds between them stretch time."""
    tokens = [65, VIDEO, VIDEO, VIDEO, 66, 67]
    clip = {"video_grid_thw": torch.tensor([[3, 2, 2]])}
    rows = position_rows(tiny_model("qwen2_vl").model, tokens, clip)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 1, 1, 4, 5], [0, 1, 1, 1, 4, 5]]
    timed = {**clip, "second_per_grid_ts": torch.tensor([0.5])}  # 4 places a second
    rows = position_rows(tiny_model("qwen2_5_vl").model, tokens, timed)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 5, 6, 7], [0, 1, 1, 1, 6, 7], [0, 1, 1, 1, 6, 7]]


@pytest.mark.parametrize("family", ["llama", "qwen2_audio"])
def test_a_picture_for_a_model_that_does_not_see_is_refused(family):
    """A processor for sounds would swallow it without a word."""
    processor = load_processor(ModelConfig(path=f"random:{family}"), MediaConfig())
    record = Record("r7", [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], None, "t")
    with pytest.raises(ValueError, match=r"r7: the prompt holds media of the kind 'image', .* does not read"):
        processor.prompt(record)


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "linear", "factor": 2.0}, 2000),
    ],
)
def test_stretched_positions_are_counted_once(rope, tokens):
    rope = {"rope_theta": 1e4, **rope}
    assert (
        made_for(AutoConfig.for_model("qwen2", max_position_embeddings=1000, rope_parameters=rope)) == tokens
    )


def test_a_family_without_limit_and_a_tiny_model():
    assert made_for(AutoConfig.for_model("bloom")) is None
    assert made_for(text_shape(ModelConfig(path="random:llava"))) == 512
