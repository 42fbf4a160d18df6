"""The parts of gpu.py: each measures one thing on the device of this process and gives a dictionary of numbers."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu import FUSED
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from lightrft.algorithms.algorithm import build
from lightrft.commands.plan import GIB, Hardware, Lengths, Plan, plan
from lightrft.config import (
    Config,
    ModelConfig,
    NativeEngineConfig,
    OptimizerConfig,
    RolloutConfig,
    StrategyConfig,
    UpdateConfig,
)
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.compiled import check_compiling, compile_layers
from lightrft.models.kernels import fuse
from lightrft.models.logprobs import _BlockedHead, logprobs
from lightrft.models.operations import operations_of
from lightrft.models.products import logits_at_once
from lightrft.models.tiny import tiny_tokenizer
from lightrft.models.words import training_logprobs
from lightrft.parallel.world import World
from lightrft.strategy.memory import Phase
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_folder, tiny_prompt
from lightrft.trainer.batching import Batching, batch_tokens, pack, unpack
from lightrft.trainer.batching import plan as micro_batches
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Batch, Sampling, Terms, Trajectory
from lightrft.utils.device import accelerators, available_bytes, pick_device
from lightrft.utils.imports import resolve

DEVICE = pick_device("auto")
ON_CPU = DEVICE.type == "cpu"
DTYPE = torch.float32 if ON_CPU else torch.bfloat16
SHAPES: dict[str, Any] = {
    "tiny": LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        head_dim=16, vocab_size=512, tie_word_embeddings=True),
    "0.5b": Qwen2Config(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "1.5b": Qwen2Config(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "8b": Qwen3Config(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                      num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=False),
}  # fmt: skip
LAYERS_THAT_LEARN = {"8b": 12}
"""Shape -> layers of it in a training step: with AdamW's float32 weights and moments all 36 need more than one device."""


def measured(part: str, shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """The numbers of a part."""
    torch.manual_seed(0)
    parts: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
        "peak": peak, "head": head, "layers": layers, "engine": engine, "step": step, "offload": offload, "trl": trl, "nccl": nccl,
    }  # fmt: skip
    return {**parts[part](shape, sizes), "device": next(iter(accelerators().values()), "cpu")}


def wait() -> None:
    """Until the device has done all it was told."""
    if not ON_CPU:
        torch.accelerator.synchronize()


def seconds(function: Callable[[], Any], times: int = 5) -> float:
    """The median of so many calls, after one that warms up."""
    spent = []
    for _ in range(1 + times):
        wait()
        start = time.perf_counter()
        function()
        wait()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def randn(*shape: int) -> Tensor:
    """Random numbers in the type of the models, on the device."""
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE)


def peak(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """The best rates that are seen on random data: what shares are shares of."""
    del shape, sizes
    size, numbers = (512, 2**22) if ON_CPU else (8192, 2**31)
    a, b, source = randn(size, size), randn(size, size), randn(numbers)
    target = torch.empty_like(source)
    return {
        "teraflops": 2e-12 * size**3 / seconds(lambda: a @ b, 10),
        "memory_gb_per_second": 2e-9 * source.nbytes / seconds(lambda: target.copy_(source), 10),
    }


def matrix_rate() -> float:
    """Operations a second of large products, here and now."""
    return 1e12 * float(peak("", argparse.Namespace())["teraflops"])


def config_of(shape: str, *, learns: bool = False) -> Any:
    """The transformers config of a shape."""
    config = SHAPES[shape]
    config.max_position_embeddings = 8192
    if learns and shape in LAYERS_THAT_LEARN:
        config.num_hidden_layers = LAYERS_THAT_LEARN[shape]
        config.layer_types = (
            None
            if getattr(config, "layer_types", None) is None
            else config.layer_types[: config.num_hidden_layers]
        )
    return config


def model_of(shape: str, *, learns: bool = False) -> nn.Module:
    """It with random weights, made on the device."""
    with torch.device(DEVICE):
        model: Any = AutoModelForCausalLM.from_config(
            config_of(shape, learns=learns), dtype=DTYPE, attn_implementation=ATTENTION
        )
    return model.eval()  # type: ignore[no-any-return]


def head(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward pass of the output head alone; its share of a step is found in `step`."""
    config = config_of(shape)
    rows = min(sizes.batch, 8192)
    spent = head_seconds(rows, config)
    done = 8.0 * rows * config.hidden_size * config.vocab_size
    return {"rows": rows, "seconds": spent, "share_of_matrix_rate": done / spent / matrix_rate()}


def head_seconds(rows: int, config: Any) -> float:
    """Seconds of the head's forward and backward pass over so many tokens."""
    hidden, weight = randn(rows, config.hidden_size), randn(config.vocab_size, config.hidden_size) * 0.02
    hidden.requires_grad_()
    weight.requires_grad_()
    tokens = torch.randint(config.vocab_size, (rows,), device=DEVICE)

    def pass_() -> None:
        values, *_ = _BlockedHead.apply(
            hidden, weight, None, tokens, 1.0, None, logits_at_once(0, on_cpu=ON_CPU), ()
        )
        values.sum().backward()

    return seconds(pass_, 3)


def fused(module: nn.Module, how: str) -> nn.Module:
    """The model with its layers as they are (plain), compiled, or with the kernels of liger-kernel."""
    if how == "compiled":
        check_compiling(ModelConfig(compile=True), DEVICE)
        compile_layers(module)
    elif how == "liger" and not fuse(module):
        raise SystemExit("no part of this model has a kernel")
    return module


def layers(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward pass over a micro-batch by plain, compiled and fused layers, with the seconds that the first pass took."""
    answer, group = tiny_prompt(sizes.tokens).token_ids, sizes.answers
    each = sizes.length + group * sizes.tokens
    groups = max(1, sizes.batch // each)
    found = [
        Trajectory(
            tiny_prompt(sizes.length, seed=n), n, answer, [True] * len(answer), [0.0] * len(answer), "length"
        )
        for n in range(groups)
        for _ in range(group)
    ]
    batch = pack(found, device=DEVICE)
    spent: dict[str, Any] = {"tokens": groups * each}
    for how in FUSED:
        if how == "liger" and (ON_CPU or find_spec("liger_kernel") is None):
            spent[how] = "skipped: it needs a GPU and liger-kernel"
            continue
        module = fused(model_of(shape, learns=True), how)

        def pass_(module: nn.Module = module) -> None:
            logprobs(module, batch, temperature=1.0, max_logits=0).values.sum().backward()
            module.zero_grad(set_to_none=True)

        start = time.perf_counter()
        pass_()
        wait()
        first = time.perf_counter() - start
        spent[how] = {"first": first, "seconds": seconds(pass_, 5)}
        spent[how]["plain_over"] = spent["plain"]["seconds"] / spent[how]["seconds"]
    return spent


def engine(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """64 answers at a time by the native engine, with either way to read pages, and by transformers' generate, in turn."""
    model: Any = model_of(shape)
    answers, tokens = sizes.answers, sizes.decode
    questions = max(1, 64 // answers)
    prompts = [tiny_prompt(sizes.length, seed=n) for n in range(questions)]
    ids = torch.tensor([p.token_ids for p in prompts], device=DEVICE)
    made, skipped = engines(model, "on" if sizes.record else "off")

    def native(engine: NativeEngine) -> None:
        model.set_attn_implementation(ATTENTION)
        engine.generate(prompts, Sampling(n=answers, max_tokens=tokens, ignore_eos=True))

    def generate() -> None:
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, pad_token_id=0,
                max_new_tokens=tokens, min_new_tokens=tokens, num_return_sequences=answers,
            )  # fmt: skip

    ways = {name: partial(native, engine) for name, engine in made.items()} | {"generate": generate}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(3):
        for name, run in ways.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if repeat:
                spent[name].append(time.perf_counter() - start)
            if name in made:
                made[name].parts()["cache"].offload()
    middle = {name: statistics.median(times) for name, times in spent.items()}
    weights = sum(p.nbytes for p in model.parameters())
    rate = 1e9 * float(peak("", sizes)["memory_gb_per_second"])
    return {
        "sequences": questions * answers,
        **{f"{name}_tokens_per_second": questions * answers * tokens / s for name, s in middle.items()},
        **{f"{name}_over_generate": middle["generate"] / middle[name] for name in made},
        # Reading all weights once for each token of every answer is the least that decoding takes.
        **{f"{name}_share_of_memory_limit": tokens * weights / rate / middle[name] for name in made},
        **skipped,
    }


def engines(model: nn.Module, record: str) -> tuple[dict[str, NativeEngine], dict[str, str]]:
    """The native engine as it is, and with rollout.native.attention_backend=flash, or why that cannot be."""
    plain = NativeEngineConfig(max_sequences=4096, cuda_graphs=record)
    made, skipped = {"native": NativeEngine(model, frozenset(), str, plain)}, {}
    try:
        made["flash"] = NativeEngine(model, frozenset(), str, replace(plain, attention_backend="flash"))
    except ValueError as why:
        skipped["flash"] = f"skipped: {why}"
    return made, skipped


def settings(folder: Path, sizes: argparse.Namespace) -> Config:
    """Those of one GRPO step of this size."""
    return Config(
        model=ModelConfig(path=f"random:{folder}", dtype="float32" if ON_CPU else "bfloat16"),
        rollout=RolloutConfig(
            prompts_per_step=sizes.questions, group_size=sizes.answers, max_tokens=sizes.tokens,
            native=NativeEngineConfig(max_sequences=sizes.questions * sizes.answers, prefill_tokens=sizes.batch),
        ),
        update=UpdateConfig(tokens_per_micro_batch=sizes.batch),
        strategy=StrategyConfig(device=DEVICE.type),
    )  # fmt: skip


def foreseen(folder: Path, config: Config, sizes: argparse.Namespace) -> Plan:
    """What `lightrft plan` says of it."""
    memory = available_bytes(DEVICE) / GIB
    return plan(config, Hardware(1, memory), Lengths(sizes.length, sizes.tokens))


class Phases:
    """Seconds and the most memory of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.gib: dict[str, float] = {}

    def measure(self, phase: Phase, function: Callable[[], Any]) -> Any:
        """What `function` gives."""
        wait()
        if not ON_CPU:
            torch.accelerator.empty_cache()
            torch.accelerator.reset_peak_memory_stats()
        start = time.perf_counter()
        found = function()
        wait()
        self.seconds[phase.value] = time.perf_counter() - start
        if not ON_CPU:
            self.gib[phase.value] = torch.accelerator.max_memory_allocated() / GIB
        return found


class Learning:
    """The parts of a GRPO step, put together without files, text or rewards that take time."""

    def __init__(self, shape: str, config: Config, sizes: argparse.Namespace) -> None:
        self.config, self.sizes, self.text = config, sizes, config_of(shape, learns=True)
        module = fused(model_of(shape, learns=True), sizes.fused)
        self.actor = SingleTrainable(module, OptimizerConfig(learning_rate=1e-6), 10)
        self.engine = NativeEngine(
            module,
            frozenset(),
            str,
            replace(config.rollout.native, cuda_graphs="on" if sizes.record else "off"),
        )
        self.algorithm = build(config.algorithm, resolve)
        self.prompts = [tiny_prompt(sizes.length, seed=n) for n in range(sizes.questions)]

    def drawn(self) -> list[Trajectory]:
        """Answers with random rewards and their advantages."""
        sampling = Sampling(n=self.sizes.answers, max_tokens=self.sizes.tokens, ignore_eos=True)
        completions = self.engine.generate(self.prompts, sampling)
        self.engine.parts()["cache"].offload()
        draw = random.Random(0)
        found = [
            Trajectory(
                prompt,
                place,
                c.token_ids,
                [True] * len(c.token_ids),
                c.logprobs,
                c.finish,
                reward=draw.random(),
            )
            for place, (prompt, answers) in enumerate(zip(self.prompts, completions, strict=True))
            for c in answers
        ]
        whole = pack(found, inputs=False)
        whole.rewards = torch.zeros(len(whole.mask))
        self.algorithm.compute_advantages(whole, World().sum)
        for name in ("rewards", "advantages", "returns"):
            unpack(getattr(whole, name), found, name)
        return found

    def planned(self, answers: list[Trajectory]) -> list[list[Trajectory]]:
        """Micro-batches."""
        return micro_batches(answers, self.config.update.tokens_per_micro_batch)

    def score(self, answers: list[Trajectory]) -> None:
        """Log-probs without gradients, as of a reference."""
        with torch.no_grad():
            for part in self.planned(answers):
                found = self.actor.compute(training_logprobs, pack(part, device=DEVICE), self.config)
                unpack(found.values, part, "old")

    def loss(self, batch: Batch) -> Terms:
        """The policy loss."""
        new = self.actor.compute(training_logprobs, batch, self.config)
        return self.algorithm.loss(new.values, batch, new.entropy)

    def learn(self, answers: list[Trajectory]) -> dict[str, float]:
        """One update."""
        averaging = Averaging(self.algorithm.config.average, self.sizes.tokens)
        batching = Batching(self.config.update, World(), DEVICE)
        updates = optimize(
            self.actor, batching.updates(answers, seed=0), self.loss, averaging=averaging, batching=batching
        )
        return list(updates)[-1]


def step(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """One GRPO step by phase, after one that warms up; share of the matrix rate by the operations of `lightrft plan`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config_of(shape, learns=True).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        config = settings(folder, sizes)
        planned = foreseen(folder, config, sizes)
        learned = {phase.value: count / GIB for phase, count in planned.sums.items()}
        done = {name: amounts.flops for name, amounts in planned.work.phases().items()}
    if learned["train"] * GIB > available_bytes(DEVICE):
        return {
            "skipped": f"training needs {learned['train']:.0f} GiB by plan, and {available_bytes(DEVICE) / GIB:.0f} are free"
        }
    learning = Learning(shape, config, sizes)
    warm = argparse.Namespace(**{**vars(sizes), "tokens": min(sizes.tokens, 16)})
    learning.sizes = warm
    learning.learn(learning.drawn())
    learning.sizes, phases = sizes, Phases()
    answers = phases.measure(Phase.ROLLOUT, learning.drawn)
    phases.measure(Phase.SCORE, lambda: learning.score(answers))
    # One forward pass is a third of what training computes.
    done["score"] = done["train"] / 3
    found = phases.measure(Phase.TRAIN, lambda: learning.learn(answers))
    rate, read = matrix_rate(), sum(map(batch_tokens, learning.planned(answers)))
    drawn = sum(map(len, answers))
    return {
        "layers": config_of(shape, learns=True).num_hidden_layers,
        "seconds": phases.seconds,
        "tokens_per_second": {
            name: (drawn if name == "rollout" else read) / s for name, s in phases.seconds.items()
        },
        "share_of_matrix_rate": {name: done[name] / s / rate for name, s in phases.seconds.items()},
        "matrix_teraflops": rate / 1e12,
        "gib": phases.gib,
        "planned_gib": {name: learned[name] for name in phases.seconds},
        "head_share": head_share(learning, answers, phases.seconds["train"]),
        "loss": found["loss"],
    }


def head_share(learning: Learning, answers: list[Trajectory], spent: float) -> dict[str, float]:
    """The output head's share of the operations of training, and of the `spent` seconds, by its passes alone at the same sizes."""
    sizes, rows = learning.sizes, [sum(map(len, part)) for part in learning.planned(answers)]
    alone = sum({count: head_seconds(count, learning.text) for count in set(rows)}[count] for count in rows)
    operations = operations_of(learning.actor.module)
    assert operations is not None
    prompt, response = sizes.length, sizes.tokens
    seen = sizes.questions * (prompt**2 / 2 + sizes.answers * (response * prompt + response**2 / 2))
    read, drawn = sizes.questions * (prompt + sizes.answers * response), sum(rows)
    every = operations.forward(read, drawn, seen)
    return {"of_operations": 2 * operations.head * drawn / every, "of_seconds": alone / spent}


def offload(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """A model's weights to host memory and back, as `strategy.offload` moves them."""
    del sizes
    if ON_CPU:
        return {"skipped": "host and device are the same"}
    actor = SingleTrainable(model_of(shape, learns=True), OptimizerConfig(), 1, moves=True)
    weights = actor.parts()["weights"]
    size, out, back = weights.nbytes() / 1e9, [], []
    for _ in range(4):
        out.append(_once(weights.offload))
        back.append(_once(weights.onload))
    return {"gb": size, "out_gb_per_second": size / min(out[1:]), "back_gb_per_second": size / min(back[1:])}


def _once(function: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def trl(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """The same step by TRL, in bfloat16 with the static cache, as peers/trl_step.py makes it."""
    missing = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed"}
    given = config_of(shape, learns=True).to_dict()
    if given["model_type"] == "qwen3":
        return {"skipped": "measured for the smaller shapes"}
    with tempfile.TemporaryDirectory() as place:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
        family = "qwen2" if given["model_type"] == "qwen2" else "llama"
        folder = tiny_folder(Path(place) / "m", family, **{name: given[name] for name in names})
        command = [
            sys.executable,
            str(Path(__file__).parent / "peers" / "trl_step.py"),
            "--model",
            str(folder),
            "--device",
            DEVICE.type,
        ]
        for name, value in {"prompts": sizes.questions, "group-size": sizes.answers, "prompt-tokens": sizes.length,
                            "new-tokens": sizes.tokens, "micro-batch": min(16, sizes.questions * sizes.answers),
                            "precision": "float32" if ON_CPU else "bfloat16", "cache": "dynamic"}.items():  # fmt: skip
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr[-1500:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def nccl(shape: str, sizes: argparse.Namespace) -> dict[str, Any]:
    """How fast two devices of this machine add up 256 MiB."""
    del shape, sizes
    count = 0 if ON_CPU else torch.accelerator.device_count()
    if count < 2:
        return {"skipped": f"needs two devices, and there is {count or 'none'}"}
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(Path(__file__).parent / "gpu_pair.py"),
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return dict(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))
