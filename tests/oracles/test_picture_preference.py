"""Diffusion-DPO against the formula of its published code, written with the schedulers and networks of diffusers themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.build.dpo_pictures import of_pictures
from lightrft.build.memory import build_sft_memory_plan
from lightrft.build.reward import bound_loss
from lightrft.config import DPOConfig, GivenPicturesConfig, ModelConfig, OptimizerConfig
from lightrft.config.data import TaskConfig
from lightrft.config.training import UpdateConfig
from lightrft.datasets.sides import Side
from lightrft.engines.denoise import normals
from lightrft.engines.sampling import stream
from lightrft.models.demands import check_parts
from lightrft.parallel.world import World
from lightrft.strategy.memory import Phase
from lightrft.strategy.single import SingleTrainable
from lightrft.trainer.batching import pack
from lightrft.types import Record
from tests.pipelines import qwen_pipeline, sd3_pipeline, sd_pipeline, wan_pipeline

BETA = 2000.0
KINDS = {
    "noise": sd_pipeline,
    "velocity": lambda: sd_pipeline(prediction_type="v_prediction"),
    "picture": lambda: sd_pipeline(prediction_type="sample"),
    "flow": sd3_pipeline,
    "clip": wan_pipeline,
}
FLOWS = ("flow", "clip")


def settings(folder, **changes):
    pictures = of_size(folder) | changes.pop("pictures", {})
    plain = {"options": {"beta": BETA}, "batch_size": 2, "model": ModelConfig(path=str(folder))}
    return DPOConfig(**{**plain, **changes}, pictures=GivenPicturesConfig(**pictures))


def of_size(folder):
    """Settings of small pictures or, of what draws clips, of clips of five frames."""
    small = {"height": 16, "width": 16, "max_text_tokens": 256 if (folder / "unet").is_dir() else 8}
    return small | ({"frames": 5} if "WanPipeline" in (folder / "model_index.json").read_text() else {})


def medium(seed, kind):
    """A picture, or a clip with two frames more than are taken."""
    shape = (7, 20, 32, 3) if kind == "clip" else (20, 32, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The kind, the pipeline, what `lightrft dpo` makes of it, and a comparison of two pictures, both opened."""
    folder = tmp_path_factory.mktemp("pipeline") / "saved"
    pipeline = KINDS[request.param]()
    pipeline.save_pretrained(folder)
    setup = of_pictures(settings(folder, pictures={"levels": 3}), folder, World())
    sides = [
        Side([0], {"preference": grade}, [True], medium=medium(int(grade), request.param))
        for grade in (1.0, 0.0)
    ]
    record = Record("0", [{"role": "user", "content": "the digit five"}], sides, "pairs")
    return request.param, pipeline, setup, setup.opener(setup.processor.prompt(record))


def predicted(kind, network, state, times, prompt):
    """What the network of diffusers says of states."""
    given = {name: c.expand(len(state), *c.shape[1:]) for name, c in prompt.media.items()}
    if kind in FLOWS:
        return network(hidden_states=state, timestep=times, return_dict=False, **given)[0]
    return network(state, times, return_dict=False, **given)[0]


def noisy(kind, scheduler, x, e, times):
    """State and target by the scheduler of diffusers."""
    if kind in FLOWS:
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        return scheduler.scale_noise(x, times, e), e - x
    target = {"noise": e, "velocity": scheduler.get_velocity(x, e, times.long()), "picture": x}[kind]
    return scheduler.add_noise(x, e, times.long()), target


def published(kind, pipeline, policy, reference, prompt, answers, noise, times):
    """loss = -log sigmoid(-beta / 2 ((w - l) - (w_ref - l_ref))), of mean squared errors w and l, here means over levels."""
    errors = []
    for network in (policy, reference):
        for side in prompt.target:
            x = side.medium.expand(len(noise), *side.medium.shape)
            state, target = noisy(kind, pipeline.scheduler, x, noise, times)
            found = predicted(kind, network, state, times, prompt)
            errors.append((found - target).pow(2).flatten(1).mean(1).mean())
    w, l_, w_ref, l_ref = errors
    return -logsigmoid(-0.5 * BETA * ((w - l_) - (w_ref - l_ref)))


def test_the_loss_and_its_gradient_are_those_of_the_published_code(pair):
    kind, pipeline, setup, prompt = pair
    objective, given = setup.objective, setup.objective.given
    reference = setup.source.full()
    policy = setup.source.full()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.002 * torch.randn_like(p))
    answers = objective.responses(prompt, 7)
    batch = pack(answers, outputs=["preference"], layout=setup.layout)
    with torch.no_grad():
        batch.ref = given.logprobs(reference, batch)
    losses = objective.losses(objective.values(given.logprobs(policy, batch), batch), batch)
    key = torch.tensor([stream(0, 7, 0)])
    noise = torch.cat([normals(key, 1 + k, given.processor.shape) for k in range(3)])
    times = given.schedule.levels.times[torch.tensor(answers[0].token_ids)]
    expected = published(kind, pipeline, policy, reference, prompt, answers, noise, times)
    assert abs(expected.item() - 0.6931472) > 1e-3
    assert losses.tolist() == pytest.approx([expected.item()] * 2, rel=2e-3)  # beta magnifies rounding
    weights = [p for p in policy.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, weights, allow_unused=True) for x in (losses[0], expected))
    norm = torch.cat([g.flatten() for g in theirs if g is not None]).norm()
    apart = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True) if b is not None]).norm()
    assert norm > 0
    assert apart < 5e-3 * norm


def test_a_policy_that_is_its_reference_has_the_loss_ln_2(pair):
    _, _, setup, prompt = pair
    objective, module = setup.objective, setup.source.full()
    batch = pack(objective.responses(prompt, 3), outputs=["preference"], layout=setup.layout)
    with torch.no_grad():
        batch.ref = objective.given.logprobs(module, batch)
        found, right = objective.first_losses(objective.given.logprobs(module, batch), batch)
    assert found.tolist() == right.tolist() == pytest.approx([0.6931472] * 2)


def test_both_sides_get_the_same_noise_which_depends_on_seed_and_group_alone(pair):
    kind, _, setup, prompt = pair
    objective = setup.objective
    one, other = objective.responses(prompt, 5)
    assert one.token_ids == other.token_ids
    assert all(0 <= place < objective.given.num_levels for place in one.token_ids)
    level = objective.given.schedule.levels.before[torch.tensor(one.token_ids)]
    level = level.view(-1, *[1] * prompt.target[0].medium.dim())
    share = (1 - level) if kind in FLOWS else level.sqrt()
    pictures = prompt.target[0].medium - prompt.target[1].medium
    torch.testing.assert_close(one.states[:, 0] - other.states[:, 0], share * pictures, rtol=1e-4, atol=1e-5)
    again, later = objective.responses(prompt, 5)[0], objective.responses(prompt, 6)[0]
    assert torch.equal(one.states, again.states)
    assert not torch.equal(one.states, later.states)


@pytest.mark.parametrize("make", [sd3_pipeline, sd_pipeline, qwen_pipeline])
def test_a_picture_is_read_as_its_vae_reads_and_writes(make, tmp_path):
    """What the VAE of diffusers makes of its own latents, without our shift and scale, is what we decode of ours."""
    make().save_pretrained(tmp_path)
    given = of_pictures(
        settings(tmp_path, pictures={"max_text_tokens": 48} if make is qwen_pipeline else {}),
        tmp_path,
        World(),
    ).objective.given
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    state = given.state(picture)
    assert state.shape == given.processor.shape
    vae, family = given.pipeline.vae(torch.device("cpu")), given.pipeline.family
    x = torch.tensor(picture).movedim(-1, 0)[None].float() / 127.5 - 1
    x = x[:, :, None] if make is qwen_pipeline else x
    with torch.no_grad():
        whole = vae.decode(vae.encode(x).latent_dist.mode()).sample
        found = family.decode(vae, state[None])
    torch.testing.assert_close(
        found, whole[:, :, 0] if make is qwen_pipeline else whole, rtol=1e-4, atol=1e-5
    )


def test_a_wide_picture_is_cut_in_its_middle(tmp_path):
    sd3_pipeline().save_pretrained(tmp_path)
    given = of_pictures(settings(tmp_path), tmp_path, World()).objective.given
    whole = np.zeros((16, 48, 3), np.uint8)
    whole[:, 16:32] = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    torch.testing.assert_close(given.state(whole), given.state(whole[:, 16:32]), rtol=1e-4, atol=1e-4)


REFUSED = {
    "simpo": ({"loss": "simpo", "options": {}}, "loss=simpo: .* Set loss to one of: dpo, robust, ipo, hinge"),
    "orpo": ({"loss": "orpo", "options": {}}, "loss=orpo"),
    "kto": ({"loss": "kto", "options": {}}, "loss=kto"),
    "average": ({"average": "sum"}, "average=sum: .* Leave it out"),
    "length": ({"max_tokens": 5}, "max_tokens=5"),
    "cut": ({"tasks": TaskConfig(on_long_prompt="truncate_left")}, "on_long_prompt=truncate_left"),
    "odd": ({"pictures": {"height": 17}}, "^pictures.height=17: .* Set it to 16"),
    "chunk": ({"update": UpdateConfig(logits_per_chunk=8)}, "update.logits_per_chunk=8 has no effect"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pictures_have_not_is_refused_by_name(name, tmp_path):
    changes, told = REFUSED[name]
    sd3_pipeline().save_pretrained(tmp_path)
    (tmp_path / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=told):
        of_pictures(settings(tmp_path, **changes), tmp_path, World())


def test_a_length_of_texts_is_named_as_lightrft_dpo_names_it(pair, tmp_path):
    kind, _, setup, _ = pair
    told = "raise pictures.max_text_tokens"
    with pytest.raises(ValueError, match=told):
        setup.processor.prompt(Record("1", [{"role": "user", "content": "five " * 300}], None, "pairs"))
    if kind == "noise":
        sd_pipeline().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="^pictures.max_text_tokens=77 has no effect"):
            of_pictures(settings(tmp_path, pictures={"max_text_tokens": 77}), tmp_path, World())


def test_what_would_not_be_read_before_the_text_is_refused(pair):
    _, _, setup, _ = pair
    led = [{"role": "system", "content": "in blue"}, {"role": "user", "content": "a cat"}]
    talk = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "A cat?"}, led[1]]
    for messages in (led, talk):
        with pytest.raises(ValueError, match=f"has {len(messages)} messages .* reads one text"):
            setup.processor.prompt(Record("1", messages, None, "pairs"))


def test_where_models_differ_at_first_the_advice_is_of_what_a_pipeline_takes(pair):
    objective = pair[2].objective
    assert "model.attention" not in objective.advice
    assert "model.dtype=float32" in objective.advice
    said = objective.falling(0.002)
    assert "larger than the reference's, by 0.004 now" in said
    assert "nats" not in said
    assert "likely" not in said
    with pytest.raises(
        ValueError, match="model.attention=separate"
    ):  # what the words of a language model advise
        check_parts(replace(objective.config, model=ModelConfig(path="x", attention="separate")), "x")


def test_the_vae_is_on_the_device_only_while_pictures_are_read(pair):
    _, _, setup, _ = pair
    model = SingleTrainable(torch.nn.Linear(2, 2), OptimizerConfig(), 1)
    residents = setup.residents()
    plan = build_sft_memory_plan(model, torch.device("cpu"), readers=residents)
    given = setup.objective.given
    if not given.pipeline.has_vae:
        assert residents == {}
        return
    assert residents["vae"].nbytes() == sum(4 * p.numel() for p in given.vae.parameters()) > 0
    assert plan._rows["vae"] == (residents["vae"], {Phase.SCORE})


def test_clips_without_a_vae_or_where_pictures_are_drawn_are_refused(tmp_path):
    wan_pipeline().save_pretrained(tmp_path / "wan")
    index = tmp_path / "wan/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae": [None, None]}))
    with pytest.raises(ValueError, match="without a VAE, whose states have clips: no pixels"):
        of_pictures(settings(tmp_path / "wan", pictures={"frames": 5}), tmp_path, World())
    sd3_pipeline().save_pretrained(tmp_path / "sd3")
    with pytest.raises(
        ValueError, match="^pictures.frames=3: .* draws pictures, not clips. Set pictures.frames=1"
    ):
        of_pictures(settings(tmp_path / "sd3", pictures={"frames": 3}), tmp_path, World())
    with pytest.raises(ValueError, match="pictures.fps=8.0 has no effect with pictures.frames=1"):
        settings(tmp_path / "sd3", pictures={"fps": 8.0})


def test_a_response_that_is_no_picture_is_a_bad_record_and_a_broken_picture_skips_the_whole_pair(
    pair, tmp_path, caplog
):
    kind, _, setup, prompt = pair
    comparisons = setup.prompts_of.args[1]
    part = "video" if kind == "clip" else "image"
    image = {"type": part, part: str(tmp_path / "absent")}
    sides = [
        {"messages": [{"role": "assistant", "content": [image]}], "grades": {"": 1.0}},
        {
            "messages": [{"role": "assistant", "content": [{**image, part: "other"}]}],
            "grades": {"": 0.0},
        },
    ]
    asked = [{"role": "user", "content": "a two"}]
    lenient = replace(
        comparisons,
        config=replace(comparisons.config, tasks=replace(comparisons.config.tasks, on_bad_record="skip")),
    )
    kept, counts = lenient.prompts([
        Record("1", asked, sides, "pairs"),
        Record("2", asked, [sides[0], {"messages": [{"role": "assistant", "content": "words"}], "grades": {"": 0.0}}], "pairs"),
        Record("3", asked, [sides[0], {**sides[1], "messages": sides[0]["messages"]}], "pairs"),
    ])  # fmt: skip
    assert [p.id for p in kept] == ["1"]
    assert counts.broken == 2
    opener = type(setup.opener)(setup.processor, lenient.config.tasks, setup.objective.given.state)
    assert opener(kept[0]) is None
    assert opener.bad.skipped == 1
    assert prompt.target[0].medium.shape == setup.processor.shape


def test_losses_of_a_file_are_asked_for_the_same(tmp_path):
    sd3_pipeline().save_pretrained(tmp_path)
    for loss in ("dpo", "robust", "ipo", "hinge"):
        config = settings(tmp_path, loss=loss)
        assert (
            of_pictures(config, tmp_path, World()).objective.function.func
            is bound_loss(config, POLICY_LOSSES).func
        )
