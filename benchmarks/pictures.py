"""Pictures: the engine beside a plain loop over diffusers, what one start for a group saves, what a response holds, and a long run's memory.

    python benchmarks/pictures.py                  # all of it
    python benchmarks/pictures.py --only soak      # one part: draw, start, hold, learn, soak

Ratios are of CPU seconds (medians of alternating runs, one thread), so that they hold on a machine that others use. `draw`: the same
texts, first noise and steps drawn by the transformer, scheduler and VAE of diffusers in a loop of its own, in one batch of equal size. `start`: a group of 16 with
`rollout.denoise.same_start`, noise from step 4 of 8 on, beside the same without. `hold`: resident memory beside 4 bytes x numbers of a latent x states kept. `learn`: how often the
network is read in a training step, with one update and with two. `soak`: 200 steps of a tiny run, in a process of their own. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from lightrft.build.rl import build_run
from lightrft.config import Config, DenoiseConfig, ModelConfig, RolloutConfig, TaskConfig, layers
from lightrft.engines.denoise import normals, picture
from lightrft.engines.sampling import stream
from lightrft.models.tiny_pictures import Recipe, make_pipeline
from lightrft.types import Sampling
from lightrft.utils.device import resident_gib
from tests.pipelines import made, prompts, sd3_pipeline

WORDS = ("the digit five", "a two", "nine", "a three")
WIDE = {
    "sample_size": 32, "num_attention_heads": 8, "attention_head_dim": 32, "caption_projection_dim": 256, "pos_embed_max_size": 64,
    "num_layers": 4,
}  # fmt: skip
STEPS, GROUP, FIRST, RUNS = 8, 16, 4, 3
SMALL = [
    "--rollout.prompts-per-step",
    "4",
    "--rollout.group-size",
    "4",
    "--evaluate.before-and-after",
    "false",
    "--checkpoint.every-steps",
    "0",
    "--log.progress",
    "false",
    "--log.tensorboard",
    "false",
    "--log.curves",
    "false",
    "--rewards.workers",
    "0",
]


def settings(folder: Path, **denoise: Any) -> Config:
    """A run that draws with the pipeline of a folder."""
    plain = {"steps": STEPS, "max_text_tokens": 8, "height": 64, "width": 64}
    options = RolloutConfig(engine="denoise", denoise=DenoiseConfig(**{**plain, **denoise}))
    return Config(
        model=ModelConfig(path=str(folder)), rollout=options, tasks=TaskConfig(train={"digits": 1.0})
    )


def alternated(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU seconds of each side; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(RUNS + 1):
        for name, run in sides.items():
            began = time.process_time()
            run()
            found[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


@torch.no_grad()
def draw(folder: Path) -> None:
    """Our engine, and diffusers' parts in a plain loop: the same pictures, and how many a CPU second."""
    import diffusers

    kind, module, engine = made(settings(folder))
    plain = diffusers.DiffusionPipeline.from_pretrained(folder)
    asked, sampling = prompts(kind, WORDS), Sampling(n=4, temperature=0.0, seed=3)
    told = {name: torch.cat([p.media[name] for p in asked for _ in range(4)]) for name in asked[0].media}
    keys = torch.tensor([stream(3, place, k) for place in range(len(WORDS)) for k in range(4)])
    first = normals(keys, 0, kind.processor.shape)

    def loop() -> torch.Tensor:
        plain.scheduler.set_timesteps(STEPS)
        x = first
        for t in plain.scheduler.timesteps:
            found = module(hidden_states=x, timestep=t.expand(len(x)), return_dict=False, **told)[0]
            x = plain.scheduler.step(found, t, x).prev_sample
        decoded = plain.vae.decode(x / plain.vae.config.scaling_factor + plain.vae.config.shift_factor)
        return torch.stack([torch.tensor(picture(one)) for one in decoded.sample])

    ours = torch.stack([torch.tensor(c.made["image"]) for g in engine.generate(asked, sampling) for c in g])
    apart = (ours.int() - loop().int()).abs().max().item()
    took = alternated({"ours": lambda: engine.generate(asked, sampling), "plain": loop})
    print(
        f"draw: {len(keys)} pictures in {took['ours']:.2f} CPU seconds, plain diffusers {took['plain']:.2f}: "
        f"{took['plain'] / took['ours']:.3f} times its speed; pictures differ by at most {apart} of 255"
    )


def start(folder: Path) -> None:
    """A group with one start beside a group whose pictures begin alone."""
    engines = {}
    for same in (True, False):
        kind, _, engine = made(settings(folder, first=FIRST, window=2, same_start=same))
        engines[same] = engine
    asked, sampling = prompts(kind, WORDS[:1]), Sampling(n=GROUP, seed=3)
    took = alternated({str(s): lambda e=e: e.generate(asked, sampling) for s, e in engines.items()})
    saved = 1 - took["True"] / took["False"]
    least = 1 - (FIRST / GROUP + STEPS - FIRST) / STEPS
    print(
        f"start: a group of {GROUP} with one start {took['True']:.2f} CPU seconds, without {took['False']:.2f}: {saved:.1%} saved, {least:.1%} of the network's passes"
    )


def hold(folder: Path) -> None:
    """Resident memory of responses beside that of their states."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: freed blocks go back
    kind, _, engine = made(settings(folder, steps=4, window=2, height=128, width=128))
    asked = prompts(kind, WORDS)
    engine.config = replace(engine.config, max_sequences=4)
    kept = [engine.generate(asked, Sampling(n=1, seed=0))]
    for one in kept[0]:
        one[0].made.clear()
    gc.collect()
    before, rounds = resident_gib(), 24
    for seed in range(1, rounds + 1):
        kept.append(engine.generate(asked, Sampling(n=1, seed=seed)))
        for group in kept[-1]:
            group[0].made.clear()  # pictures are counted elsewhere: 3 bytes a pixel
    gc.collect()
    answers = rounds * len(asked)
    grown = (resident_gib() - before) * 2**30 / answers
    states = 4 * math.prod(kind.processor.shape) * 2 * 2
    print(
        f"hold: a response of 2 steps holds {grown:,.0f} bytes, its 4 states {states:,}: {grown / states:.3f}"
    )


def learn(folder: Path) -> None:
    """Predictions of a training step after drawing, for each learned step of a picture."""
    for updates in (1, 2):
        flags = (
            f"--model.path {folder} --update.num-minibatches {updates} --algorithm.kl-coefficient 0".split()
        )
        with tempfile.TemporaryDirectory() as run, ExitStack() as stack:
            config = layers.load(["digits_sd3", *SMALL, "--steps", "2", *flags], Config)
            trained = build_run(config, Path(run), stack, started=time.perf_counter())
            trained.begin()
            rows: list[int] = []

            def count(module: Any, args: Any, found: Any, rows: list[int] = rows) -> None:
                if type(module).__name__ == "SD3Transformer2DModel":
                    rows.append(len(found[0]))

            with torch.nn.modules.module.register_module_forward_hook(count):
                trained.take(1)
            rollout = config.rollout
            answers = rollout.prompts_per_step * rollout.group_size
            drawn, learned = answers * rollout.denoise.steps, answers * rollout.denoise.learned
            print(
                f"learn: with {updates} updates the network is read {(sum(rows) - drawn) / learned:.2f} times for each learned step of a picture"
            )


def soak(folder: Path) -> None:
    """Memory that a run of 200 steps holds at its end, beside that after a tenth of it."""
    with tempfile.TemporaryDirectory() as place:
        flags = [*SMALL, "--model.path", str(folder), "--steps", "200", "--run", "run"]
        told = subprocess.run(
            [sys.executable, "-m", "lightrft", "train", "digits_sd3", *flags], cwd=place, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        if told.returncode:
            sys.exit(told.stdout + told.stderr)
        lines = map(json.loads, (Path(place) / "run/metrics.jsonl").read_text().splitlines())
        held = [line["memory/rss_gib"] for line in lines if "memory/rss_gib" in line]
    print(
        f"soak: {len(held)} steps, {held[19]:.4f} GiB after 20, {held[-1]:.4f} at the end: {held[-1] / held[19] - 1:+.2%}, at most {max(held[19:]) / held[19] - 1:+.2%}"
    )


PARTS = {"draw": draw, "start": start, "hold": hold, "learn": learn, "soak": soak}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=PARTS)
    asked_for = parser.parse_args().only
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        wide, tiny = Path(scratch) / "wide", Path(scratch) / "tiny"
        sd3_pipeline(**WIDE).save_pretrained(wide)
        make_pipeline(tiny, Recipe(updates=5))
        for name, part in PARTS.items():
            if asked_for in (None, name):
                part(tiny if name in ("learn", "soak") else wide)
