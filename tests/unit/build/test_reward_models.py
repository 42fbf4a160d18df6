"""Reward models side by side, without a run around them."""

from dataclasses import replace

import pytest
import torch

from lightrft.build.reward_models import (
    Place,
    check_rated,
    drawn_view,
    load_reward_models,
    output_place,
    shared_models,
)
from lightrft.config import Config, MediaConfig, ModelConfig, RewardConfig, RewardModelConfig
from lightrft.models.load import load_processor
from lightrft.rewards.base import RewardRunner
from lightrft.testing import tiny_trajectories
from tests.unit.models.test_reward import reward_folder


@pytest.mark.parametrize(
    ("written", "path", "output"),
    [
        ("run/model", "run/model", ""),
        ("run/model:cost", "run/model", "cost"),
        ("hub/name:1", "hub/name", "1"),
        ("C:/models/rm", "C:/models/rm", ""),
        ("package:rated", "package:rated", ""),
        ("random:llama", "random:llama", ""),
    ],
)
def test_an_output_is_what_stands_behind_the_last_colon(written, path, output):
    assert Place.of(written) == Place(path, output)


def test_models_side_by_side_give_what_each_gives_alone_in_one_pass_a_response(tmp_path):
    reward_folder(tmp_path / "both", "llama", labels=2)
    reward_folder(tmp_path / "one", "qwen2")
    paths = {"a": f"{tmp_path}/both:0", "b": f"{tmp_path}/both:LABEL_1", "c": f"{tmp_path}/one"}
    config = Config(model=ModelConfig(dtype="float32"), reward_model=RewardModelConfig(paths=paths))
    outputs, residents = load_reward_models(config, list(paths), torch.device("cpu"))
    assert list(residents) == ["reward model a+b weights", "reward model c weights"]
    assert outputs["a"].model is outputs["b"].model
    together = parts(outputs)
    for name, path in paths.items():
        options = RewardModelConfig(paths={name: path})
        alone, _ = load_reward_models(replace(config, reward_model=options), [name], torch.device("cpu"))
        assert [p[name] for p in together] == pytest.approx([p[name] for p in parts(alone)], abs=1e-6)
    assert len({round(p["a"], 4) for p in together}) > 1
    assert output_place(config, "b") == 1


def test_a_folder_by_any_spelling_is_one_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reward_folder(tmp_path / "both", "llama", labels=2)
    (tmp_path / "link").symlink_to(tmp_path / "both")
    paths = {"a": "both:0", "b": f"{tmp_path}/both/:1", "c": "link/:0", "d": "./both:1", "e": "no/where"}
    config = Config(model=ModelConfig(dtype="float32"), reward_model=RewardModelConfig(paths=paths))
    assert shared_models(config) == {"both": ["a", "b", "c", "d"], "no/where": ["e"]}
    outputs, residents = load_reward_models(config, ["b", "c"], torch.device("cpu"))
    assert list(residents) == ["reward model b+c weights"]
    assert outputs["b"].model is outputs["c"].model
    assert [outputs["b"].place, outputs["c"].place] == [1, 0]


def parts(outputs):
    answers = tiny_trajectories([(3, [4, 5]), (2, [1, 2])])
    for n, one in enumerate(answers):
        one.answer = "four" * n
    with RewardRunner({"test": dict.fromkeys(outputs, 1.0)}, RewardConfig(workers=0), outputs) as judge:
        judge.models = dict(outputs)
        return [t.parts for t in judge(answers).kept]


def test_a_model_that_reads_text_alone_cannot_rate_pictures(tmp_path):
    reward_folder(tmp_path / "one", "llama")
    config = Config(reward_model=RewardModelConfig(paths={"rated": f"{tmp_path}/one"}))
    check_rated(config, ["rated"], {"answer"})
    check_rated(config, ["digit"], {"image"})
    told = "^reward_model.paths.rated=.*one: it reads text, and the responses hold image. Train one that sees"
    with pytest.raises(ValueError, match=told):
        check_rated(config, ["rated"], {"image"})


@pytest.mark.parametrize(
    ("family", "makes", "view"),
    [
        ("llava", {"image"}, "image"),
        ("llava", {"image", "clip"}, "image"),
        ("qwen2_vl", {"image", "clip"}, "clip"),
        ("llava", {"answer"}, ""),
    ],
)
def test_a_reward_model_is_shown_a_clip_where_it_reads_some_and_else_the_picture(family, makes, view):
    try:
        processor = load_processor(ModelConfig(path=f"random:{family}"), MediaConfig())
    except ValueError as error:
        pytest.skip(str(error))
    assert drawn_view(makes, processor) == view
