"""Reward models that learn: the body of model.path under a head with named outputs, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from lightrft.config import LoraConfig, MediaConfig, ModelConfig
from lightrft.models.classifiers import HEAD, classifier, output_labels
from lightrft.models.describe import RANDOM, is_tiny, stored_shape, without_weights
from lightrft.models.lazy import empty_model
from lightrft.models.load import load_model, load_processor, prepared
from lightrft.models.logprobs import backbone, causal_lm
from lightrft.models.lora import check_targets, plain_parameters, round_base
from lightrft.models.processor import Processor
from lightrft.models.reward import set_head, trained
from lightrft.models.source import Source
from lightrft.models.spread import spread
from lightrft.models.tiny import tiny_config
from lightrft.types import Message


@dataclass(frozen=True, kw_only=True)
class RewardSource(Source):
    """A model as transformers' ForSequenceClassification has it: the body of model.path, and the trained head it has there, or a new
    one drawn from N(0, 1 / sqrt(H + 1)) (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix B), in float32.

    A head of zeros, as a critic's, would teach its body nothing at the first step and little afterwards.
    """

    outputs: tuple[str, ...]
    """Names of the head's outputs."""
    padding: int | None
    """The token that plain transformers pads with, after which no score is read."""
    seed: int = 0
    """Seed of a new head."""

    @property
    def has_head(self) -> bool:
        """Whether model.path is a reward model."""
        return has_head(self.config)

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with all its weights."""
        if self.learns and self.config.lora.rank:
            check_targets(without_weights(self.config), self.config)  # before weights are read
        if self.has_head:
            model = trained(self.config, f"model.path={self.config.path}").to(device)
            self._named(model.config)
        else:
            model = self._headed(load_model(self._bare(), device, trainable=False))
        return self._prepared(model)

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """Module before its weights are read; a new head is real."""
        model = self._headed(empty_model(self._bare(), device, trainable=False, dtype=dtype))
        if self.has_head:
            head = model.get_submodule(HEAD)
            head.weight = nn.Parameter(spread(head.weight.dtype, head.weight.shape, device))
        return self._prepared(model)

    def missing(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """What an empty module is to be given, under its names in a checkpoint."""
        found = super().missing(module)
        return {name: p for name, p in found.items() if self.has_head or not name.startswith(f"{HEAD}.")}

    def whole(self) -> dict[str, Tensor]:
        """All weights by their names in a checkpoint, in host memory."""
        if not self.has_head:
            return super().whole()
        plain = trained(self.config, f"model.path={self.config.path}")
        return {name: parameter.detach() for name, parameter in plain_parameters(plain).items()}

    def _prepared(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(True)
        if self.learns:
            round_base(model, self.config.lora)
        return prepared(model, self.config, self.learns)

    def _bare(self) -> ModelConfig:
        return replace(self.config, lora=LoraConfig(), gradient_checkpointing=False, checkpoint_every=1)

    def _named(self, config: Any) -> None:
        """Gives a config the outputs' names and the padding token."""
        config.num_labels = len(self.outputs)
        config.id2label = dict(enumerate(self.outputs))
        config.label2id = {name: place for place, name in enumerate(self.outputs)}
        config.get_text_config().pad_token_id = self.padding

    def _headed(self, language: nn.Module) -> Any:
        """The body of a language model under a new head."""
        config = causal_lm(language).config
        self._named(config)
        model = classifier(config, f"model.path={self.config.path}")
        body = backbone(language)
        setattr(model, model.base_model_prefix, body)
        model.config = config  # the one that the body's parts know, by which they are found (families.part)
        weight = next(body.parameters())
        set_head(model, HEAD, self._new_head(config.get_text_config().hidden_size, weight))
        return model.eval()

    def _new_head(self, width: int, like: Tensor) -> nn.Linear:
        dtype = torch.promote_types(like.dtype, torch.float32)
        head = nn.Linear(width, len(self.outputs), bias=False, dtype=dtype)
        draw = torch.Generator().manual_seed(self.seed)
        nn.init.normal_(head.weight, 0.0, (width + 1) ** -0.5, generator=draw)
        return head.to(like.device)


def has_head(config: ModelConfig) -> bool:
    """Whether model.path is a reward model, by its config.json."""
    if is_tiny(config.path):
        return False
    names = stored_shape(config).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in names)


def writing_processor(config: ModelConfig, media: MediaConfig | None = None) -> Processor:
    """`load_processor` of a model that is to write. ValueError, before any weight loads, for a reward model in its place: where its
    embeddings are its output too, no weight of a language model is missing, and what it writes means nothing."""
    processor = load_processor(config, media)  # after it, what model.imports registers is known
    if not config.path.startswith(RANDOM) and has_head(config):
        raise ValueError(
            f"model.path={config.path} is a reward model ({', '.join(stored_shape(config).architectures)}), which gives scores and writes no "
            "text. Name the model to write with; a reward model is named in reward_model.paths."
        )
    return processor


def check_reward_source(config: ModelConfig, outputs: Sequence[str]) -> None:
    """ValueError, before any weight loads, for a model that cannot become a reward model with these outputs."""
    tiny = is_tiny(config.path)
    shape = tiny_config(config.path.removeprefix(RANDOM)) if tiny else stored_shape(config)
    if not has_head(config):
        classifier(shape, f"model.path={config.path}")
    else:
        theirs = output_labels(shape)
        unnamed = theirs == [f"LABEL_{place}" for place in range(len(theirs))]
        if len(theirs) != len(outputs) or (not unnamed and theirs != list(outputs)):
            raise ValueError(
                f"outputs={list(outputs)}: the reward model of model.path={config.path} has {theirs}. Set outputs to these, or model.path "
                "to a language model."
            )


def padding_token(processor: Any, ending: int | None) -> int:
    """The token to pad with: one that occurs in no conversation, if the tokenizer has one.

    transformers reads the score at the last token other than this one, older versions before its first occurrence. So a special token
    that the chat template never writes is best; next, one that does not end a response; last, what ends one, before which the score
    is then read. The tokenizer's own padding token comes first where it is as good.
    """
    tokenizer, reader = processor.tokenizer, processor.media
    seen_media = [{"type": kind, kind: ""} for kind in sorted(reader.kinds)] if reader is not None else []
    asked = Message(role="user", content=[*seen_media, {"type": "text", "text": "question"}])
    talk = [asked, Message(role="assistant", content="answer")]
    written = [set(processor.tokens(talk, answer_next=False))]
    try:
        written.append(set(processor.tokens([Message(role="system", content="rule"), *talk])) | written[0])
    except (TemplateError, ValueError):  # a template that takes no system message
        written.append(written[0])
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)]
    special += sorted(tokenizer.get_added_vocab().values())
    never = set() if reader is None else reader.placeholders
    known = [
        token
        for token in dict.fromkeys(special)
        if token is not None and token < processor.vocab_size and token not in never
    ]
    for seen in reversed(written):
        for token in known:
            if token not in seen and token not in processor.stop_ids:
                return int(token)
    return int(min(processor.stop_ids) if ending is None else ending)
