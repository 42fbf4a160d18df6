"""Whole pipelines of diffusers of a few ten thousand random weights: network, VAE, text encoders, tokenizers."""

from __future__ import annotations

import torch

from lightrft.engines.denoise import denoiser
from lightrft.models.pictures import Pictures
from lightrft.models.tiny_pictures import _tokenizer
from lightrft.types import Record


def clip(*, projects=True):
    """A CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config).eval()


def t5():
    """A T5 text encoder."""
    from transformers import T5Config, T5EncoderModel

    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(_tokenizer()), **shape)).eval()


def kl_vae(**changes):
    """A VAE of pictures, two pixels to a number."""
    import diffusers

    plain = {
        "shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 8],
    }  # fmt: skip
    return diffusers.AutoencoderKL(norm_num_groups=4, latent_channels=4, **{**plain, **changes}).eval()


def sd3_pipeline(seed=0, *, shift=3.0, **changes):
    """Stable Diffusion 3; `changes` are of the transformer."""
    import diffusers

    torch.manual_seed(seed)
    shape = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32,
        "pos_embed_max_size": 8,
    }  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**{**shape, **changes}).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=kl_vae(),
        text_encoder=clip(),
        tokenizer=_tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=_tokenizer(),
    )


def flux_pipeline(*, guidance_embeds=True):
    """FLUX.1 dev, or schnell without guidance."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
        vae=kl_vae(),
        text_encoder=clip(projects=False),
        tokenizer=_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=_tokenizer(),
    )


def clip_vae(kind, **changes):
    """A VAE of clips, two pixels and two frames to a number."""
    import diffusers

    return getattr(diffusers, kind)(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.0, 2.0], **changes,
    ).eval()  # fmt: skip


def qwen_pipeline():
    """Qwen-Image."""
    import diffusers

    from lightrft.models.tiny import tiny_model

    torch.manual_seed(0)
    reader = tiny_model("qwen2_5_vl").eval()
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=reader.config.get_text_config().hidden_size, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
        ),
        vae=clip_vae("AutoencoderKLQwenImage"),
        text_encoder=reader,
        tokenizer=_tokenizer(),
    )


def wan_pipeline():
    """Wan 2.1."""
    import diffusers
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.WanPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=clip_vae("AutoencoderKLWan", scale_factor_spatial=2, scale_factor_temporal=2),
        text_encoder=UMT5EncoderModel(UMT5Config(vocab_size=len(_tokenizer()), **shape)).eval(),
        tokenizer=_tokenizer(),
    )


def ddim(**changes):
    """The scheduler of a diffusion model, with few steps that it was trained on."""
    import diffusers

    plain = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    return diffusers.DDIMScheduler(**{**plain, "steps_offset": 1, **changes})


def unet(**changes):
    """A UNet with attention to text in one of its two levels."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **changes,
    ).eval()  # fmt: skip


def sd_pipeline(**scheduler):
    """Stable Diffusion 1 or 2."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        unet=unet(cross_attention_dim=16, attention_head_dim=8),
        scheduler=ddim(**scheduler),
        vae=kl_vae(shift_factor=None),
        text_encoder=clip(projects=False),
        tokenizer=_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_pipeline():
    """SDXL, two pixels to a number."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        unet=unet(
            cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
        ),
        scheduler=ddim(),
        vae=kl_vae(shift_factor=None),
        text_encoder=clip(projects=False),
        tokenizer=_tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=_tokenizer(),
    )  # fmt: skip


def made(config):
    """Kind, module and engine of a pipeline's settings."""
    kind = Pictures.of(config)
    module = kind.source().full()
    return kind, module, denoiser(module, kind.processor, config.rollout)


def prompts(kind, words):
    """What asks for a picture of each text."""
    records = [
        Record(str(n), [{"role": "user", "content": text}], n, "digits") for n, text in enumerate(words)
    ]
    return [kind.processor.open(kind.processor.prompt(record)) for record in records]
