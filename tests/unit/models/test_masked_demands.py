"""What a masked diffusion language model cannot obey is refused by name, with a cure, before any weight is read."""

from __future__ import annotations

import json

import pytest

from lightrft.build.kinds import engine_of, policy_of
from lightrft.config import Config, ModelConfig, RolloutConfig, UnmaskConfig, layers
from lightrft.engines.native import native_engine
from lightrft.engines.unmask import unmasker
from lightrft.models.describe import check_reads_on, is_masked
from lightrft.models.load import load_processor
from lightrft.models.masked import MaskedWords
from lightrft.models.tiny import tiny_config, tiny_model, tiny_reader
from lightrft.models.words import Words


def config(*flags, layer=("masked_tiny",)):
    return layers.load([*layer, *flags], Config)


REFUSED = {
    "--rollout.engine native": "Set rollout.engine=unmask.",
    "--rollout.engine vllm": "Set rollout.engine=unmask.",
    "--rollout.stop x": "rollout.stop=['x'] has no effect with model.path=random:masked is a masked",
    "--rollout.max-tokens-per-step 4": "rollout.max_tokens_per_step=4 has no effect",
    "--rollout.first-token-temperature 2": "rollout.first_token_temperature=2.0 has no effect",
    "--rollout.routing-replay old": "rollout.routing_replay=old has no effect",
    "--algorithm.router-aux-coefficient -1": "algorithm.router_aux_coefficient=-1.0 has no effect",
    "--update.share-prompts=false": "update.share_prompts=False has no effect",
    "--algorithm.advantage gae": "Set algorithm.advantage=group_norm.",
    "--algorithm.advantage optimal_value": "which nobody has tried with it. Set algorithm.advantage=group_norm.",
    "--algorithm.advantage optimal_token_baseline": "what it adds up comes from left to right. Set algorithm.advantage=group_norm.",
    "--algorithm.kl exact --algorithm.kl-coefficient 0.1": "Set algorithm.kl=k3.",
    "--algorithm.overlong-buffer 2": "Set algorithm.overlong_buffer=0.",
    "--environment.name calculator": "environment.name=calculator",
    "--strategy.sequence-parallel 2": "Set strategy.sequence_parallel=1.",
    "--strategy.backend zero2": "Set another strategy.backend.",
    "--model.attention separate": "model.attention=separate",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_setting_that_it_cannot_obey_is_named_with_a_cure(flags):
    words = flags.split(" ")
    clear = ["--rollout.unmask.tokens-per-step", "1"] if "engine" in flags else []
    with pytest.raises(ValueError) as told:  # noqa: PT011  # its words are looked at below
        policy_of(config(*words, *clear))
    assert REFUSED[flags] in str(told.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokens_per_step": 5, "block": 4}, "tokens_per_step=5: a step reveals tokens of one block"),
        ({"context": "blocks"}, "Set rollout.unmask.block, e.g. 32"),
        (
            {"order": "left", "threshold": 0.5},
            "rollout.unmask.threshold=0.5 has no effect with rollout.unmask.order=left",
        ),
        ({"prompt_mask": 0.1}, "prompt_mask=0.1 has no effect with rollout.unmask.likelihood=path"),
        ({"draws": 2, "likelihood": "mean_field"}, "set rollout.unmask.likelihood=elbo"),
        ({"threshold": 0.0}, "rollout.unmask.threshold"),
    ],
)
def test_options_without_effect_are_refused(options, told):
    with pytest.raises(ValueError) as found:  # noqa: PT011
        UnmaskConfig(**options)
    assert told in str(found.value)


def test_options_of_the_engine_are_refused_with_another_engine():
    with pytest.raises(ValueError, match="rollout.unmask.block=4 has no effect with rollout.engine=native"):
        RolloutConfig(unmask=UnmaskConfig(block=4))


def test_a_kind_is_told_by_its_config(tmp_path):
    masked, words = ModelConfig(path="random:masked"), ModelConfig(path="random:llama")
    assert (engine_of(masked), engine_of(words)) == ("unmask", "native")
    assert isinstance(policy_of(config()), MaskedWords)
    assert type(policy_of(config(layer=("tiny",)))) is Words
    shape = tiny_config("masked").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert is_masked(ModelConfig(path=str(tmp_path)))
    for change in ({"is_causal": True}, {"mask_token_id": None}):
        (tmp_path / "config.json").write_text(json.dumps({**shape, **change}))
        assert not is_masked(ModelConfig(path=str(tmp_path)))


def test_what_reads_from_left_to_right_refuses_it():
    check_reads_on(ModelConfig(path="random:llama"))
    with pytest.raises(ValueError, match="model.path=random:masked is a masked diffusion language model"):
        check_reads_on(ModelConfig(path="random:masked"))


def test_layers_that_see_a_part_of_a_text_are_refused(tmp_path):
    shape = tiny_config("gemma3").to_dict() | {"is_causal": False, "mask_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    tiny_reader("masked").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layers of sliding attention"):
        policy_of(config("--model.path", str(tmp_path)))


def test_engines_refuse_the_other_kind():
    kind = policy_of(config())
    with pytest.raises(ValueError, match="Set rollout.engine=unmask"):
        native_engine(kind.source().full(), kind.processor, RolloutConfig())
    words = load_processor(ModelConfig(path="random:llama"))
    with pytest.raises(ValueError, match="Set rollout.engine=native"):
        unmasker(tiny_model("llama"), words, RolloutConfig(engine="unmask"))


def test_an_answer_ends_with_its_first_end_token():
    processor = policy_of(config()).processor
    a, b, end = (*processor.tokenizer("ab")["input_ids"], min(processor.stop_ids))
    assert processor.text([a, end, b]) == "a"
    assert processor.pieces([a, end, b]) == ["a", "<|end|>", "b"]
