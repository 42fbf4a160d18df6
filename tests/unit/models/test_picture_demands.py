"""What a diffusion pipeline cannot obey is refused by name, with a cure, before any weight is read."""

from __future__ import annotations

import json
import re

import pytest

from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.build.data import check_asked
from lightrft.build.kinds import engine_of, policy_of
from lightrft.config import Config, ModelConfig, layers
from lightrft.models.demands import NEED_LOGPROBS, NEED_PROBABILITIES
from lightrft.models.load import load_processor
from lightrft.models.tiny_pictures import tiny_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """The settings of a pipeline; its file of weights is empty."""
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "vae": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("transformer", "scheduler"):
        (tmp_path / part).mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text("{}")
    shape = {"_class_name": "SD3Transformer2DModel", "patch_size": 2, "sample_size": 8, "in_channels": 4}
    (tmp_path / "transformer/config.json").write_text(json.dumps(shape))
    (tmp_path / "transformer" / WEIGHTS).touch()
    return tmp_path


def change(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def of_diffusion(folder, **scheduler):
    """Makes it a Stable Diffusion 1."""
    change(
        folder / "model_index.json",
        _class_name="StableDiffusionPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        transformer=[None, None],
        scheduler=["diffusers", "DDIMScheduler"],
    )
    (folder / "transformer").rename(folder / "unet")
    shape = {"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4}
    (folder / "unet/config.json").write_text(json.dumps(shape))
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"clip_sample": False, **scheduler}))


def refused(folder, *flags, layer=("digits_sd3",)):
    config = layers.load([*layer, "--model.path", str(folder), *flags], Config)
    with pytest.raises(ValueError) as told:  # noqa: PT011  # its words are looked at by who asks
        policy_of(config)
    return str(told.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--rollout.temperature 0.7",
        "--rollout.top-k 5",
        "--rollout.top-p 0.9",
        "--rollout.stop x",
        "--rollout.max-tokens 9",
        "--rollout.max-tokens-per-step 3",
        "--algorithm.truncated mask",
        "--algorithm.overlong-buffer 2",
        "--algorithm.entropy-coefficient 0.1",
        "--algorithm.high-entropy-fraction 0.2",
        "--algorithm.average fixed",
        "--model.freeze vision",
        "--model.chat-template plain",
        "--model.attention separate",
        "--strategy.backend zero2",
        "--strategy.sequence-parallel 2",
        "--evaluate.temperature 0.5",
        "--evaluate.max-tokens 9",
        "--evaluate.majority-k 1",
        "--tasks.on-long-prompt truncate_left",
        "--update.share-prompts false",
        "--rollout.denoise.evaluation-steps 20 --evaluate.temperature 1",
        "--rollout.denoise.evaluation-steps 20 --algorithm.advantage greedy_baseline",
        "--environment.name game.py:Game",
        "--critic.path random:llama",
    ],
)
def test_a_setting_of_language_models_is_refused_by_its_name(folder, flags):
    option, *_ = flags.split()
    told = refused(folder, *flags.split())
    name = option.removeprefix("--").replace("-", "_")
    assert name in told or (name == "algorithm.average" and "rollout.max_tokens" in told)
    assert any(cure in told for cure in ("Set ", "Leave it out", "Lower "))


def test_another_engine_is_refused(folder):
    flags = ["tiny", "--tasks.train", "digits", "1"]
    assert "Set rollout.engine=denoise" in refused(folder, *flags[1:], layer=("tiny",))


def test_a_folder_that_cannot_learn_is_refused(folder):
    change(folder / "transformer/config.json", _class_name="CogView4Transformer2DModel")
    assert "CogView4Transformer2DModel, and this version knows: SD3Transformer2DModel" in refused(folder)
    change(folder / "transformer/config.json", _class_name="SD3Transformer2DModel")
    change(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    assert (
        "DPMSolverMultistepScheduler, and the steps of a SD3Transformer2DModel are known of a FlowMatchEuler"
        in refused(folder)
    )
    change(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    assert "DDIMScheduler, and the steps of a SD3Transformer2DModel" in refused(folder), (
        "it would take a velocity for noise"
    )
    change(folder / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    assert "names text_encoder, and there is no such folder" in refused(folder)
    change(folder / "model_index.json", text_encoder=[None, None])
    change(folder / "model_index.json", scheduler=[None, None])
    assert "the pipeline has no scheduler" in refused(folder)


def test_a_picture_that_cannot_be_cut_into_patches_is_refused(folder):
    pytest.importorskip("diffusers")
    told = refused(folder, "--rollout.denoise.height", "40")
    assert "rollout.denoise.height=40" in told
    assert "multiples of 16 pixels. Set it to 32" in told


def test_other_commands_name_those_that_take_a_pipeline(folder):
    with pytest.raises(
        ValueError,
        match="is a diffusion pipeline, which `lightrft train`, `dpo`, `evaluate`, `check`, `export`, `replay`, and `plan` for",
    ):
        load_processor(ModelConfig(path=str(folder)))


def test_pictures_are_for_pipelines_and_words_for_language_models(folder):
    words = ModelConfig(path="random:llama")
    assert (engine_of(ModelConfig(path=str(folder))), engine_of(words)) == ("denoise", "native")
    config = layers.load(
        ["tiny", "grpo", "--algorithm.kl", "exact", "--algorithm.kl-coefficient", "0.1"], Config
    )
    with pytest.raises(ValueError, match=r"algorithm\.kl=exact .*Set algorithm\.kl=k3"):
        policy_of(config)


def test_an_unknown_tiny_pipeline_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="tiny:cats: no such pipeline. There are: digits_sd3"):
        tiny_pipeline("cats", tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        name
        for name in layers.shipped()
        if any(layers.read(file).get("rollout", {}).get("engine") == "denoise" for file in layers.chain(name))
    ],
)
def test_every_layer_is_a_whole_run_together_with_a_pipeline(folder, layer):
    pytest.importorskip("diffusers")
    size = ["--rollout.denoise.height", "0", "--rollout.denoise.width", "0"]
    flags = ["--model.path", str(folder), "--tasks.train", "digits", "1", *size]
    if layers.load([layer, *flags], Config).rollout.denoise.noise == "ddim":
        of_diffusion(folder)
    config = layers.load([layer, *flags], Config)
    kind = policy_of(config)
    assert kind.processor.shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("layer", "reward", "told"),
    [
        ("digits_sd3", "math", "asks for `answer`, and a response"),
        ("tiny", "digit", "asks for `image`, and a response"),
    ],
)
def test_a_reward_of_what_the_policy_does_not_make_is_refused_before_weights_load(
    folder, layer, reward, told
):
    pytest.importorskip("diffusers")
    path = str(folder) if layer == "digits_sd3" else "random:llama"
    config = layers.load(
        [layer, "--model.path", path, "--tasks.train", "digits", "1", "--rewards.functions", reward, "1"],
        Config,
    )
    with pytest.raises(ValueError, match=told):
        check_asked(config, policy_of(config))


@pytest.mark.parametrize(
    ("kind", "scheduler", "noise", "told"),
    [
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            "ddim",
            "which steps with sde, dance, cps, match. Set rollout.denoise.noise=sde",
        ),
        (
            "DDIMScheduler",
            {"clip_sample": False},
            "sde",
            "which steps with ddim. Set rollout.denoise.noise=ddim",
        ),
        (
            "DDIMScheduler",
            {"clip_sample": True},
            "ddim",
            "has clip_sample.*Save the pipeline with clip_sample=False",
        ),
        (
            "DDIMScheduler",
            {"prediction_type": "flow"},
            "ddim",
            "prediction_type=flow, and known are: epsilon",
        ),
    ],
)
def test_noise_that_the_scheduler_does_not_step_with_is_refused(folder, kind, scheduler, noise, told):
    pytest.importorskip("diffusers")
    if kind == "DDIMScheduler":
        of_diffusion(folder)
    change(folder / "model_index.json", scheduler=["diffusers", kind])
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    assert re.search(told, refused(folder, "--rollout.denoise.noise", noise))


def test_pipelines_that_draw_from_more_than_text_or_by_two_networks_are_refused(folder):
    pytest.importorskip("diffusers")
    change(folder / "model_index.json", transformer_2=["diffusers", "SD3Transformer2DModel"])
    assert "model_index.json has transformer_2" in refused(folder)
    change(
        folder / "model_index.json", transformer_2=[None, None], _class_name="StableDiffusion3InpaintPipeline"
    )
    assert "it is a StableDiffusion3InpaintPipeline" in refused(folder)


@pytest.mark.parametrize("file", ["transformer/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", [None, "{"])
def test_a_folder_whose_settings_cannot_be_read_is_refused(folder, file, text):
    pytest.importorskip("diffusers")
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    assert f"{file} cannot be read" in refused(folder)


def test_frames_are_for_pipelines_that_draw_clips(folder):
    pytest.importorskip("diffusers")
    assert "pictures, not clips. Set rollout.denoise.frames=1" in refused(
        folder, "--rollout.denoise.frames", "5"
    )
    shape = {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "in_channels": 4}
    change(
        folder / "model_index.json",
        _class_name="WanPipeline",
        transformer=["diffusers", "WanTransformer3DModel"],
    )
    (folder / "transformer/config.json").write_text(json.dumps(shape))
    assert "draws one frame and multiples of 4 after it. Set it to 5" in refused(
        folder, "--rollout.denoise.frames", "6"
    )


@pytest.mark.parametrize("content", ["{", "[]", "7"])
def test_an_index_that_is_none_is_named(folder, content):
    (folder / "model_index.json").write_text(content)
    assert "model_index.json cannot be read" in refused(folder)


def test_the_losses_that_normed_log_probs_do_not_fit_are_all_that_compare_responses():
    assert {*NEED_LOGPROBS, "orpo"} == set(ONLINE_LOSSES)
    assert "orpo" in NEED_PROBABILITIES


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--algorithm.loss dppo --algorithm.clip 0.1 0.1", "algorithm.loss=dppo"),
        ("--algorithm.loss dcpo", "whose steps have densities and no probabilities"),
        (
            "--rollout.denoise.likelihood normed --algorithm.advantage none --algorithm.loss ipo",
            "algorithm.loss=ipo with rollout.denoise.likelihood=normed",
        ),
        ("--algorithm.advantage gae", "algorithm.advantage=gae"),
        ("--algorithm.advantage optimal_value", "nobody has measured values of pictures"),
        ("--algorithm.advantage optimal_token_baseline", "densities and no probabilities"),
    ],
)
def test_what_reads_probabilities_or_words_is_refused(folder, flags, told):
    assert told in refused(folder, *flags.split())


@pytest.mark.parametrize(
    ("option", "steps", "told"),
    [
        ("steps", 1000, "Set it to at most 999"),  # the scheduler would name a level beyond the last one
        ("steps", 1500, "Set it to at most 999"),
        (
            "evaluation-steps",
            1200,
            r"evaluation_steps=1200: the DDIMScheduler of model\.path.*cannot take them",
        ),
    ],
)
def test_more_steps_than_the_scheduler_has_are_refused(folder, option, steps, told):
    pytest.importorskip("diffusers")
    of_diffusion(folder, steps_offset=1)
    flags = ["--tasks.train", "digits", "1", f"--rollout.denoise.{option}", str(steps)]
    assert re.search(told, refused(folder, *flags, layer=("ddpo",)))


def test_a_length_of_texts_that_no_encoder_is_told_is_refused(folder):
    pytest.importorskip("diffusers")
    of_diffusion(folder)
    flags = ["--tasks.train", "digits", "1", "--rollout.denoise.max-text-tokens", "77"]
    assert "rollout.denoise.max_text_tokens=77 has no effect with model.path" in refused(
        folder, *flags, layer=("ddpo",)
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["diffusion_pytorch_model.fp16.safetensors"], r'only as variant fp16.*variant="fp16"'),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "only as variant fp16"),
        ([], "transformer has no file of weights.*Is the download complete"),
        (["diffusion_pytorch_model.safetensors.index.json"], "lacks two.safetensors, which its"),
    ],
)
def test_weights_that_would_not_load_are_refused_by_their_names(folder, names, told):
    pytest.importorskip("diffusers")
    (folder / "transformer" / WEIGHTS).unlink()
    for name in names:
        there = json.dumps({"weight_map": {"a": "two.safetensors"}}) if name.endswith(".json") else ""
        (folder / "transformer" / name).write_text(there)
    assert re.search(told, refused(folder))


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_parts_without_weights_are_refused_as_well(folder, part):
    pytest.importorskip("diffusers")
    kind = {"text_encoder": ["transformers", "CLIPTextModel"], "vae": ["diffusers", "AutoencoderKL"]}
    change(folder / "model_index.json", **{part: kind[part]})
    (folder / part).mkdir()
    assert f"{part} has no config.json" in refused(folder)
    (folder / part / "config.json").write_text("{}")
    (folder / part / "model.fp16.safetensors").touch()
    assert f"{part} has weights only as variant fp16" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "there", "needs"),
    [
        ("CLIPTokenizer", ["vocab.json"], "tokenizer.json or vocab.json with merges.txt"),
        ("T5TokenizerFast", [], "tokenizer.json or spiece.model"),
        ("CLIPTokenizer", ["vocab.json", "merges.txt"], ""),
        ("T5TokenizerFast", ["spiece.model"], ""),
        ("Qwen2Tokenizer", ["tokenizer.json"], ""),
    ],
)
def test_a_tokenizer_without_words_is_refused(folder, kind, there, needs):
    """transformers would make one that knows a few marks, and draw from nothing."""
    pytest.importorskip("diffusers")
    change(folder / "model_index.json", tokenizer=["transformers", kind])
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer_config.json", *there):
        (folder / "tokenizer" / name).write_text("{}")
    if needs:
        assert f"tokenizer, a {kind}, has no words: it needs {needs}" in refused(folder)
    else:
        policy_of(layers.load(["digits_sd3", "--model.path", str(folder)], Config))
