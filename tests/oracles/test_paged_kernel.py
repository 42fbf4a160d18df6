"""Paged attention by torch's flash kernel, on a CPU: the kernel by its documented meaning in plain Python, everything around it ours.

How torch describes it (torch.nn.attention.varlen.varlen_attn): keys and values lie in pages of a pool, `block_table` says which pages are a
sequence's in order, `seqused_k` how many of its tokens count; causal: the last query stands at the last key. The kernel itself is held against
plain attention in tests/accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lightrft.build.models import check_pages
from lightrft.config import Config, ModelConfig, NativeEngineConfig, RolloutConfig, StrategyConfig
from lightrft.engines import cuda_graphs, paged_kernel, scheduler
from lightrft.engines.footprint import Demand, paged_cache
from lightrft.engines.native import NativeEngine
from lightrft.engines.paged_attention import Step
from lightrft.engines.paged_kernel import Paged, check_kernel, paged_attention
from lightrft.engines.paged_suffix import Suffix
from lightrft.engines.pages import Cache, Stretch
from lightrft.models.attention import ATTENTION
from lightrft.testing import tiny_model, tiny_prompt
from lightrft.types import Sampling
from tests.unit.engines.test_cuda_graphs import drawn_in_turns, taping

CPU = torch.device("cpu")


class Layer:
    """What an attention module says of itself."""

    layer_idx = 3


def kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout, causal, debug, *, scale, window_size_left, window_size_right, seqused_k,
           block_table, num_splits):  # fmt: skip
    """(out (N, H, D), log-sum-exp (H, N), and three more); without a number that Python looks at, so that a tape can hold it."""
    sequences, tokens, heads = len(starts_q) - 1, k.shape[1], q.shape[1]
    assert (dropout, debug, num_splits) == (0.0, False, 1)
    assert (window_size_left, window_size_right) == (-1, 0 if causal else -1)
    assert {x.dtype for x in (starts_q, starts_k, seqused_k, block_table)} == {torch.int32}
    assert tokens % 256 == 0
    assert k.shape == v.shape == (k.shape[0], tokens, k.shape[2], q.shape[2])
    assert heads % k.shape[2] == 0
    assert block_table.shape[0] == len(seqused_k) == len(starts_k) - 1 == sequences
    assert longest_k == block_table.shape[1] * tokens
    assert longest_q > 1  # a single query is laid out in an order of its own
    assert k.is_contiguous()
    place = torch.arange(len(q))
    mine = torch.searchsorted(starts_q[1:].contiguous(), place, right=True).clamp(max=sequences - 1)
    keys, values = (
        x[block_table.long()].flatten(1, 2).repeat_interleave(heads // k.shape[2], 2)[mine] for x in (k, v)
    )
    scores = torch.einsum("nhd,nthd->hnt", q, keys) * scale
    column, length = torch.arange(keys.shape[1]), seqused_k[mine][:, None]
    seen = column < length
    if causal:
        ends = starts_q[1:][mine][:, None]
        seen = seen & (column <= place[:, None] + length - ends)
    scores = torch.where(seen, scores, -torch.inf)
    out = torch.einsum("hnt,nthd->nhd", scores.softmax(-1), values)
    return out, scores.logsumexp(-1), *(torch.zeros(()) for _ in range(3))


@pytest.fixture
def written(monkeypatch):
    """The kernel in Python, on a CPU that says it has one."""
    monkeypatch.setattr(paged_kernel, "_flash", kernel)
    monkeypatch.setattr(paged_kernel, "has_varlen_kernel", lambda tensor: True)
    paged_kernel._unusable.cache_clear()
    yield
    paged_kernel._unusable.cache_clear()


@pytest.mark.parametrize("key_heads", [1, 2])
def test_new_tokens_attend_over_pages_as_in_the_whole(written, key_heads):
    """Running siblings, a stranger, a new prompt and an end of a response in one pass; against one plain softmax over everything."""
    cache, heads, size = Cache.for_kernel(), 4, 8
    torch.manual_seed(0)
    prompts = [Stretch(cache.prompts, 0) for _ in range(3)]
    lengths = (260, 30, 11)
    for prompt, length in zip(prompts[:2], lengths, strict=False):
        prompt.extend(length)
    owns = [
        (0, 9),
        (0, 3),
        (0, 258),
        (1, 5),
        (1, 270),
    ]  # prompt, tokens in all; the last is read in two parts
    shapes = {"q": heads, "k": key_heads, "v": key_heads}
    first = [
        {n: torch.randn(h, length, size, dtype=torch.float64) for n, h in shapes.items()}
        for length in lengths
    ]
    whole = [
        {
            n: torch.cat([first[p][n], torch.randn(h, count, size, dtype=torch.float64)], 1)
            for n, h in shapes.items()
        }
        for p, count in owns
    ]
    stretches = [Stretch(cache.answers, lengths[p]) for p, _ in owns]

    def attended(layout, parts):
        q, k, v = (torch.cat([part[n] for part in parts], 1)[None] for n in shapes)
        return layout.attend(Layer(), q, k, v, 0.5, None)[0]

    def piece(of, start, end):
        return {n: of[n][:, start:end] for n in shapes}

    attended(Step([], prompts[:2], CPU), first[:2])
    before = [count - 1 for _, count in owns[:-1]] + [250]
    for own, count in zip(stretches, before, strict=True):  # what was read before
        own.extend(count)
    attended(
        Step([], [], CPU, suffixes=[Suffix(prompts[p], own, own.length) for (p, _), own in zip(owns, stretches, strict=True)]),
        [piece(w, lengths[p], lengths[p] + own.length) for (p, _), own, w in zip(owns, stretches, whole, strict=True)],
    )  # fmt: skip
    new = [1, 1, 1, 1, 20]
    for own, count in zip(stretches, new, strict=True):
        own.extend(count)
    prompts[2].extend(lengths[2])
    layout = Step(
        [(prompts[p], own) for (p, _), own in zip(owns[:4], stretches, strict=False)], [prompts[2]], CPU,
        suffixes=[Suffix(prompts[1], stretches[4], 20)],
    )  # fmt: skip
    ends = [lengths[p] + count for p, count in owns]
    parts = [piece(w, end - n, end) for w, end, n in zip(whole, ends, new, strict=True)]
    found = attended(layout, [*parts[:4], first[2], parts[4]])

    def plain(of, end, count):
        q, k, v = (of[n][:, :end] for n in shapes)
        k, v = (x.repeat_interleave(heads // key_heads, 0) for x in (k, v))
        scores = 0.5 * q[:, end - count :] @ k.transpose(1, 2)
        later = torch.arange(end) > torch.arange(end - count, end)[:, None]
        return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(0, 1)

    right = [plain(w, end, n) for w, end, n in zip(whole, ends, new, strict=True)]
    right.insert(4, plain(first[2], lengths[2], lengths[2]))
    assert_close(found, torch.cat(right), atol=1e-12, rtol=0)


def test_a_prompt_is_read_once_for_adjacent_siblings():
    cache = Cache.for_kernel()
    prompts, running = [Stretch(cache.prompts, 0) for _ in range(2)], []
    for prompt in prompts:
        prompt.extend(257)
    for place in (0, 0, 0, 1, 0):
        own = Stretch(cache.answers, 257)
        own.extend(1)
        running.append((prompts[place], own))
    shared = paged_kernel.KernelAttention.of_newest(running, CPU)._shared
    assert shared.queries.tolist() == [0, 3, 4, 5]
    assert shared.pages.tolist() == [[0, 1], [2, 3], [0, 1]]
    assert (shared.lengths.tolist(), shared.ends.tolist()) == ([257] * 3, [0, 257, 514, 771])


def test_torchs_operator_takes_what_it_is_given():
    """Arguments by name, type and place, through the operator's own schema and its rule of shapes; nothing is computed."""
    meta = torch.device("meta")

    def numbers(*shape):
        return torch.zeros(shape, dtype=torch.int32, device=meta)

    seen = Paged(numbers(3), numbers(2, 4), numbers(2), numbers(3), longest=5)
    query, pages = (
        torch.zeros(shape, dtype=torch.bfloat16, device=meta) for shape in ((7, 6, 64), (9, 256, 2, 64))
    )
    for is_last in (False, True):
        out, total = paged_attention(query, pages, pages, seen, 0.1, is_last=is_last)
        assert (out.shape, total.shape) == ((7, 6, 64), (7, 6))
        assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)


PROMPTS = (1, 90, 258)


@pytest.mark.parametrize(
    ("family", "records"), [("qwen3", False), ("llama", True)], ids=["plain", "recorded"]
)
def test_the_engine_says_the_same_by_either(written, monkeypatch, family, records):
    """With a recording its operations are written down once, and repeated on the memory they had."""
    monkeypatch.setattr(scheduler, "can_record", lambda device: records)
    monkeypatch.setattr(cuda_graphs, "recorded", taping())
    model, said = tiny_model(family, attention=ATTENTION), []
    for backend in ("torch", "flash"):
        config = NativeEngineConfig(attention_backend=backend, max_sequences=7)
        engine = NativeEngine(model, frozenset({7}), str, config)
        prompts = [tiny_prompt(length, seed=length) for length in PROMPTS]
        said.append([a for g in engine.generate(prompts, Sampling(n=3, max_tokens=20, seed=2)) for a in g])
        assert engine._cache.answers.size == (256 if backend == "flash" else 32)
    assert [a.token_ids for a in said[1]] == [a.token_ids for a in said[0]]
    for mine, right in zip(*said, strict=True):
        assert_close(mine.logprobs, right.logprobs, atol=1e-5, rtol=0)


def test_turns_go_on_with_what_is_kept(written):
    model, said = tiny_model("llama", attention=ATTENTION), []
    for backend in ("torch", "flash"):
        engine = NativeEngine(model, frozenset({7}), str, NativeEngineConfig(attention_backend=backend))
        answers, read = drawn_in_turns(engine, 2)
        said.append(([a.token_ids for a in answers], read))
        assert len(engine._cache.answers) == 0
    assert said[0] == said[1]


CONFIG = {"head_dim": 64, "num_attention_heads": 4, "hidden_size": 256}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4096}, "look 4096 tokens far"),
        ({"sliding_window": 512}, "look 512 tokens far"),
        ({"head_dim": 320}, "heads have 320 numbers"),
        ({"head_dim": None, "hidden_size": 80}, "heads have 20 numbers"),
    ],
)  # fmt: skip
def test_a_model_that_the_kernel_does_not_compute_is_refused(written, changes, told):
    with pytest.raises(ValueError, match=f"rollout.native.attention_backend=flash: .*{told}.*=torch"):
        check_kernel(CPU, torch.bfloat16, SimpleNamespace(**{**CONFIG, **changes}))


def test_models_without_windows_pass(written):
    for changes in ({}, {"sliding_window": None}, {"layer_types": ["full_attention"], "sliding_window": 9}):
        check_kernel(CPU, torch.float32, SimpleNamespace(**{**CONFIG, **changes}))


def test_a_device_without_it_is_refused():
    with pytest.raises(
        ValueError, match="attention_backend=flash: its kernel is for .* in float32 on cpu. Set"
    ):
        NativeEngine(
            tiny_model("llama", attention=ATTENTION),
            frozenset(),
            str,
            NativeEngineConfig(attention_backend="flash"),
        )


def test_it_is_refused_before_weights_load():
    rollout = RolloutConfig(native=NativeEngineConfig(attention_backend="flash"))
    config = Config(
        model=ModelConfig(path="random:llama"), rollout=rollout, strategy=StrategyConfig(device="cpu")
    )
    with pytest.raises(ValueError, match="attention_backend=flash: its kernel is for"):
        check_pages(config)
    check_pages(replace(config, rollout=RolloutConfig()))
    # An engine of the user's reads what it likes of the section, and says itself what it cannot do.
    check_pages(replace(config, rollout=replace(rollout, engine="my_engine:Engine")))


def test_a_torch_whose_kernel_knows_no_pages_or_gives_something_else_is_refused(written, monkeypatch):
    def older(*args, scale, window_size_left, window_size_right, seqused_k, alibi_slopes=None):
        raise AssertionError("is not reached")

    def unscaled(*args, **how):
        return kernel(*args, **{**how, "scale": 1.0})

    def sees_all(*args, **how):
        return kernel(*args[:8], False, *args[9:], **{**how, "window_size_right": -1})

    def counts_from_the_beginning(*args, seqused_k, **how):
        """A causal mask aligned to the first key instead of the last."""
        queries = args[3][1:] - args[3][:-1]
        return kernel(*args, seqused_k=queries if args[8] else seqused_k, **how)

    def takes_all_of_its_pages(*args, seqused_k, block_table, **how):
        used = torch.full_like(seqused_k, 256) * block_table.shape[1]
        return kernel(*args, seqused_k=seqused_k if args[8] else used, block_table=block_table, **how)

    def reads_one_table(*args, block_table, **how):
        return kernel(*args, block_table=block_table[:1].expand_as(block_table), **how)

    wrong = unscaled, sees_all, counts_from_the_beginning, takes_all_of_its_pages, reads_one_table
    for other, told in (
        (older, "unexpected keyword argument 'block_table'"),
        *((one, "what it gives is .* off") for one in wrong),
    ):
        paged_kernel._unusable.cache_clear()
        monkeypatch.setattr(paged_kernel, "_flash", other)
        with pytest.raises(ValueError, match=f"does not read pages so on this device: .*{told}"):
            check_kernel(CPU, torch.float32, SimpleNamespace(**CONFIG))


def planned(backend, prompt, answer):
    """Bytes of the native engine's cache for six responses to two prompts."""
    native = NativeEngineConfig(attention_backend=backend)
    config = RolloutConfig(prompts_per_step=2, group_size=3, native=native)
    demand = Demand(prompt=prompt, answer=answer, processes=1, on_cpu=False, device_bytes=0)
    return paged_cache(config, SimpleNamespace(cached=10, width=2), demand)


def test_memory_is_planned_in_its_pages_and_with_keys_of_the_models_type():
    assert planned("torch", 300, 100) == (6 * 128 + 2 * 320) * 10 * (4 + 2)
    assert planned("flash", 300, 100) == (6 * 256 + 2 * 512) * 10 * (2 + 2)


def test_it_saves_memory_from_the_length_on_that_the_documentation_names():
    saves = [n for n in range(1, 1500) if planned("flash", 0, n) < planned("torch", 0, n)]
    assert saves == [*range(161, 257), *range(321, 1500)]
    assert planned("flash", 0, 40) / planned("torch", 0, 40) == pytest.approx(2.7, abs=0.05)
