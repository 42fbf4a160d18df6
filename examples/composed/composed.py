"""A family of one's own: a language model that sees through EfficientNet-lite and hears through Whisper's encoder.

Importing this file (model.imports) makes transformers know it; see README.md beside it. Media of several prompts are
laid end to end along the first dimension, each at its own size, so that there is no padding to go wrong:

    pixel_values (patches, 3 * cell * cell) with image_sizes (pictures, 2), rows and columns of patches
    input_features (frames, mels) with audio_lengths (clips,), frames
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    BatchFeature,
    GenerationMixin,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

IMAGE, AUDIO = "<image>", "<audio>"
"""Marks in the text; each becomes as many tokens as its medium needs."""
LITE0 = [
    [1, 3, 1, 1, 16], [2, 3, 2, 6, 24], [2, 5, 2, 6, 40], [3, 3, 2, 6, 80],
    [3, 5, 1, 6, 112], [4, 5, 2, 6, 192], [1, 3, 1, 6, 320],
]  # fmt: skip
"""EfficientNet-lite0: blocks, kernel, stride, expansion and channels of each stage."""


class PictureConfig(PreTrainedConfig):
    """An EfficientNet-lite."""

    model_type = "composed_pictures"
    stem: int = 32
    """Channels of the first convolution."""
    stages: list[list[int]] | None = None
    """See LITE0, which is the default."""
    max_patches: int = 14
    """Most patches along a side of a picture."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.stages = LITE0 if self.stages is None else self.stages
        super().__post_init__(**kwargs)

    @property
    def cell(self) -> int:
        """Pixels along a side of a patch: what one token sees the middle of."""
        return int(2 * prod(stride for _, _, stride, _, _ in self.stages))


class ComposedConfig(PreTrainedConfig):
    """Towers, each of which may be absent, and the language model behind them."""

    model_type = "composed"
    sub_configs = {"text_config": AutoConfig, "vision_config": PictureConfig, "audio_config": WhisperConfig}  # noqa: RUF012
    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    positions_per_token: int = 4
    """Neighbouring outputs of the sound tower, 20 ms each, that make one token."""
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        text = self.text_config or LlamaConfig()
        self.text_config = AutoConfig.for_model(**text) if isinstance(text, dict) else text
        if isinstance(self.vision_config, dict):
            self.vision_config = PictureConfig(**self.vision_config)
        if isinstance(self.audio_config, dict):
            self.audio_config = WhisperConfig(**self.audio_config)
        super().__post_init__(**kwargs)


class ComposedPreTrainedModel(PreTrainedModel):
    """What transformers asks of every class of a family."""

    config_class = ComposedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True


class SameConv(nn.Conv2d):
    """A convolution whose output has a `stride`-th of the input's sides, padded as TensorFlow does: less before, more after."""

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, out, height / stride, width / stride) from (pictures, in, height, width)."""
        spare = self.kernel_size[0] - self.stride[0]
        before, after = spare // 2, spare - spare // 2
        return super().forward(F.pad(x, (before, after, before, after)) if spare > 0 else x)


class Block(nn.Module):
    """An inverted bottleneck; its batch norms are folded into the convolutions (make.py), so none is left to drift."""

    def __init__(self, width: int, out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = SameConv(width, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv(inner, out, 1)
        self.skips = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """(pictures, out, height / stride, width / stride) from (pictures, in, height, width)."""
        inner = x if self.expand is None else F.relu6(self.expand(x))
        found = self.project(F.relu6(self.depthwise(inner)))
        return x + found if self.skips else found


class PictureTower(PreTrainedModel):
    """EfficientNet-lite (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) up to its last stage."""

    config_class = PictureConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: PictureConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, config.stem, 3, 2)
        self.stages = nn.ModuleList()
        width = config.stem
        for count, kernel, stride, expansion, out in config.stages:
            stage = nn.ModuleList()
            for place in range(count):
                step = 1 if place else stride
                stage.append(Block(width, out, kernel=kernel, stride=step, expansion=expansion))
                width = out
            self.stages.append(stage)
        self.last_halving = max(i for i, stage in enumerate(config.stages) if stage[2] == 2)
        self.width = width + 4 * config.stages[self.last_halving - 1][4]
        self.post_init()

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """(patches, width): what is seen at each patch, whatever the other pictures are."""
        found, start = [], 0
        for (rows, columns), run in groupby(image_sizes.tolist()):
            count = sum(1 for _ in run)
            end = start + count * rows * columns
            found.append(self._features(pixel_values[start:end], rows, columns))
            start = end
        return torch.cat(found)

    def _features(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """(patches, width) for pictures of one size: the last map, and the one of twice its sides, four cells a patch."""
        cell = self.config.cell
        x = patches.view(-1, rows, columns, 3, cell, cell).permute(0, 3, 1, 4, 2, 5)
        x = F.relu6(self.stem(x.reshape(-1, 3, rows * cell, columns * cell)))
        fine = x
        for number, stage in enumerate(self.stages):
            fine = x if number == self.last_halving else fine
            for block in stage:
                x = block(x)
        return torch.cat([x, F.pixel_unshuffle(fine, 2)], 1).permute(0, 2, 3, 1).flatten(0, 2)


class SoundTower(WhisperEncoder):
    """Whisper's encoder (Radford et al. 2022, https://arxiv.org/abs/2212.04356), reading clips at their own length."""

    def forward(self, input_features: Tensor, audio_lengths: Tensor) -> Tensor:  # type: ignore[override]
        """(frames / 2, d_model) from (frames, mels), clip by clip; lengths must be even."""
        clips = nn.utils.rnn.pad_sequence(
            list(input_features.split(audio_lengths.tolist())), batch_first=True
        )
        inside = torch.arange(clips.shape[1], device=clips.device) < audio_lengths[:, None]
        # Convolutions inside a clip reach no further than the first zeros behind its end, as at the end of a row.
        x = F.gelu(self.conv2(F.gelu(self.conv1(clips.transpose(1, 2))))).transpose(1, 2)
        inside = inside[:, ::2]
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = None
        if not inside.all():
            mask = torch.zeros_like(inside, dtype=x.dtype).masked_fill(~inside, torch.finfo(x.dtype).min)
            mask = mask[:, None, None].expand(-1, 1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, mask)
        found: Tensor = self.layer_norm(x)[inside]
        return found


class Projector(nn.Module):
    """From what a tower gives to what the language model reads."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(tokens, hidden) from (tokens, width)."""
        found: Tensor = self.leave(F.gelu(self.enter(self.norm(features))))
        return found


class PictureProjector(Projector):
    """The same, with the row and the column of each patch: the language model sees but a line of them."""

    def __init__(self, width: int, hidden: int, max_patches: int) -> None:
        super().__init__(width, hidden)
        self.row = nn.Embedding(max_patches, hidden)
        self.column = nn.Embedding(max_patches, hidden)

    def forward(self, features: Tensor, image_sizes: Tensor) -> Tensor:  # type: ignore[override]
        """(patches, hidden) from (patches, width)."""
        grids = [
            torch.cartesian_prod(torch.arange(r), torch.arange(c)).view(-1, 2)
            for r, c in image_sizes.tolist()
        ]
        row, column = torch.cat(grids).to(features.device).unbind(1)
        return super().forward(features) + self.row(row) + self.column(column)


class ComposedModel(ComposedPreTrainedModel):
    """Towers, projectors and language model, without the output head."""

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        if config.vision_config is not None:
            self.vision_tower = PictureTower(config.vision_config)
            self.vision_projector = PictureProjector(
                self.vision_tower.width, hidden, config.vision_config.max_patches
            )
        if config.audio_config is not None:
            self.audio_tower = SoundTower(config.audio_config)
            self.audio_projector = Projector(config.positions_per_token * config.audio_config.d_model, hidden)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """What the language model says of (B, N) tokens. ValueError if they leave another number of places than the media need.

        `kwargs` go to the language model: attention_mask, position_ids, past_key_values, layout of packed attention.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            seen = self.vision_projector(self.vision_tower(pixel_values, image_sizes), image_sizes)
            inputs_embeds = _placed(inputs_embeds, seen, input_ids == self.config.image_token_id, IMAGE)
        if input_features is not None:
            heard = self.audio_tower(input_features, audio_lengths)
            heard = self.audio_projector(heard.view(-1, self.config.positions_per_token * heard.shape[1]))
            inputs_embeds = _placed(inputs_embeds, heard, input_ids == self.config.audio_token_id, AUDIO)
        return self.language_model(inputs_embeds=inputs_embeds, **kwargs)


def _placed(embeddings: Tensor, media: Tensor, places: Tensor, mark: str) -> Tensor:
    """(B, N, hidden) embeddings, with media (tokens, hidden) at the True `places` (B, N)."""
    if (count := int(places.sum())) != len(media):
        raise ValueError(f"the text has {count} tokens {mark}, and its media make {len(media)}.")
    return embeddings.masked_scatter(places[..., None], media.to(embeddings.dtype))


class ComposedForConditionalGeneration(ComposedPreTrainedModel, GenerationMixin):
    """The whole model; its head shares the weight of the input embeddings if config.tie_word_embeddings."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = ComposedModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, N, V), of the last `logits_to_keep` places only unless that is 0; see ComposedModel for the media."""
        out = self.model(
            input_ids, pixel_values, image_sizes, input_features, audio_lengths, inputs_embeds,
            attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values, **kwargs,
        )  # fmt: skip
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)


class ComposedProcessor(ProcessorMixin):
    """From text with marks, pictures and sounds to what the model reads."""

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        pictures: dict[str, int] | None = None,
        sounds: dict[str, int] | None = None,
    ) -> None:
        """None for what the model has no tower for.

        pictures: `cell`, pixels along a side of a patch; `min_side` and `max_side`, pixels that the longer side is scaled to.
        sounds: `mels`; `frames`, 10 ms each, that make a token; `max_seconds`.
        """
        super().__init__(tokenizer, chat_template=chat_template)
        self.pictures, self.sounds = pictures, sounds
        if sounds is not None:  # where others look for the sampling rate
            self.feature_extractor = WhisperFeatureExtractor(
                sounds["mels"], chunk_length=sounds["max_seconds"]
            )

    @property
    def reads(self) -> set[str]:
        """Kinds of media that the model has a tower for."""
        found = {"image": self.pictures, "audio": self.sounds}
        return {kind for kind, options in found.items() if options is not None}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] = (),
        videos: Any = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        **options: Any,
    ) -> BatchFeature:
        """input_ids and attention_mask (B, N), and the media of all texts laid end to end (see above); always tensors.

        images: pictures, or a list of them per text. audio: (n,) arrays at `sampling_rate`. `options` go to the tokenizer.
        ValueError for what the model cannot read, and if marks and media are not equally many.
        """
        if videos is not None:
            raise ValueError("this model reads pictures and sounds, no clips.")
        media: dict[str, Tensor] = {}
        tokens: dict[str, list[int]] = {IMAGE: [], AUDIO: []}
        if images:
            flat = [p for entry in images for p in (entry if isinstance(entry, list | tuple) else [entry])]
            media |= self._pictures(flat)
            tokens[IMAGE] = media["image_sizes"].prod(1).tolist()
        if audio:
            media |= self._sounds(audio, sampling_rate)
            tokens[AUDIO] = (media["audio_lengths"] // self.sounds["frames"]).tolist()
        texts = [text] if isinstance(text, str) else list(text)
        options["return_tensors"] = "pt"
        return BatchFeature({**self.tokenizer(_expanded(texts, tokens), **options), **media})

    def _pictures(self, images: Sequence[Any]) -> dict[str, Tensor]:
        if self.pictures is None:
            raise ValueError("this model has no tower for pictures.")
        read = [_patches(image, **self.pictures) for image in images]
        sizes = torch.tensor([patches.shape[:2] for patches in read])
        return {"pixel_values": torch.cat([p.flatten(0, 1).flatten(1) for p in read]), "image_sizes": sizes}

    def _sounds(self, clips: Sequence[Any], rate: int | None) -> dict[str, Tensor]:
        if self.sounds is None:
            raise ValueError("this model has no tower for sounds.")
        read = [self._mels(clip, rate) for clip in clips]
        return {
            "input_features": torch.cat(read),
            "audio_lengths": torch.tensor([len(mels) for mels in read]),
        }

    def _mels(self, clip: Any, rate: int | None) -> Tensor:
        """(frames, mels) of one clip, with silence behind it up to a whole token."""
        reader = self.feature_extractor
        if len(clip) > reader.n_samples:
            seconds, most = len(clip) / reader.sampling_rate, reader.chunk_length
            raise ValueError(
                f"a sound of {seconds:.1f} s; this model hears {most} s. Set media.max_seconds={most}."
            )
        step = self.sounds["frames"] * reader.hop_length
        silence = max(step - len(clip), -len(clip) % step)
        samples = numpy.pad(numpy.asarray(clip, dtype=numpy.float32), (0, silence))
        found = reader(samples, sampling_rate=rate, padding="longest", return_tensors="pt")["input_features"]
        return found[0].T.contiguous()


def _expanded(texts: Sequence[str], tokens: dict[str, list[int]]) -> list[str]:
    """The texts, each mark as often as its medium has tokens. ValueError if marks and media are not equally many."""
    for mark, counts in tokens.items():
        if (marks := sum(text.count(mark) for text in texts)) != len(counts):
            raise ValueError(f"the text has {marks} marks {mark} for {len(counts)} media.")
    left: dict[str, Iterator[int]] = {mark: iter(counts) for mark, counts in tokens.items()}
    return [re.sub(f"{IMAGE}|{AUDIO}", lambda m: m[0] * next(left[m[0]]), text) for text in texts]


def _patches(image: Any, *, cell: int, min_side: int, max_side: int) -> Tensor:
    """(rows, columns, 3, cell, cell) in -1..1: the picture scaled to whole patches, which keeps its shape but for rounding."""
    longest = max(image.size)
    scale = min(max(longest, min_side), max_side) / longest
    columns, rows = (max(1, round(side * scale / cell)) for side in image.size)
    pixels = numpy.array(image.convert("RGB").resize((columns * cell, rows * cell)), dtype=numpy.float32)
    return torch.from_numpy(pixels / 127.5 - 1).view(rows, cell, columns, cell, 3).permute(0, 2, 4, 1, 3)


AutoConfig.register(ComposedConfig.model_type, ComposedConfig)
AutoModel.register(ComposedConfig, ComposedModel)
AutoModelForMultimodalLM.register(ComposedConfig, ComposedForConditionalGeneration)
AutoProcessor.register(ComposedConfig, ComposedProcessor)
