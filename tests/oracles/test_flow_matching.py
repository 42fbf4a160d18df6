"""Supervised fine-tuning of diffusion pipelines against a plain loop over the networks and schedulers of diffusers themselves."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.build.offline import build_loader, build_run
from lightrft.build.sft import KINDS as SFT_KINDS
from lightrft.build.sft_pictures import of_pictures
from lightrft.config import (
    ModelConfig,
    OptimizerConfig,
    SamplingLogConfig,
    SFTConfig,
    StrategyConfig,
    TaughtPicturesConfig,
)
from lightrft.config.data import TaskConfig
from lightrft.config.training import UpdateConfig
from lightrft.datasets.sides import Shown
from lightrft.engines.denoise import normals
from lightrft.engines.sampling import stream
from lightrft.media.sources import MediaError
from lightrft.parallel.world import World
from lightrft.strategy.memory import Phase
from lightrft.trainer.batching import pack
from lightrft.trainer.given_pictures import drawn_noise
from lightrft.types import Record
from tests.oracles.test_picture_preference import KINDS, medium, noisy, of_size, predicted
from tests.pipelines import flux_pipeline, sd3_pipeline, wan_pipeline


def settings(folder, **changes):
    pictures = of_size(folder) | changes.pop("pictures", {})
    plain = {"batch_size": 2, "model": ModelConfig(path=str(folder)), "steps": 1}
    return SFTConfig(**{**plain, **changes}, pictures=TaughtPicturesConfig(**pictures))


def opened(setup, text="the digit five", seed=0, held_out=False):
    """A text with its picture, or its clip, both read."""
    given = medium(seed, "clip" if setup.objective.given.pipeline.frames else "picture")
    record = Record("0", [{"role": "user", "content": text}], Shown(given, held_out), "drawn")
    return setup.opener(setup.processor.prompt(record))


@pytest.fixture(scope="module", params=KINDS)
def taught(request, tmp_path_factory):
    """The kind, the pipeline, and what `lightrft sft` makes of it, which looks at three levels of noise."""
    folder = tmp_path_factory.mktemp("pipeline") / "saved"
    pipeline = KINDS[request.param]()
    pipeline.save_pretrained(folder)
    return request.param, pipeline, of_pictures(settings(folder, pictures={"levels": 3}), folder, World())


def test_error_and_gradient_are_those_of_a_plain_loop(taught):
    kind, pipeline, setup = taught
    prompt, module = opened(setup), setup.source.full()
    (answer,) = setup.objective.responses(prompt, 7)
    found = setup.objective.given.errors(module, pack([answer], layout=setup.layout))
    times = setup.objective.given.schedule.levels.times[torch.tensor(answer.token_ids)]
    key = torch.tensor([stream(0, 7, 0)])
    noise = torch.cat([normals(key, 1 + k, setup.processor.shape) for k in range(3)])
    x = prompt.target.medium.expand(3, *setup.processor.shape)
    state, target = noisy(kind, pipeline.scheduler, x, noise, times)
    expected = (predicted(kind, module, state, times, prompt) - target).pow(2).flatten(1).mean(1)
    assert len(set(answer.token_ids)) == 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = [p for p in module.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(e.mean(), weights, allow_unused=True) for e in (found, expected))
    norm = torch.cat([g.flatten() for g in theirs if g is not None]).norm()
    apart = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True) if b is not None]).norm()
    assert norm > 0
    assert apart < 1e-3 * norm


def test_three_steps_move_the_weights_as_a_plain_loop_does(tmp_path):
    """The loop that its papers describe, with torch's own AdamW: the same pictures, levels and noise, the mean of squared errors, its gradient."""
    pipeline, run = sd3_pipeline(), tmp_path / "run"
    pipeline.save_pretrained(tmp_path / "saved")
    config = settings(
        tmp_path / "saved", steps=3, batch_size=4, tasks=TaskConfig(train={"digit_pictures": 1.0}),
        optimizer=OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.5), update=UpdateConfig(tokens_per_micro_batch=80),
        log=SamplingLogConfig(progress=False, tensorboard=False, curves=False, held_out_prompts=0), pictures={"levels": 2, "sampled_steps": 28},
    )  # fmt: skip
    config = replace(config, evaluate=replace(config.evaluate, before_and_after=False))
    run.mkdir()
    with contextlib.ExitStack() as stack:
        build_run(config, run, stack, lambda world: of_pictures(config, run, world), started=0.0).train()
    network, setup = pipeline.transformer.train(), of_pictures(config, run, World())
    prompts = build_loader(config, setup, World())
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    pipeline.scheduler.set_timesteps(1000)
    for step in range(3):
        errors = []
        for place, prompt in enumerate(prompts.draw(4)):
            places, noise = drawn_noise(setup.objective.given, 0, 4 * step + place, 2, "uniform")
            x = prompt.target.medium.expand(2, 4, 8, 8)
            times = pipeline.scheduler.timesteps[places]
            state = pipeline.scheduler.scale_noise(x, times, noise)
            errors.append((predicted("flow", network, state, times, prompt) - (noise - x)).pow(2).mean())
        optimizer.zero_grad()
        torch.stack(errors).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    learned = type(network).from_pretrained(run / "model/transformer").state_dict()
    began = sd3_pipeline().transformer.state_dict()
    moved = max((w - began[name]).abs().max().item() for name, w in network.state_dict().items())
    apart = torch.cat([(w - learned[name]).abs().flatten() for name, w in network.state_dict().items()])
    assert moved > 1e-3
    # A weight whose gradient is nothing but rounding may go either way: Adam divides by its size.
    assert (apart > 0.02 * moved).float().mean() < 2e-3


def test_levels_are_drawn_evenly_or_most_in_the_middle_as_published(taught):
    """The shares of levels in quarters of the schedule: of u, and of 1 / (1 + exp(-z)) with a normal z, below -ln 3, 0, ln 3."""
    given = taught[2].objective.given
    shares = {"uniform": [0.25, 0.25, 0.25, 0.25], "logit_normal": [0.136, 0.364, 0.364, 0.136]}
    for density, wanted in shares.items():
        places = torch.cat([drawn_noise(given, 3, group, 8, density)[0] for group in range(500)])
        found = torch.bincount(places * 4 // given.num_levels, minlength=4) / len(places)
        assert found.tolist() == pytest.approx(wanted, abs=0.03), density


def test_a_share_of_the_pictures_is_learned_without_text_and_none_that_is_held_out(taught):
    setup = taught[2]
    objective = replace(setup.objective, config=replace(setup.objective.config, pictures=TaughtPicturesConfig(
        text_dropout=0.3, height=16, width=16, max_text_tokens=setup.processor.config.max_text_tokens, frames=setup.processor.config.frames)))  # fmt: skip
    prompt, held_out = opened(setup), opened(setup, held_out=True)
    untold = setup.processor.untold(prompt).media
    assert any(not torch.equal(untold[name], c) for name, c in prompt.media.items())

    def without(one):
        found = [objective.responses(one, group)[0].prompt.media for group in range(200)]
        return sum(all(torch.equal(m[name], c) for name, c in untold.items()) for m in found)

    assert 40 < without(prompt) < 80
    assert without(held_out) == 0
    assert (
        objective.responses(prompt, 9)[0].token_ids == setup.objective.responses(prompt, 9)[0].token_ids[:1]
    )


@pytest.mark.parametrize("make", [sd3_pipeline, flux_pipeline])
def test_guidance_is_of_what_is_drawn_and_told_to_networks_that_ask_for_it(make, tmp_path):
    make().save_pretrained(tmp_path)
    plain, guided = (
        of_pictures(settings(tmp_path, pictures={"guidance": guidance}), tmp_path, World())
        for guidance in (1.0, 3.0)
    )
    assert guided.engine.args[2].denoise.guidance == 3.0
    module, found = plain.source.full(), []
    for one in (plain, guided):
        (answer,) = one.objective.responses(opened(one), 7)
        found.append(one.objective.given.errors(module, pack([answer], layout=one.layout)))
    told = opened(guided).media
    if make is flux_pipeline:
        assert told["guidance"].tolist() == [3.0]
        assert not torch.equal(*found)
    else:
        assert any(name.startswith("without.") for name in told)
        torch.testing.assert_close(*found, rtol=0, atol=0)


def test_what_reads_held_out_pictures_is_on_the_device_then(tmp_path):
    """Of two tasks, so that something was drawn before the second is read."""
    pipeline, run = sd3_pipeline(), tmp_path / "run"
    pipeline.save_pretrained(tmp_path / "saved")
    log = SamplingLogConfig(progress=False, tensorboard=False, curves=False, held_out_prompts=1)
    tasks = TaskConfig(train={"digit_pictures": 1.0, "two_digit_pictures": 1.0})
    config = settings(tmp_path / "saved", log=log, tasks=tasks, pictures={"sampled_steps": 2})
    config = replace(config, evaluate=replace(config.evaluate, limit=1))
    run.mkdir()
    seen = []
    with contextlib.ExitStack() as stack:
        trainer = build_run(
            config, run, stack, lambda world: of_pictures(config, run, world), started=0.0
        ).trainer
        opener = trainer.prompts.open
        trainer.prompts.open = lambda prompt: seen.append(trainer.memory_plan.phase) or opener(prompt)
        trainer.evaluate("before")
    assert seen == [Phase.SCORE] * 4


REFUSED = {
    "turns": ({"train_on": "last_turn"}, "train_on=last_turn: .* Leave it out"),
    "average": ({"average": "sequence"}, "average=sequence: .* Leave it out"),
    "length": ({"max_tokens": 5}, "max_tokens=5: .* Leave it out"),
    "odd": ({"pictures": {"height": 17}}, "^pictures.height=17: .* Set it to 16"),
    "chunk": ({"update": UpdateConfig(logits_per_chunk=8)}, "update.logits_per_chunk=8 has no effect"),
    "sharded": (
        {
            "pictures": {"sampled_steps": 0},
            "log": SamplingLogConfig(sample_sharded=True),
            "strategy": StrategyConfig(backend="fsdp"),
        },
        "log.sample_sharded=True has no effect with pictures.sampled_steps=0",
    ),
    "guidance of nothing": (
        {"pictures": {"sampled_steps": 0, "guidance": 3.0}},
        "pictures.guidance=3.0 has no effect with pictures.sampled_steps=0",
    ),
    "one step": ({"pictures": {"sampled_steps": 1}}, "^pictures.sampled_steps=1: must be 0 or at least 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pictures_have_not_is_refused_by_name(name, tmp_path):
    changes, told = REFUSED[name]
    sd3_pipeline().save_pretrained(tmp_path)
    (tmp_path / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=told):
        of_pictures(settings(tmp_path, **changes), tmp_path, World())


def test_a_clip_is_what_the_vae_of_diffusers_makes_of_its_first_frames(tmp_path):
    """Of frames of 4 x 4 pixels in one colour each, which no scaling changes, at half of the rate of the clip: every second one."""
    pipeline = wan_pipeline()
    pipeline.save_pretrained(tmp_path)
    setup = of_pictures(settings(tmp_path, pictures={"fps": 8.0}), tmp_path, World())
    colours = np.random.default_rng(0).integers(0, 256, (11, 1, 1, 3), np.uint8)
    found = setup.objective.given.state({"frames": colours.repeat(4, 1).repeat(4, 2), "fps": 16.0})
    taken = torch.from_numpy(colours[[1, 3, 5, 7, 9]]).permute(3, 0, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(taken.expand(3, 5, 16, 16)[None]).latent_dist.mode()
    mean, deviation = (
        torch.tensor(n).view(4, 1, 1, 1)
        for n in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    torch.testing.assert_close(found, (latents[0] - mean) / deviation, rtol=1e-5, atol=1e-5)
    assert found.shape == setup.processor.shape == (4, 3, 8, 8)
    odd = of_pictures(settings(tmp_path, pictures={"frames": 3, "fps": 16.0}), tmp_path, World())
    with pytest.raises(
        ValueError, match=r"makes \(4, 1, 8, 8\) of \(3, 3, 16, 16\), where the network draws \(4, 2, 8, 8\)"
    ):
        odd.objective.given.state(colours.repeat(4, 1).repeat(4, 2))
    with pytest.raises(MediaError, match="4 frames in 0.25 s, where 5 at 8 to a second are taken"):
        setup.objective.given.state({"frames": colours[:4].repeat(4, 1).repeat(4, 2), "fps": 16.0})


def test_pictures_are_refused_where_a_language_model_learns(tmp_path):
    wan_pipeline().save_pretrained(tmp_path)
    config = settings(tmp_path, model=ModelConfig(path="random:llama"), pictures={"text_dropout": 0.1})
    with pytest.raises(ValueError, match="pictures.* has no effect with model.path=random:llama"):
        next(make for holds, make in SFT_KINDS if holds(config.model))(config, tmp_path, World())


def test_rows_without_a_picture_are_bad_records_and_a_broken_picture_is_skipped(taught, tmp_path):
    kind, _, setup = taught
    part, name = ("video", "clip") if kind == "clip" else ("image", "picture")
    demonstrations = setup.prompts_of.args[1]
    tasks = replace(demonstrations.config.tasks, on_bad_record="skip")
    lenient = replace(demonstrations, config=replace(demonstrations.config, tasks=tasks))
    asked = [{"role": "user", "content": "a two"}]
    image = {"type": part, part: str(tmp_path / "absent")}
    said = {"picture": [image], "words": "two", "both": [image, {"type": "text", "text": "two"}]}
    rows = [Record(n, asked, [{"role": "assistant", "content": c}], "drawn") for n, c in said.items()]
    prompts, broken = lenient.prompts(rows, str, held_out=False)
    assert [p.id for p in prompts] == ["picture"]
    assert broken == 2
    opener = type(setup.opener)(setup.processor, tasks, setup.objective.given.state)
    assert opener(prompts[0]) is None
    assert opener.bad.skipped == 1
    with pytest.raises(ValueError, match=f"no {name} is left: 2 rows are broken"):
        lenient.prompts(rows[1:], str, held_out=False)
