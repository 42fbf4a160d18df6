"""Reward models that learn, against transformers' own classes, padded on either side."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertDecoderConfig,
)

from lightrft.build import dpo, sft
from lightrft.build.judges import judge_with_processor
from lightrft.build.kinds import policy_of
from lightrft.build.models import check_teacher
from lightrft.build.reward import build_model
from lightrft.commands.chat import chat
from lightrft.config import (
    AlgorithmConfig,
    Config,
    DPOConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    RewardTrainingConfig,
    SFTConfig,
    TaskConfig,
    TeacherConfig,
)
from lightrft.models.export import write_folder
from lightrft.models.lora import full_weights
from lightrft.models.reward import load_reward_model, scores, up_to_score, values
from lightrft.models.reward_source import RewardSource, check_reward_source, padding_token
from lightrft.parallel.world import World
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.types import Sampling

SYSTEM = 259
"""<|system|>, which no conversation ends with."""


def source(path="random:llama", outputs=("general", "cost"), **model):
    return RewardSource(ModelConfig(path=str(path), **model), outputs=outputs, padding=SYSTEM)


def saved(folder, module):
    """The folder that a run leaves behind."""
    processor = tiny_processor()
    processor.tokenizer.pad_token_id = SYSTEM
    write_folder(
        module, processor, full_weights(module, lambda p, dtype: p.detach().to(dtype), torch.float32), folder
    )
    return folder


def answers():
    return tiny_trajectories([(5, [3, 9]), (20, [1, 1, 4]), (2, [30])])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_packed_values_are_scores_of_transformers_padded_on_either_side(tmp_path, family, share_prompts):
    module = source(f"random:{family}").full()
    batch = pack(answers(), share_prompts=share_prompts)
    found = values(module, batch).detach()
    assert found.shape == (6, 2)
    assert found.std() > 0.1
    saved(tmp_path / "m", module)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert (plain.config.num_labels, plain.config.id2label) == (2, {0: "general", 1: "cost"})
    assert plain.config.pad_token_id == tokenizer.pad_token_id == SYSTEM
    assert plain.config.architectures == [type(plain).__name__]
    rows = [t.prompt.token_ids + t.token_ids for t in answers()]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            theirs = plain(**padded).logits
        assert_close(theirs, found, atol=1e-4, rtol=0)


def test_a_model_without_weights_is_given_the_same_ones(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    for path in (folder, saved(tmp_path / "rm", source(folder).full())):
        there = source(path)
        whole, empty = there.full(), there.empty()
        stored = there.weights(there.missing(empty))
        for name, parameter in there.missing(empty).items():
            parameter.data = stored.whole(name)
        assert ("score.weight" in there.missing(empty)) == (path != folder)
        batch = pack(answers())
        assert_close(values(empty, batch), values(whole, batch), atol=0, rtol=0)


def test_a_reward_model_is_taken_back_with_its_head_for_training_and_for_scoring(tmp_path):
    module = source().full()
    folder = saved(tmp_path / "m", module)
    batch = pack(answers())
    assert_close(values(source(folder).full(), batch), values(module, batch), atol=1e-6, rtol=0)
    config = ModelConfig(path=str(folder))
    scoring = load_reward_model(config)
    rows = [t.prompt.token_ids + t.token_ids for t in answers()]
    found = [row[1] for row in scores(scoring, rows, 100)]
    assert found == pytest.approx(values(module, batch)[:, 1].tolist(), abs=1e-5)
    with pytest.raises(
        ValueError, match=r"outputs=\['harm'\]: the reward model of model.path=.* has \['general', 'cost'\]"
    ):
        check_reward_source(config, ["harm"])


@pytest.mark.parametrize("place", ["train", "sft", "dpo", "chat", "teacher", "judge"])
def test_a_reward_model_writes_nothing_though_no_weight_of_a_tied_language_model_is_missing(tmp_path, place):
    folder = str(saved(tmp_path / "m", source().full()))
    assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings
    mine, small = {"model": ModelConfig(path=folder)}, {"model": ModelConfig(path="random:llama")}
    tasks = {"tasks": TaskConfig(train={"tiny": 1.0})}
    asked = {
        "train": lambda: policy_of(Config(**mine, **tasks)),
        "sft": lambda: sft.of_words(SFTConfig(**mine, **tasks), tmp_path, World()),
        "dpo": lambda: dpo.of_words(
            DPOConfig(**mine, tasks=TaskConfig(train={"tiny_pairs": 1.0})), tmp_path, World()
        ),
        "chat": lambda: chat(folder, "", Sampling(max_tokens=1)),
        "teacher": lambda: check_teacher(
            Config(
                **small,
                **tasks,
                teacher=TeacherConfig(path=folder),
                algorithm=AlgorithmConfig(teacher_coefficient=1.0),
            ),
            tiny_processor(),
        ),
        "judge": lambda: judge_with_processor(Config(**small, **tasks, judge=JudgeConfig(path=folder))),
    }[place]
    setting = f"{place}.path" if place in ("teacher", "judge") else "model.path"
    with pytest.raises(
        ValueError, match=rf"{setting}={folder} is a reward model \(LlamaForSequenceClassification\)"
    ):
        asked()


def test_a_family_whose_classifier_has_more_than_a_linear_head_is_refused_before_weights_load(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    ModernBertDecoderConfig(vocab_size=260, **small, **ids).save_pretrained(tmp_path)  # and no weights
    with pytest.raises(ValueError, match="one linear layer called score for a modernbert-decoder"):
        check_reward_source(ModelConfig(path=str(tmp_path)), ["score"])


REGISTERED = """
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

class MyConfig(LlamaConfig):
    model_type = "reward_source_test"

class MyModel(LlamaModel):
    config_class = MyConfig

class MyForSequenceClassification(LlamaForSequenceClassification):
    config_class = MyConfig

AutoConfig.register("reward_source_test", MyConfig)
AutoModel.register(MyConfig, MyModel)
AutoModelForSequenceClassification.register(MyConfig, MyForSequenceClassification)
"""


def test_what_model_imports_registers_is_known_when_the_model_is_looked_at(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "reward_source_test"}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(REGISTERED)
    settings = RewardTrainingConfig(model=ModelConfig(path=str(folder), imports=[str(tmp_path / "mine.py")]))
    _, found = build_model(settings)
    assert found.outputs == ("score",)


def test_a_head_in_float32_tells_conversations_apart_that_bfloat16_would_not(tmp_path):
    folder = saved(tmp_path / "m", source(outputs=("score",)).full())
    module = load_reward_model(ModelConfig(path=str(folder), dtype="bfloat16"))
    assert next(module.model.parameters()).dtype == torch.bfloat16
    assert module.score.weight.dtype == torch.float32
    draw = torch.Generator().manual_seed(0)
    talk = torch.randint(0, 250, (12,), generator=draw).tolist()
    near = [[*talk[:6], n, *talk[7:]] for n in range(200)]
    found = [row[0] for row in scores(module, near, 10_000)]
    assert len(set(found)) > 195
    assert len(set(torch.tensor(found).bfloat16().tolist())) < 195


def test_with_adapters_the_head_learns_whole_and_is_written_in_float32(tmp_path):
    module = source(lora=LoraConfig(rank=4, targets=["all-linear"]), dtype="bfloat16").full()
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert [n for n in learning if "lora_" not in n] == ["base_model.model.score.weight"]
    assert len(learning) > 10
    written = dict(full_weights(module, lambda p, dtype: p.detach().to(dtype), torch.bfloat16))
    assert written["score.weight"].dtype == torch.float32
    assert {w.dtype for n, w in written.items() if n != "score.weight"} == {torch.bfloat16}


def test_a_new_head_depends_on_the_seed_alone():
    one, same = (source().full().score.weight for _ in range(2))
    assert one.equal(same)
    assert float(one.detach().std()) == pytest.approx(65**-0.5, rel=0.2)


def test_padding_is_a_token_that_ends_no_conversation():
    processor = tiny_processor()
    assert padding_token(processor, 256) == SYSTEM
    assert up_to_score([7, 256, 9, 256, 256], 256) == [7, 256, 9]
    assert up_to_score([256], 256) == [256]
