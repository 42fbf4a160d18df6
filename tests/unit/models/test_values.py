"""The critic: its values stand where the log-probs of the same tokens do, whatever is packed beside them."""

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models import critic_source
from lightrft.models.critic_source import CriticSource
from lightrft.models.values import critic_config, critic_size, values
from lightrft.testing import tiny_folder, tiny_trajectories
from lightrft.trainer.batching import pack

ANSWERS = tiny_trajectories([(6, [5, 3]), (4, [1])])
TINY = ModelConfig(path="random:llama")


def critic_with_a_head(model=TINY, path=""):
    critic = CriticSource(critic_config(model, path)).full()
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.head.weight)
    return critic


def test_a_new_critic_expects_nothing_and_can_learn():
    critic = CriticSource(critic_config(TINY, "")).full()
    (found,) = values(critic, pack(ANSWERS))
    assert found.tolist() == [0.0] * 9
    found.sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_float32_and_all_of_the_body_learns(dtype):
    critic = critic_with_a_head(ModelConfig(path="random:llama", dtype=dtype, lora=LoraConfig(rank=2)))
    (found,) = values(critic, pack(ANSWERS))
    assert found.dtype == torch.float32
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())


def test_the_value_of_a_token_is_read_where_the_token_was_not_yet_known():
    """Changing a token changes the values behind it, not its own nor those before."""
    critic = critic_with_a_head()
    before = values(critic, pack(ANSWERS[:1]))[0].tolist()
    changed = tiny_trajectories([(6, [5, 3])])[:1]
    changed[0].token_ids[2] = (changed[0].token_ids[2] + 1) % 256
    after = values(critic, pack(changed))[0].tolist()
    assert after[:3] == before[:3]
    assert after[3] != before[3]


def test_packed_values_are_those_of_each_answer_alone():
    critic = critic_with_a_head()
    alone = torch.cat([values(critic, pack([t]))[0] for t in ANSWERS])
    assert_close(values(critic, pack(ANSWERS))[0], alone, atol=1e-5, rtol=0)


def test_the_size_is_told_without_loading(tmp_path):
    folder = tiny_folder(tmp_path / "model", "qwen3", num_hidden_layers=3)
    for model, path in ((TINY, ""), (TINY, str(folder)), (ModelConfig(path=str(folder)), "random:gemma3")):
        critic = CriticSource(critic_config(model, path)).full()
        assert critic_size(critic_config(model, path)) == sum(p.numel() for p in critic.body.parameters())


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """The folder of a reward model with the outputs general and cost, as plain transformers writes it."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("rated")
    tiny_folder(folder)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, id2label={0: "general", 1: "cost"}
    )
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.mark.parametrize(("output", "place"), [("general", 0), ("cost", 1), ("1", 1)])
def test_a_critic_made_of_a_reward_model_begins_with_its_score_of_what_is_there(rated, output, place):
    """The value before a token is what plain transformers' head says at the token before it."""
    model, folder = rated
    source = CriticSource(ModelConfig(path=folder), output=output)
    source.check()
    (found,) = values(source.full(), pack(ANSWERS[:1]))
    tokens = [*ANSWERS[0].prompt.token_ids, *ANSWERS[0].token_ids]
    with torch.no_grad():
        states = model.model(torch.tensor([tokens])).last_hidden_state[0]
    assert_close(found, model.score(states)[5:10, place], atol=1e-5, rtol=0)
    found.sum().backward()


def test_the_values_of_reward_and_cost_begin_with_an_output_each(rated, tmp_path):
    """Each is what a critic of that output alone says; without a named output the value of the cost is 0."""
    folder, batch = rated[1], pack(ANSWERS)
    alone = [
        values(CriticSource(ModelConfig(path=folder), output=o).full(), batch)[0] for o in ("general", "cost")
    ]
    source = CriticSource(ModelConfig(path=folder), output="general", cost_output="cost")
    source.check()
    for found, expected in zip(values(source.full(), batch), alone, strict=True):
        assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(source.empty().head.weight, source.full().head.weight)
    reward, cost = values(
        CriticSource(ModelConfig(path=folder), output="general", cost_output="").full(), batch
    )
    assert_close(reward, alone[0], atol=1e-6, rtol=0)
    assert not cost.any()
    plain = CriticSource(ModelConfig(path=str(tiny_folder(tmp_path))), cost_output="")
    plain.check()
    assert [column.any() for column in values(plain.full(), batch)] == [False, False]


def test_an_empty_critic_of_a_reward_model_has_its_head_and_is_given_its_body(rated, monkeypatch):
    model, folder = rated
    loaded = []
    kept = critic_source.trained
    monkeypatch.setattr(critic_source, "trained", lambda *given: loaded.append(given) or kept(*given))
    assert CriticSource(ModelConfig(path=folder), output="cost").empty("meta").head.weight.is_meta
    source = CriticSource(ModelConfig(path=folder), output="cost")
    critic = source.empty()
    assert loaded == []  # its head alone was read
    whole = source.whole()
    assert critic.head.weight.tolist() == model.score.weight[1:].tolist()
    given = source.missing(critic)
    assert given.keys() < whole.keys()
    assert {name: whole[name].shape for name in given} == {name: p.shape for name, p in given.items()}
    assert source.weights(given) is not None


@pytest.mark.parametrize("how", ["full", "empty"])
def test_a_critic_holds_those_parts_that_do_not_learn_which_its_body_has(rated, tmp_path, how):
    """`lm_head` is of a policy, `score` of a reward model: neither is in the body, nor a mistake."""
    names = ["lm_head", "score", "model.embed_tokens"]
    for path, output in ((str(tiny_folder(tmp_path, tie_word_embeddings=False)), ""), (rated[1], "cost")):
        critic = getattr(CriticSource(ModelConfig(path=path, freeze=names), output=output), how)()
        held = [name for name, p in critic.named_parameters() if not p.requires_grad]
        assert held == ["body.embed_tokens.weight"], path
        first = getattr(CriticSource(ModelConfig(path=path, freeze=["layers:1"]), output=output), how)()
        held = [name for name, p in first.named_parameters() if not p.requires_grad]
        assert {name.split(".")[1] for name in held} == {"embed_tokens", "layers"}, path
        assert {name.split(".")[2] for name in held} == {"weight", "0"}, path


def test_a_critic_refuses_a_name_that_fits_nothing_as_a_policy_does(tmp_path):
    for names in (["lyers:1"], [""], ["lm_head", "model.embed_token.weight"]):
        source = CriticSource(ModelConfig(path=str(tiny_folder(tmp_path)), freeze=names))
        with pytest.raises(ValueError, match=rf"model\.freeze={names[-1] or repr('')}: no part or parameter"):
            source.empty()
    seeing = CriticSource(ModelConfig(path=str(tiny_folder(tmp_path)), freeze=["vision"])).empty()
    assert all(p.requires_grad for p in seeing.parameters()), "the policy may see where its critic does not"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "has the outputs general, cost. Name one: critic.path=.*:general"),
        ("score", "critic.path=.*:score: the reward model has the outputs"),
    ],
)
def test_an_output_that_a_reward_model_lacks_is_refused(rated, output, message):
    with pytest.raises(ValueError, match=message):
        CriticSource(ModelConfig(path=rated[1]), output=output).check()


def test_an_output_of_the_cost_that_is_not_there_is_refused(rated, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"critic.cost_output=costs: the reward model has the outputs general, cost. Name one: critic.cost_output=cost$",
    ):
        CriticSource(ModelConfig(path=rated[1]), output="general", cost_output="costs").check()
    with pytest.raises(
        ValueError,
        match=r"critic.cost_output=cost names an output, and the model the critic starts from, .*, is no reward model",
    ):
        CriticSource(ModelConfig(path=str(tiny_folder(tmp_path))), cost_output="cost").check()


def test_reward_and_cost_do_not_begin_with_one_output(rated):
    with pytest.raises(
        ValueError, match=r"critic.cost_output=0 is the output from which the value of the reward begins"
    ):
        CriticSource(ModelConfig(path=rated[1]), output="general", cost_output="0").check()


def test_an_output_of_a_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no reward model. Leave it out, or set critic.path to"):
        CriticSource(ModelConfig(path=str(tiny_folder(tmp_path))), output="general").check()
