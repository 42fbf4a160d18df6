"""What is otherwise tested on a CPU, on whatever accelerator torch finds. Not part of CI, which has none."""

import json
import subprocess
import sys
import time

import pytest
import torch
from torch.testing import assert_close

from lightrft.build.memory import build_memory_plan
from lightrft.config import ModelConfig, NativeEngineConfig, OptimizerConfig, StrategyConfig
from lightrft.engines.native import NativeEngine
from lightrft.engines.paged_kernel import Paged, paged_attention
from lightrft.models.attention import ATTENTION, SharedPrompts
from lightrft.models.logprobs import _BlockedHead, logprobs
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.memory import Phase
from lightrft.strategy.single import Single
from lightrft.strategy.twins import Twins, exchange
from lightrft.testing import check_engine, tiny_folder, tiny_model, tiny_prompt, tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.metrics import TokenMeans
from lightrft.types import Sampling, Trajectory
from lightrft.utils.device import can_lock_pages, device_bytes, has_varlen_kernel, pick_device
from tests.e2e.runs import PLAIN

pytestmark = pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip
MIB = 2**20


@pytest.fixture(scope="module")
def here():
    return pick_device("auto")


def decode(tokens):
    return bytes(t % 256 for t in tokens).decode("latin-1")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("record", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
def test_the_native_engine_does_all(tmp_path, here, family, own_weights, record):
    if own_weights:
        source = Source(ModelConfig(path=str(tiny_folder(tmp_path / "m", family))), learns=False)
        module = source.empty(here)
    else:
        module = tiny_model(family, attention=ATTENTION).to(here)
    engine = NativeEngine(
        module, frozenset(), decode, NativeEngineConfig(cuda_graphs="on" if record else "off")
    )
    found = check_engine(engine, tiny_model(family, attention="sdpa"), decode)
    assert found.ok, str(found)


def flash_engine(model, record):
    """The native engine with its pages read by torch's flash kernel; skipped where that cannot be."""
    config = NativeEngineConfig(attention_backend="flash", cuda_graphs="on" if record else "off")
    try:
        return NativeEngine(model, frozenset(), decode, config)
    except ValueError as why:
        pytest.skip(str(why))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("record", [False, True], ids=["plain", "recorded"])
def test_pages_read_by_the_flash_kernel_give_what_the_trainer_finds(here, family, record):
    """In bfloat16, where tokens of two ways part soon: the log-probs of those that were drawn, over page borders of prompts and answers."""
    model = tiny_model(family, attention=ATTENTION).to(here, torch.bfloat16)
    engine = flash_engine(model, record)
    prompts = [tiny_prompt(length, seed=length) for length in (3, 255, 256, 257, 700)]
    drawn = engine.generate(prompts, Sampling(n=5, max_tokens=300, ignore_eos=True, seed=1))
    answers = [
        Trajectory(prompt, place, a.token_ids, [True] * len(a.token_ids), a.logprobs, a.finish)
        for place, (prompt, group) in enumerate(zip(prompts, drawn, strict=True)) for a in group
    ]  # fmt: skip
    with torch.no_grad():
        found = logprobs(model, pack(answers, device=here), temperature=1.0, max_logits=0).values.cpu()
    apart = (found - torch.tensor([x for a in answers for x in a.logprobs])).abs()
    assert float(apart.mean()) < 0.02, float(apart.mean())
    assert float(apart.max()) < 0.3, float(apart.max())


@pytest.mark.parametrize("heads", [(4, 2, 16), (12, 2, 128), (8, 8, 64), (4, 1, 256)])
def test_the_flash_kernel_reads_pages_as_plain_attention_does(here, heads):
    """Queries of three stretches over pages in any order, and the last tokens of them; to the rounding of bfloat16."""
    if not has_varlen_kernel(torch.empty(0, dtype=torch.bfloat16, device=here)):
        pytest.skip("this device has no such kernel")
    asking, keys_of, width = heads
    draw = torch.Generator().manual_seed(0)
    pages = torch.randn(2, 7, 256, keys_of, width, generator=draw).bfloat16()
    query = torch.randn(9, asking, width, generator=draw).bfloat16()
    counts, rows, lengths = [1, 6, 2], [[5, 0, 3], [2, 0, 0], [6, 1, 0]], [700, 9, 300]
    numbers = [0, 1, 7, 9], rows, lengths, [0, 700, 709, 1009]
    seen = Paged(*(torch.tensor(n, dtype=torch.int32, device=here) for n in numbers), longest=6)
    for is_last in (False, True):
        try:
            out, total = paged_attention(query.to(here), *pages.to(here), seen, 0.2, is_last=is_last)
        except (TypeError, RuntimeError) as why:
            pytest.skip(f"torch {torch.__version__}: {why}")
        at = 0
        for count, row, length in zip(counts, rows, lengths, strict=True):
            k, v = (
                x[row].flatten(0, 1)[:length].double().repeat_interleave(asking // keys_of, 1) for x in pages
            )
            scores = torch.einsum("qhd,khd->qhk", query[at : at + count].double(), k) * 0.2
            if is_last:
                later = torch.arange(length) > torch.arange(length - count, length)[:, None]
                scores.masked_fill_(later[:, None], -torch.inf)
            right = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v)
            mine, sums = out[at : at + count].cpu().double(), total[at : at + count].cpu().double()
            assert float((mine - right).norm() / right.norm()) < 1e-2
            assert float((sums - scores.logsumexp(-1)).abs().max()) < 1e-2
            at += count


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-4), (torch.bfloat16, 0.15)])
def test_log_probs_and_gradients_are_those_of_a_cpu(here, family, dtype, close):
    answers = tiny_trajectories([(30, [12, 7, 1]), (200, [90]), (5, [33, 2])])
    found = {}
    for device, kind in ((torch.device("cpu"), torch.float32), (here, dtype)):
        model = tiny_model(family, attention=ATTENTION).to(device, kind)
        values = logprobs(model, pack(answers, device=device), temperature=0.7, max_logits=10_000).values
        values.mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[device.type] = values.detach().cpu().float(), gradient.cpu().float()
    (right, slope), (values, gradient) = found["cpu"], found[here.type]
    assert_close(values, right, atol=close, rtol=0)
    assert float((gradient - slope).norm() / slope.norm()) < close


def test_what_sleeps_gives_its_memory_back_and_wakes_as_it_was(tmp_path, here):
    """An engine with weights of its own beside a trainer that is moved out while it is not needed."""
    source = Source(ModelConfig(path=str(tiny_folder(tmp_path / "m", "llama", **LARGE))))
    actor = Single(StrategyConfig(offload=True), here).trainable(source, OptimizerConfig(), 1)
    engine = NativeEngine(source.empty(here), frozenset(), decode, NativeEngineConfig())
    memory_plan = build_memory_plan({"actor": actor}, engine, {}, here)
    prompts = [tiny_prompt(40, seed=n) for n in range(4)]
    sampling = Sampling(n=8, max_tokens=64, ignore_eos=True, seed=1)

    def drawn():
        with memory_plan(Phase.SYNC):
            engine.load_weights(actor.weights())
        with memory_plan(Phase.ROLLOUT):
            answers = engine.generate(prompts, sampling)
            return [[a.token_ids for a in group] for group in answers], device_bytes(here), _bytes(engine)

    said, awake, held = drawn()
    assert held > 500 * MIB
    with memory_plan(Phase.TRAIN):
        training = _bytes(actor)
        batch = pack(tiny_trajectories([(9, [4])]), device=here)
        actor.backward(
            actor.compute(lambda m: logprobs(m, batch, temperature=1.0, max_logits=9999).values.sum() * 0)
        )
        actor.step(actor.gradient_norm())
    assert drawn()[0] == said
    with memory_plan(Phase.IDLE):
        asleep = device_bytes(here)
    assert awake - asleep > 0.9 * held
    assert awake < held + 0.1 * training  # the trainer was out meanwhile


def _bytes(owner):
    return sum(part.nbytes() for part in owner.parts().values())


@pytest.mark.parametrize(
    ("layers", "offload"), [(["bf16"], True), (["lora"], True), ([], False)], ids=["bf16", "lora", "float32"]
)
def test_a_run_learns_there(tmp_path, here, layers, offload):
    flags = ["--strategy.device", here.type, "--strategy.offload", str(offload).lower()]
    flags += ["--algorithm.kl-coefficient", "0.01", "--run", "a", "--steps", "3", *PLAIN]
    subprocess.run(
        [sys.executable, "-m", "lightrft", "train", "tiny", "grpo", *layers, *flags], cwd=tmp_path, check=True
    )
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    apart = [line["mismatch/mean_abs"] for line in lines if "mismatch/mean_abs" in line]
    assert len(apart) == 3
    assert all(line["memory/device/train"] > 0 for line in lines if "mismatch/mean_abs" in line)
    assert max(apart) < (0.1 if layers == ["bf16"] else 1e-4)
    assert (tmp_path / "a" / "model" / "model.safetensors").exists()


GROUPS = [(21, [7, 1, 0, 19]), (1, [5, 3]), (40, [0]), (300, [200, 130, 64]), (3, [2]), (2, [1, 1])]


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 2, 16), (12, 2, 128), (8, 8, 64), (4, 1, 256)])
@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("both_ways", [(), ((2, 19), (72, 75))], ids=["causal", "both-ways"])
def test_the_flash_kernel_attends_as_plain_attention_does_in_float64(
    here, heads, key_heads, width, window, both_ways
):
    """Forward and backward, to the rounding of bfloat16; tests/oracles/test_varlen_attention.py holds the rest on a CPU."""
    inputs = pack(tiny_trajectories(GROUPS)).inputs
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(1, h, len(inputs.token_ids), width, generator=generator)
        for h in (heads, key_heads, key_heads)
    ]
    slope = torch.randn(1, len(inputs.token_ids), heads, width, generator=generator)
    found = []
    for dtype, exact in ((torch.float64, True), (torch.bfloat16, False)):
        layout = SharedPrompts.of(
            inputs.prompt_spans, inputs.response_spans, exact=exact, both_ways=both_ways
        )
        # What bfloat16 cannot hold is taken from both.
        states = [x.bfloat16().to(here, dtype).requires_grad_() for x in given]
        out = layout.attend(None, *states, width**-0.5, window)
        out.backward(slope.bfloat16().to(here, dtype))
        found.append([x.detach().double() for x in (out, *(s.grad for s in states))])
    for right, ours in zip(*found, strict=True):
        assert float((ours - right).norm() / right.norm()) < 1e-2


@pytest.mark.parametrize("window", [None, 16], ids=["all", "window"])
def test_a_micro_batch_is_computed_without_waiting_for_the_device(here, window):
    """From packed answers to gradients; what waits for a CUDA device raises in this mode."""
    if here.type != "cuda":
        pytest.skip("only CUDA tells of what waits for it")
    family = "qwen3" if window is None else "gemma3"
    model = tiny_model(family, attention=ATTENTION).to(here, torch.bfloat16)
    means = TokenMeans()

    def micro_batch():
        batch = pack(tiny_trajectories(GROUPS), device=here)
        found = logprobs(model, batch, temperature=0.7, max_logits=3000)
        (found.values.sum() + 0.1 * found.entropy.sum()).backward()
        means.add({"kl": found.values, "mismatch/max": found.values.abs()}, batch.mask)

    micro_batch()  # what libraries set up at their first call may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        micro_batch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert means.result(World())["kl"] < 0


@pytest.mark.parametrize("cap", [None, 20.0])
def test_the_head_of_a_bfloat16_model_is_that_of_float32_matrices(here, cap):
    """As stated in models/logprobs.py: logits to 1e-5 of the largest, gradients to 0.4 % in norm."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 1024, generator=draw).bfloat16()
    weight = (torch.randn(5000, 1024, generator=draw) * 0.05).bfloat16()
    tokens = torch.randint(5000, (300,), generator=draw)
    found = []
    for device, dtype in ((here, torch.bfloat16), (torch.device("cpu"), torch.float32)):
        inputs = [x.to(device, dtype).requires_grad_() for x in (hidden, weight)]
        values, entropy, _ = _BlockedHead.apply(*inputs, None, tokens.to(device), 1.0, cap, 300 * 1200, (3,))
        (values.sum() + 0.3 * entropy.sum()).backward()
        found.append([x.detach().cpu().double() for x in (values, entropy, *(i.grad for i in inputs))])
    for place, (ours, right) in enumerate(zip(*found, strict=True)):
        assert float((ours - right).norm() / right.norm()) < (1e-4 if place < 2 else 4e-3)


def test_each_phase_says_how_much_device_memory_it_took(here):
    memory_plan = build_memory_plan({}, NativeEngine(tiny_model("llama", attention=ATTENTION).to(here), frozenset(), decode, NativeEngineConfig()),
                        {}, here)  # fmt: skip
    with memory_plan(Phase.SCORE):
        del_soon = torch.empty(64 * MIB, dtype=torch.uint8, device=here)
        del del_soon
    with memory_plan(Phase.TRAIN):
        pass
    peaks = memory_plan.reset_peaks()
    assert peaks["score"] - peaks["train"] >= 0.99 * 64 / 1024


# -- compiled and fused layers -----------------------------------------------------------------------------------------


def of_layers(tmp_path, here, family, dtype, **options):
    """Log-probs and gradient of a model of this family with options of ModelConfig."""
    folder = tmp_path / family
    if not folder.exists():
        tiny_folder(folder, family)
    source = Source(ModelConfig(path=str(folder), dtype=str(dtype).removeprefix("torch."), **options))
    model, found = source.full(here), []
    for shape in (GROUPS, GROUPS[:2], [(1, [1])]):
        values = logprobs(
            model, pack(tiny_trajectories(shape), device=here), temperature=0.7, max_logits=10_000
        ).values
        values.sum().backward()
        found.append(values.detach().float())
    return torch.cat(found), torch.cat([p.grad.flatten().float() for p in model.parameters()]), model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    "options",
    [{"compile": True}, {"compile": True, "gradient_checkpointing": True}, {"kernels": "liger"}],
    ids=["compiled", "compiled-recomputed", "liger"],
)
def test_compiled_and_fused_layers_compute_what_plain_ones_do(tmp_path, here, family, dtype, close, options):
    if "kernels" in options:
        pytest.importorskip("liger_kernel")
    right, slope, _ = of_layers(tmp_path, here, family, dtype)
    values, gradient, model = of_layers(tmp_path, here, family, dtype, **options)
    assert any("forward" in vars(part) for part in model.modules())  # something was exchanged
    assert float((values - right).abs().max()) < 3 * close
    assert float((gradient - slope).norm() / slope.norm()) < close


@pytest.mark.parametrize(
    "flags", [["--model.compile", "true"], ["--model.kernels", "liger"]], ids=["compiled", "liger"]
)
def test_a_run_with_such_layers_learns_and_its_engine_agrees(tmp_path, here, flags):
    if "liger" in flags:
        pytest.importorskip("liger_kernel")
    flags = [*flags, "--strategy.device", here.type, "--run", "a", "--steps", "3", *PLAIN]
    subprocess.run(
        [sys.executable, "-m", "lightrft", "train", "tiny", "grpo", "bf16", *flags], cwd=tmp_path, check=True
    )
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    apart = [line["mismatch/mean_abs"] for line in lines if "mismatch/mean_abs" in line]
    assert len(apart) == 3
    assert max(apart) < 0.1


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_engine_waits_for_the_device_once_for_several_tokens(here, top_p):
    """Counted by what torch warns of where the host waits; the tokens are those of an engine that waits for each."""
    if here.type != "cuda":
        pytest.skip("only CUDA tells of what waits for it")
    model = tiny_model("llama", attention=ATTENTION).to(here)
    prompts, sampling = (
        [tiny_prompt(20, seed=n) for n in range(4)],
        Sampling(n=4, max_tokens=128, ignore_eos=True, top_p=top_p),
    )
    said = {}
    for record in ("off", "on"):
        engine = NativeEngine(model, frozenset(), decode, NativeEngineConfig(cuda_graphs=record))
        said[record] = engine.generate(prompts, sampling)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waited:
            again = engine.generate(prompts, sampling)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waited) < 64
    tokens = [[[a.token_ids for a in group] for group in found] for found in (said["off"], said["on"], again)]
    assert tokens[0] == tokens[1] == tokens[2]


# -- offload -----------------------------------------------------------------------------------------------------------


def test_tensors_come_while_others_go_and_the_device_never_holds_both(here):
    """Two residents of 256 MiB in turn, a hundred times: nothing is lost, nothing grows."""
    if not can_lock_pages(here):
        pytest.skip("only CUDA copies beside what it computes")
    parts = [
        [torch.full((MIB,), float(10 * which + n), device=here) for n in range(64)] for which in range(2)
    ]
    twins = Twins()
    twins.out(parts[1])
    torch.accelerator.reset_peak_memory_stats()
    before = device_bytes(here)
    going, coming = parts
    for _ in range(100):
        exchange([(twins, going)], [(twins, coming, here)])
        for tensor in coming:
            tensor += 1  # at once: what comes is there for what the device is told next
        going, coming = coming, going
    assert torch.accelerator.max_memory_allocated() - before <= 8 * MIB
    twins.back(coming, here)
    torch.accelerator.synchronize()
    for which, tensors in enumerate(parts):
        for n, tensor in enumerate(tensors):
            assert tensor.is_cuda
            assert float(tensor[0]) == float(tensor[-1]) == 10 * which + n + 50


def test_both_directions_are_faster_together_than_one_after_the_other(here):
    if not can_lock_pages(here):
        pytest.skip("only CUDA copies beside what it computes")
    parts = [[torch.zeros(8 * MIB, device=here) for _ in range(64)] for _ in range(2)]  # 2 GiB each
    twins, spent = Twins(), {}
    twins.out(parts[1])
    going, coming = parts
    for name in ("together", "apart", "together", "apart"):  # the first of each make what is needed
        torch.accelerator.synchronize()
        start = time.perf_counter()
        if name == "together":
            exchange([(twins, going)], [(twins, coming, here)])
        else:
            twins.out(going)
            twins.back(coming, here)
        torch.accelerator.synchronize()
        spent[name] = time.perf_counter() - start
        going, coming = coming, going
    assert spent["together"] < 0.8 * spent["apart"], spent
