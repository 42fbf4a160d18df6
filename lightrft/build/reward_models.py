"""Reward models side by side: names of rewards to outputs of models, each model loaded once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lightrft.build.other_models import held_whole, named, resting
from lightrft.config import Config, LoraConfig, ModelConfig
from lightrft.config.addresses import secret
from lightrft.models.classifiers import output_labels, output_number
from lightrft.models.describe import PACKAGE, RANDOM, is_tiny, stored_shape, text_shape
from lightrft.models.families import made_for
from lightrft.models.load import load_processor
from lightrft.models.logprobs import text_config
from lightrft.models.media import limits_of
from lightrft.models.processor import Processor
from lightrft.models.reward import load_reward_model, scores
from lightrft.rewards.asked import TEXT
from lightrft.rewards.base import OUR_METRICS
from lightrft.rewards.models import REWARD_MODEL, Output, ScalarReward
from lightrft.rewards.remote import RemoteReward
from lightrft.rewards.table import JUDGE, REWARDS
from lightrft.strategy.memory import Resident
from lightrft.utils.paths import expanded

VIEWED = (("clip", "video"), ("image", "image"))
"""Views of what a policy draws, and the kind of medium that a reward model must read to see it; the first that fits counts."""


@dataclass(frozen=True)
class Place:
    """Where the number of a reward is found."""

    path: str
    """The model, as in model.path."""
    output: str
    """Label or number of one of its outputs; empty: none is named."""

    @classmethod
    def of(cls, path: str) -> Place:
        """Reads MODEL or MODEL:OUTPUT."""
        model, _, output = path.rpartition(":")
        alone = not model or "/" in output or f"{model}:" in (RANDOM, PACKAGE)
        return cls(path, "") if alone else cls(model, output)


def model_rewards(config: Config) -> dict[str, Output | None]:
    """The rewards that models give, by name, those of other machines with what asks for them.

    ValueError for a key of reward_model.paths or remote.urls that means something else, or a key to servers that is not there.
    """
    for section, key in _keys(config):
        taken = "a built-in reward" if key in REWARDS or key == JUDGE else ""
        taken = "a metric beside the rewards" if key in OUR_METRICS else taken
        if taken or not key or ":" in key or "/" in key:
            raise ValueError(
                f"{section} has the key '{key}', which is {taken or 'no name: it is empty or has : or / in it'}. Call the reward "
                "otherwise, e.g. helpful."
            )
    if config.remote.urls and config.remote.key:
        secret("remote.key", config.remote.key)
    here = dict.fromkeys((JUDGE, *config.reward_model.paths))
    sees, limits = config.remote.send_media, limits_of(config.media)
    return here | {
        name: Output(RemoteReward(name, config.remote, limits), sees_media=sees)
        for name in config.remote.urls
    }


def _keys(config: Config) -> Iterator[tuple[str, str]]:
    """Each option that gives rewards names, with each of these names. ValueError for one that both give."""
    both = config.reward_model.paths.keys() & config.remote.urls.keys()
    if both:
        raise ValueError(
            f"reward_model.paths and remote.urls both name '{min(both)}'. Call one of these rewards otherwise."
        )
    yield from (("reward_model.paths", key) for key in config.reward_model.paths)
    yield from (("remote.urls", key) for key in config.remote.urls)


def shared_models(config: Config) -> dict[str, list[str]]:
    """Model, as the first of them spells it -> the keys of reward_model.paths that name it or an output of it."""
    spelled: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for key, path in config.reward_model.paths.items():
        model = Place.of(path).path
        found.setdefault(spelled.setdefault(_one_spelling(model), model), []).append(key)
    return found


def _one_spelling(model: str) -> str:
    """What is the same for all names of a folder (relative, through a link, with a slash behind it); any other name as it is."""
    folder = expanded(model, "reward_model.paths")
    return str(folder.resolve()) if folder.is_dir() else model


def model_of(config: Config, path: str) -> ModelConfig:
    """A reward model beside the policy, in its type, without adapters."""
    options = config.reward_model
    return replace(
        config.model,
        path=path,
        revision=options.revision,
        chat_template=options.chat_template,
        lora=LoraConfig(),
    )


def resident_name(keys: Sequence[str]) -> str:
    """What a model is called in the memory table, by the rewards it gives."""
    return f"reward model {'+'.join(keys)} weights"


def held_reward_models(config: Config) -> dict[str, ModelConfig]:
    """Name in the memory table -> the reward model that every device holds."""
    return {resident_name(keys): model_of(config, path) for path, keys in shared_models(config).items()}


def output_place(config: Config, key: str) -> int:
    """Number of the output of its model that a reward is, from config.json alone. ValueError, naming those there are, if that is not clear."""
    place = Place.of(config.reward_model.paths[key])
    setting = f"reward_model.paths.{key}"
    if is_tiny(place.path):
        raise ValueError(f"{setting}={place.path}: a random model holds no trained head for scores.")
    with named(REWARD_MODEL, setting):
        shape = stored_shape(model_of(config, place.path))
    labels = output_labels(shape)
    found = output_number(labels, place.output or (key if key in labels else ""))
    if found is not None:
        return found
    why = f"there is no output '{place.output}'" if place.output else "it has several outputs"
    raise ValueError(
        f"{setting}={config.reward_model.paths[key]}: {why}; {place.path} has {', '.join(labels)}. Name one, e.g. {place.path}:{labels[0]}"
    )


def most_tokens(config: Config, key: str) -> int | None:
    """Most tokens that the reward model of this key can be given to read; None without limit."""
    path = Place.of(config.reward_model.paths[key]).path
    with named(REWARD_MODEL, f"reward_model.paths.{key}"):
        return config.reward_model.max_length or made_for(text_shape(model_of(config, path)))


def check_reward_models(config: Config, used: Sequence[str]) -> None:
    """ValueError, before weights load, for a model that is not there, or an output that it has not."""
    for key in used:
        output_place(config, key)
        path = Place.of(config.reward_model.paths[key]).path
        with named(REWARD_MODEL, f"reward_model.paths.{key}"):
            load_processor(model_of(config, path))
        most_tokens(config, key)


def drawn_view(makes: Collection[str], processor: Processor) -> str:
    """The view of a policy's responses that a reward model is shown: of those `makes` names, a clip where it reads clips, else the picture; empty:
    their text. ValueError, a sentence about the model, if it reads nothing of what is made."""
    if TEXT in makes:
        return ""
    reads = processor.media.kinds if processor.media is not None else set()
    found = next((view for view, kind in VIEWED if view in makes and kind in reads), "")
    if not found:
        raise ValueError(
            f"it reads {' and '.join(['text', *sorted(reads)])}, and the responses hold {' and '.join(sorted(makes))}. Train one that sees: `lightrft "
            "reward` with pairs of pictures, and a vision language model as its model.path."
        )
    return found


def check_rated(config: Config, names: Collection[str], makes: Collection[str]) -> None:
    """ValueError, before weights load, for a reward model among these rewards that reads nothing of what the policy's responses hold."""
    for key in sorted(config.reward_model.paths.keys() & set(names)) if TEXT not in makes else ():
        path = Place.of(config.reward_model.paths[key]).path
        with named(REWARD_MODEL, f"reward_model.paths.{key}"):
            processor = load_processor(model_of(config, path), config.media)
        try:
            drawn_view(makes, processor)
        except ValueError as error:
            raise ValueError(f"reward_model.paths.{key}={path}: {error}") from None


def load_reward_models(
    config: Config, used: Sequence[str], device: torch.device, makes: Collection[str] = (TEXT,)
) -> tuple[dict[str, Output], dict[str, Resident]]:
    """The outputs by their rewards, and the models as residents of device memory, each once. `makes`: what the policy's responses hold."""
    outputs: dict[str, Output] = {}
    residents: dict[str, Resident] = {}
    for path, keys in shared_models(config).items():
        asked = [key for key in keys if key in used]
        if not asked:
            continue
        model, name = model_of(config, path), f"reward_model.paths.{asked[0]}"
        with named(REWARD_MODEL, name):
            processor = load_processor(model, config.media)
            module = load_reward_model(model, resting(config, device))
        frozen = held_whole(module, config, device)
        ask = partial(
            scores, frozen.module, tokens_per_micro_batch=config.reward_model.tokens_per_micro_batch
        )
        padding, view = text_config(module).pad_token_id, drawn_view(makes, processor)
        rated = ScalarReward(ask, processor, most_tokens(config, asked[0]), padding, view)
        outputs |= {
            key: Output(rated, output_place(config, key), sees_media=rated.sees_media) for key in asked
        }
        residents[resident_name(asked)] = frozen.parts()["weights"]
    return outputs, residents
