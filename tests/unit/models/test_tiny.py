import pytest
import torch

from lightrft.models.tiny import FAMILIES, tiny_model, tiny_tokenizer
from lightrft.testing import make_batch, tiny_folder, tiny_prompt, tiny_trajectories


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_makes_the_same_model_and_leaves_the_global_generator_alone(family):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (tiny_model(family, seed=3).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = tiny_model(family, seed=4).state_dict()
    assert any(not torch.equal(one[name], different[name]) for name in one)


def test_an_unknown_family_names_those_there_are():
    with pytest.raises(ValueError, match="random:mistral.*llama, smollm, qwen2, qwen3, gemma3"):
        tiny_model("mistral")


@pytest.mark.parametrize("text", ["hello", "héllo wörld\n", "日本", "\t<b>&", "a  b", ""])
def test_every_text_goes_into_tokens_and_back(text):
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_the_template_keeps_prefixes():
    """A longer conversation begins with the tokens of the shorter one."""
    tokenizer = tiny_tokenizer()
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    texts = [tokenizer.apply_chat_template(talk[:n], tokenize=False) for n in (1, 2, 3)]
    assert texts[1].startswith(texts[0])
    assert texts[2].startswith(texts[1])


def test_trajectories_have_the_lengths_and_groups_asked_for():
    found = tiny_trajectories([(4, [2, 0]), (1, [3])])
    assert [(len(t.prompt.token_ids), len(t), t.group) for t in found] == [(4, 2, 0), (4, 0, 0), (1, 3, 1)]
    assert found[0].prompt is found[1].prompt
    assert found[0].prompt.token_ids == tiny_prompt(4, seed=0).token_ids


def test_a_batch_is_laid_out_by_length():
    batch = make_batch([2, 0, 1], groups=[4, 4, 5], old=[0.5, 0.25, 0.125])
    assert batch.segments.tolist() == [0, 0, 2]
    assert batch.groups.tolist() == [4, 4, 5]
    assert batch.old.tolist() == [0.5, 0.25, 0.125]
    assert batch.num_tokens == batch.num_sequences == 3


def test_a_tiny_folder_is_a_hugging_face_folder(tmp_path):
    names = {path.name for path in tiny_folder(tmp_path).iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    }
