"""`lightrft plan` of diffusion pipelines: sizes as published, and memory as a run really keeps it."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.cli import main
from lightrft.commands.plan import Hardware
from lightrft.commands.plan.kinds import plan_of
from lightrft.config import (
    Config,
    DenoiseConfig,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    TaskConfig,
    UpdateConfig,
)
from lightrft.models.flows import logprob
from lightrft.strategy.memory import Phase
from tests.pipelines import (
    flux_pipeline,
    made,
    prompts,
    qwen_pipeline,
    sd3_pipeline,
    sd_pipeline,
    sdxl_pipeline,
    wan_pipeline,
)

CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "max_position_embeddings": 77,
    "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
CLIP_G = {
    **CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
}  # fmt: skip
T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "use_quant_conv": False,
    "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609,
}  # fmt: skip
SD35_MEDIUM = {
    "model_index": {
        "_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "text_encoder_3": ["transformers", "T5EncoderModel"],
    },
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
        "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": list(range(13)), "qk_norm": "rms_norm",
    },
    "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5_XXL,
}  # fmt: skip
FLUX1_DEV = {
    "model_index": {
        "_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
    },
    "transformer": {
        "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
    },
    "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL,
}  # fmt: skip
"""The published settings of two pipelines, without one weight."""


@pytest.fixture
def configs(tmp_path):
    """A folder with nothing but the settings of a pipeline's parts."""

    def write(parts):
        for name, said in parts.items():
            if name == "model_index":
                (tmp_path / "model_index.json").write_text(json.dumps(said))
                continue
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(said))
        (tmp_path / "scheduler").mkdir()
        scheduler = {"_class_name": parts["model_index"]["scheduler"][1], "shift": 3.0}
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        return str(tmp_path)

    return write


FLAGS = [
    "--rollout.denoise.height", "512", "--rollout.denoise.width", "512", "--rollout.denoise.window", "2", "--model.dtype", "bfloat16",
    "--tasks.train", "digits", "1", "--rewards.functions", "digit", "1", "--update.tokens-per-micro-batch", "2560",
]  # fmt: skip
SD35 = (SD35_MEDIUM, 2_243_171_520, 123_650_304 + 694_659_840 + 4_762_310_656)
FLUX = (FLUX1_DEV, 11_901_408_320, 123_060_480 + 4_762_310_656)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("parts", "weights", "encoders"),
    [
        pytest.param(*SD35, id="sd3.5-medium"),
        pytest.param(*FLUX, id="flux.1-dev", marks=pytest.mark.extended),
    ],
)
def test_published_pipelines_are_counted_from_their_settings_alone(parts, weights, encoders, configs, capsys):
    """Weights as the published files hold them; 512 x 512 pixels are 16 x 64 x 64 numbers and 32 x 32 positions."""
    folder = configs(parts)
    assert main(["plan", "flow_grpo", "fsdp", "--model.path", folder, "--gpus", "8", "--json", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == found["learned"] == weights
    assert found["host"]["text encoders"] == 4 * encoders
    pictures = 8 * 24 // 8
    assert found["host"]["states of the drawn steps"] == pictures * 2 * 3 * 4 * 16 * 64 * 64
    assert found["host"]["pictures"] == pictures * 512 * 512 * 3
    assert found["tokens"] == {"prompt": 256, "answer": 2 * (32 * 32 + 256)}
    assert found["batch"]["tokens"] == 2 * (32 * 32 + 256)
    items = {item["name"]: item["bytes"] for item in found["memory"]["items"]}
    assert items["actor weights"] == pytest.approx(4 * weights / 8, rel=0.01)
    # A decoder of 49.5 million weights with its encoder, 83.8 million, in float32; its largest states are 256 channels of 512 x 512.
    assert items["engine vae"] == 4 * 83_819_683
    assert 2 < items["decoding a picture"] / (256 * 512 * 512 * 4) < 5
    assert not found["problems"]


PIPELINES = {
    "sd3": (sd3_pipeline, {}),
    "flux": (flux_pipeline, {"guidance": 3.5}),
    "qwen-image, guided": (qwen_pipeline, {"guidance": 3.0, "max_text_tokens": 48}),
    "wan": (wan_pipeline, {"frames": 5}),
    "sd, guided": (sd_pipeline, {"guidance": 7.5, "noise": "ddim", "level": 1.0, "max_text_tokens": 256}),
    "sdxl": (sdxl_pipeline, {"noise": "ddim", "level": 1.0, "max_text_tokens": 256}),
}
"""Name -> what makes it, and how it is drawn with."""


QUICK = ("sd3", "sdxl")


@pytest.fixture(params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.extended) for n in PIPELINES])
def tiny(request, tmp_path):
    """The settings of each pipeline, saved whole."""
    make, denoise = PIPELINES[request.param]
    make().save_pretrained(tmp_path / "saved")
    plain = {"steps": 4, "max_text_tokens": 8, "height": 16, "width": 16, **denoise}
    options = RolloutConfig(engine="denoise", denoise=DenoiseConfig(**plain))
    return Config(
        model=ModelConfig(path=str(tmp_path / "saved")),
        rollout=options,
        tasks=TaskConfig(train={"digits": 1.0}),
    )


def trained(config, rows):
    """What a real pass over so many rows of a pipeline does, and its network."""
    kind, module, _ = made(config)
    media = prompts(kind, ["the digit five"])[0].media
    conditions = {name: c.repeat(rows, *[1] * (c.dim() - 1)) for name, c in media.items()}
    x, places = torch.randn(rows, *kind.processor.shape), torch.zeros(rows, dtype=torch.int64)
    return module, conditions, lambda: logprob(x, kind.schedule.noisy(module, x, places, conditions))


def test_conditions_have_the_shapes_that_the_text_encoders_give(tiny):
    found = plan_of(tiny, Hardware(), 0, 0).shape.conditions
    _, real, _ = trained(tiny, 1)
    assert {name: c.shape for name, c in found.items()} == {name: c.shape for name, c in real.items()}


def test_what_a_row_leaves_behind_is_what_a_real_pass_keeps(tiny):
    """Rows 3 and 8, so that what is kept once is not counted for each; on a CPU attention keeps what fused kernels keep."""
    planned = plan_of(tiny, Hardware(), 0, 0).shape.training
    for rows in (3, 8):
        module, _, run = trained(tiny, rows)
        own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
        alive = []

        def keep(tensor, alive=alive):
            alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
        real = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        assert planned(rows) == pytest.approx(sum(n for key, n in real.items() if key not in own), rel=0.03)


def test_what_a_pass_without_gradients_takes_is_what_torch_allocates(tiny):
    """The highest sum of what its profiler saw allocated and freed; the plan is 1.4 times that for Qwen-Image, for which no cause is known."""
    planned = plan_of(tiny, Hardware(), 0, 0).shape.computing(16)
    _, _, run = trained(tiny, 16)
    with torch.no_grad():
        run()
        with torch.profiler.profile(profile_memory=True) as seen:
            run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert 0.6 * most < planned < 1.5 * most


def test_recomputed_blocks_keep_what_they_are_given_and_one_of_them_its_inside(tmp_path):
    sd3_pipeline(num_layers=6).save_pretrained(tmp_path / "saved")
    path, options = (
        str(tmp_path / "saved"),
        RolloutConfig(engine="denoise", denoise=DenoiseConfig(max_text_tokens=8)),
    )
    task = TaskConfig(train={"digits": 1.0})
    whole, again, adapters = (
        plan_of(Config(model=ModelConfig(path=path, **changes), rollout=options, tasks=task), Hardware(), 0, 0).shape
        for changes in ({}, {"gradient_checkpointing": True}, {"lora": LoraConfig(rank=2)})
    )  # fmt: skip
    assert again.training(8) < 0.4 * whole.training(8)
    assert adapters.training(8) < whole.training(8)
    assert adapters.learned < adapters.plain == whole.weights


def test_steps_that_pictures_share_are_planned_once_for_a_prompt(tmp_path):
    """As the engine draws them (test_denoise.py): 3 prompts of 4 pictures, two of five steps before noise enters."""
    sd3_pipeline().save_pretrained(tmp_path / "saved")
    model, task = ModelConfig(path=str(tmp_path / "saved")), TaskConfig(train={"digits": 1.0})
    read = {}
    for same in (False, True):
        options = DenoiseConfig(steps=5, first=2, max_text_tokens=8, same_start=same)
        rollout = RolloutConfig(engine="denoise", denoise=options, prompts_per_step=3, group_size=4)
        found = plan_of(Config(model=model, rollout=rollout, tasks=task), Hardware(devices=1), 0, 0)
        read[same] = found.work.rollout.tokens / found.shape.positions
    assert read == {False: 12 * 5, True: 3 * 2 + 12 * (5 - 2)}


def test_a_pipeline_that_does_not_fit_is_told_with_its_cure(tmp_path):
    sd3_pipeline().save_pretrained(tmp_path / "saved")
    options = RolloutConfig(
        engine="denoise", denoise=DenoiseConfig(window=2), prompts_per_step=1, group_size=2
    )
    model, task = ModelConfig(path=str(tmp_path / "saved")), TaskConfig(train={"digits": 1.0})
    update = UpdateConfig(tokens_per_micro_batch=200)
    config = Config(model=model, rollout=options, tasks=task, update=update)
    found = plan_of(config, Hardware(devices=1, memory_gib=0.001), 0, 0)
    told = " ".join(found.problems)
    assert "train needs 0.0 GiB" in told
    assert "strategy.backend=fsdp, on more devices" in told
    assert "a step of a picture reads 272 positions" in told
    assert found.sums[Phase.TRAIN] > 16 * found.shape.weights  # float32 weights, gradients, two moments


@pytest.mark.parametrize("flag", ["--prompt-tokens", "--response-tokens"])
def test_lengths_that_a_pipeline_does_not_have_are_refused(flag, configs, capsys):
    assert main(["plan", "flow_grpo", "--model.path", configs(SD35_MEDIUM), *FLAGS, flag, "9"]) == 2
    assert f"{flag} 9" in capsys.readouterr().err


def test_a_part_without_its_settings_is_named(configs, tmp_path, capsys):
    folder = configs(SD35_MEDIUM)
    (tmp_path / "text_encoder_3" / "config.json").unlink()
    assert main(["plan", "flow_grpo", "--model.path", folder, *FLAGS]) == 2
    assert "text_encoder_3/config.json cannot be read" in capsys.readouterr().err
