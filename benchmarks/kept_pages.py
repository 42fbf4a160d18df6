"""Conversations with the native engine: what it keeps of a response between two turns, against reading all of it again.

    python benchmarks/kept_pages.py --prompts 4 --answers 4 --turns 5 --reply 200

Both sample the same turns of random weights and read the same made replies, in turn, three times. Printed are the tokens that the
model reads, beside those that are necessary (each prompt, turn and reply once), and the ratio of the median seconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.native_vs_generate import SHAPES
from lightrft.config import NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.testing import tiny_processor, tiny_prompt
from lightrft.trainer.responses import begun, continued, extend
from lightrft.types import Sampling, Trajectory
from lightrft.utils.device import pick_device


def talk(
    engine: NativeEngine, given: argparse.Namespace, *, keep: bool
) -> tuple[float, int, list[Trajectory]]:
    """Seconds, tokens read, and the conversations."""
    sampling = Sampling(n=given.answers, max_tokens=given.tokens, ignore_eos=True, seed=1)
    prompts, draw, processor = (
        [tiny_prompt(given.length, seed=n) for n in range(given.prompts)],
        random.Random(0),
        tiny_processor(),
    )
    start, read = time.perf_counter(), engine.read_tokens
    with engine.keeping() if keep else nullcontext():
        answers = zip(prompts, engine.generate(prompts, sampling), strict=True)
        ts = [begun(prompt, n, c, processor) for n, (prompt, found) in enumerate(answers) for c in found]
        for _ in range(given.turns - 1):
            for t in ts:
                reply = [draw.randrange(250) for _ in range(given.reply)]
                t.token_ids += reply
                t.mask += [False] * given.reply
                t.behavior += [0.0] * given.reply
            found = engine.generate([continued(t, given.tokens) for t in ts], sampling)
            for t, (completion,) in zip(ts, found, strict=True):
                extend(t, completion, processor)
    return time.perf_counter() - start, engine.read_tokens - read, ts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    for name, usual in {
        "prompts": 4,
        "answers": 4,
        "turns": 5,
        "tokens": 32,
        "reply": 200,
        "length": 100,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    device = pick_device("auto")
    config = LlamaConfig(**SHAPES[given.shape], tie_word_embeddings=True, max_position_embeddings=32768)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).to(device)
    engine = NativeEngine(model, frozenset(), tiny_processor().text, NativeEngineConfig())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    reads, said = {}, {}
    for _ in range(3):
        for keep in (True, False):
            took, reads[keep], said[keep] = talk(engine, given, keep=keep)
            seconds[keep].append(took)
    assert [t.token_ids for t in said[True]] == [t.token_ids for t in said[False]]
    necessary = given.prompts * given.length + sum(len(t) - 1 for t in said[True])
    print(
        f"tokens read: {reads[True]} kept, {reads[False]} again, {necessary} necessary: {reads[True] / necessary:.3f} and {reads[False] / necessary:.2f} times"
    )
    medians = {keep: statistics.median(found) for keep, found in seconds.items()}
    spread = {keep: f"{min(found):.1f} to {max(found):.1f}" for keep, found in seconds.items()}
    print(
        f"seconds: {medians[True]:.1f} kept ({spread[True]}), {medians[False]:.1f} again ({spread[False]}): {medians[False] / medians[True]:.2f} times as fast"
    )
