"""Packed answers over shared prompts against one plain forward pass of an unmodified model per answer."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightrft.config import ModelConfig, NativeEngineConfig, RolloutConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.tiny import FAMILIES
from lightrft.testing import keep_double, tiny_model, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.types import Sampling

ANSWERS = tiny_trajectories([(21, [7, 1, 0, 19]), (1, [5, 3]), (40, [0]), (3, [2])], seed=1)
"""Prompts and answers longer and shorter than gemma3's window of 16; answers of no token and of one."""
TEMPERATURE = 0.7


def objective(values, entropy):
    """A number whose gradient reaches every log-prob and every entropy with a weight of its own."""
    place = torch.arange(values.numel(), dtype=values.dtype)
    return (values * torch.cos(place)).sum() + (entropy * torch.sin(1 + place)).sum()


def separately(model, answers, temperature):
    """Log-probs and entropies, (T,) each: one batch of one, no packing, torch's own softmax."""
    values, entropies = [], []
    for t in answers:
        tokens = torch.tensor([t.prompt.token_ids + t.token_ids])
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(t.prompt.token_ids) - 1 : -1]
        log_p = (logits / temperature).log_softmax(-1)
        values.append(log_p.gather(1, torch.tensor(t.token_ids, dtype=torch.int64)[:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(values), torch.cat(entropies)


def packed(model, answers, temperature=TEMPERATURE, *, share_prompts=True, max_logits=10**9, exact=False):
    batch = pack(answers, share_prompts=share_prompts)
    result = logprobs(model, batch, temperature=temperature, max_logits=max_logits, exact_attention=exact)
    return result.values, result.entropy


def gradients(model, values, entropy):
    model.zero_grad()
    objective(values, entropy).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def compare(ours, theirs, answers, tolerance, temperature=TEMPERATURE, **how):
    """Log-probs, entropies and the gradient of every parameter, relative to the largest number of each."""
    expected = separately(theirs, answers, temperature)
    found = packed(ours, answers, temperature, **how)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other, atol=tolerance * 10, rtol=0)
    wanted, got = gradients(theirs, *expected), gradients(ours, *found)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(
            float(gradient.abs().max()), 1e-3
        )  # seeing only oneself, queries have no gradient but rounding
        assert_close(got[name], gradient, atol=tolerance * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("exact", [False, True])
def test_packed_is_separate(family, share_prompts, exact):
    ours, theirs = load_model(ModelConfig(path=f"random:{family}")), tiny_model(family, attention="sdpa")
    compare(ours, theirs, ANSWERS, 1e-5, share_prompts=share_prompts, exact=exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share_prompts", [True, False])
def test_packed_is_separate_to_ten_digits_in_float64(family, share_prompts):
    with keep_double():
        ours, theirs = (tiny_model(family, attention=a).double() for a in (ATTENTION, "sdpa"))
        compare(ours, theirs, ANSWERS, 1e-10, share_prompts=share_prompts)


@pytest.mark.parametrize("window", [1, 2, 5, 22, 23, 1000])
def test_any_sliding_window_sees_what_transformers_sees(window):
    with keep_double():
        ours, theirs = (
            tiny_model("gemma3", attention=a, sliding_window=window).double() for a in (ATTENTION, "sdpa")
        )
        compare(ours, theirs, ANSWERS, 1e-10)


def test_a_soft_cap_on_the_final_logits_is_part_of_the_logprobs():
    with keep_double():
        ours, theirs = (
            tiny_model("gemma3", attention=a, final_logit_softcapping=1.5).double()
            for a in (ATTENTION, "sdpa")
        )
        compare(ours, theirs, ANSWERS, 1e-10)


def test_an_untied_head_and_biases_get_their_gradients():
    with keep_double():
        ours, theirs = (
            tiny_model("qwen2", attention=a, tie_word_embeddings=False).double() for a in (ATTENTION, "sdpa")
        )
        compare(ours, theirs, ANSWERS, 1e-10)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_divides_the_logits(temperature):
    with keep_double():
        ours, theirs = (tiny_model("llama", attention=a).double() for a in (ATTENTION, "sdpa"))
        compare(ours, theirs, ANSWERS, 1e-10, temperature)


@pytest.mark.parametrize("max_logits", [1, 260, 260 * 7, 260 * 36, 260 * 37])
def test_the_size_of_the_heads_chunks_changes_nothing(max_logits):
    with keep_double():
        whole, chunked = (tiny_model("llama", attention=ATTENTION).double() for _ in range(2))
        expected, found = packed(whole, ANSWERS), packed(chunked, ANSWERS, max_logits=max_logits)
        assert_close(found, expected, atol=1e-12, rtol=0)
        assert_close(gradients(chunked, *found), gradients(whole, *expected), atol=1e-11, rtol=1e-11)


def test_no_answer_reads_another():
    """Every token of one answer changed: not one digit of the others, nor of another group, moves."""
    model = tiny_model("llama", attention=ATTENTION)
    answers = tiny_trajectories([(9, [6, 5, 4]), (7, [8])], seed=3)
    with torch.no_grad():
        before = packed(model, answers)[0].split([6, 5, 4, 8])
        answers[1].token_ids = [(t + 1) % 256 for t in answers[1].token_ids]
        after = packed(model, answers)[0].split([6, 5, 4, 8])
    for place in (0, 2, 3):
        assert_close(after[place], before[place], atol=2e-6, rtol=0)
    assert (after[1] - before[1]).abs().max() > 0.1


def test_only_empty_answers_give_empty_columns():
    values, entropy = packed(
        tiny_model("llama", attention=ATTENTION), tiny_trajectories([(4, [0, 0]), (2, [0])])
    )
    assert values.shape == entropy.shape == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_and_trainer_agree_on_what_was_sampled(family):
    """Through the trainer's own path: load, roll out, pack, log-probs."""
    settings = ModelConfig(path=f"random:{family}")
    processor = load_processor(settings)
    module = load_model(settings)
    engine = NativeEngine(module, processor.stop_ids, processor.text, NativeEngineConfig())
    prompts = [tiny_prompt(n, seed=n) for n in (30, 2, 11)]
    sampling = training_sampling(RolloutConfig(group_size=3, max_tokens=24, temperature=TEMPERATURE), seed=5)
    answers = [t for group in rollout(engine, prompts, sampling, processor) for t in group]
    with torch.no_grad():
        values, _ = packed(module, answers)
    assert_close(values, torch.tensor([x for t in answers for x in t.behavior]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rollout_is_what_generate_writes(family):
    settings = ModelConfig(path=f"random:{family}")
    processor = load_processor(settings)
    engine = NativeEngine(load_model(settings), processor.stop_ids, processor.text, NativeEngineConfig())
    prompts = [tiny_prompt(n, seed=n) for n in (30, 2, 11)]
    groups = rollout(engine, prompts, Sampling(max_tokens=24, temperature=0.0), processor)
    plain = tiny_model(family)
    for prompt, (answer,) in zip(prompts, groups, strict=True):
        tokens = torch.tensor([prompt.token_ids])
        written = plain.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert answer.token_ids == written[0, tokens.shape[1] :].tolist()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave back."""

    def __init__(self):
        super().__init__()
        self.numel, self.shape, self.by = 0, (), ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.shape, self.by = tensor.numel(), tuple(tensor.shape), str(function)
        return result


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_matrix_of_tokens_by_vocabulary_nor_of_tokens_by_tokens_ever_exists(checkpointing):
    vocabulary, hidden, widest = 4000, 64, 128
    model = tiny_model("llama", attention=ATTENTION, vocab_size=vocabulary)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    answers = tiny_trajectories([(300, [200] * 3), (100, [250, 250])])
    batch = pack(answers)
    read, learned = batch.inputs.token_ids.numel(), batch.num_tokens
    with Largest() as largest:
        result = logprobs(model, batch, temperature=1.0, max_logits=40_000)
        objective(result.values, result.entropy).backward()
    allowed = max(
        vocabulary * hidden, read * widest
    )  # the embedding's gradient; the activations of the widest layer
    assert largest.numel <= allowed, f"{largest.by} gave {largest.shape}"
    assert allowed < learned * vocabulary / 10
    assert allowed < read * read / 6


def test_without_gradients_the_head_holds_no_more_than_a_chunk():
    model = tiny_model("llama", attention=ATTENTION, vocab_size=4000)
    batch = pack(tiny_trajectories([(10, [200] * 4)]))
    with Largest() as largest, torch.no_grad():
        logprobs(model, batch, temperature=1.0, max_logits=12_000)
    assert largest.numel <= max(4000 * 64, 810 * 128)
