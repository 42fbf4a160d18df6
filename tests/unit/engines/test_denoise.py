"""Pictures are drawn as the pipelines of diffusers draw them, each by its own random numbers, and folders come back as they went in."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.build.memory import build_memory_plan
from lightrft.config import Config, DenoiseConfig, ModelConfig, RewardConfig, RolloutConfig, TaskConfig
from lightrft.engines.denoise import normals, picture
from lightrft.engines.sampling import stream
from lightrft.models.tiny_pictures import _tokenizer
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner, stripped
from lightrft.rewards.digits import digit
from lightrft.trainer.baseline import Greedy
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import rollout
from lightrft.trainer.sampler import Sampler, Unchanging
from lightrft.types import Record, Sampling
from tests.pipelines import made, prompts, sd3_pipeline

WORDS = ("the digit five", "a two", "nine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("sd3") / "pipeline"
    sd3_pipeline().save_pretrained(found)
    return found


def settings(folder, **denoise):
    options = DenoiseConfig(**{"steps": 5, "max_text_tokens": 8, "likelihood": "sum", **denoise})
    rollout = RolloutConfig(engine="denoise", denoise=options)
    return Config(
        model=ModelConfig(path=str(folder)), rollout=rollout, tasks=TaskConfig(train={"digits": 1.0})
    )


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_without_noise_on_the_way_a_picture_is_that_of_the_pipeline(folder, guidance):
    """Latents within 1e-5, pixels within one level of 255."""
    import diffusers

    kind, _, engine = made(settings(folder, guidance=guidance))
    plain = diffusers.DiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    found = engine.generate(prompts(kind, WORDS), Sampling(n=1, temperature=0.0, seed=3))
    for place, text in enumerate(WORDS):
        first = normals(torch.tensor([stream(3, place, 0)]), 0, kind.processor.shape)
        given = {
            "prompt": text, "latents": first, "guidance_scale": guidance, "num_inference_steps": 5, "max_sequence_length": 8,
            "height": 16, "width": 16,
        }  # fmt: skip
        latent = plain(**given, output_type="latent").images
        steps, conditions = engine._plain, prompts(kind, WORDS)[place].media
        x = first
        with torch.no_grad():
            for step in range(5):
                x = steps.exact(engine._module, x, torch.tensor([step]), conditions)
        torch.testing.assert_close(x, latent, rtol=0, atol=1e-5)
        image = plain(**given, output_type="np").images[0]
        theirs = torch.tensor(image * 255).round()
        assert (torch.tensor(found[place][0].made["image"]).float() - theirs).abs().max() <= 1
        assert found[place][0].token_ids == []


def test_what_is_drawn_depends_on_seed_place_and_number_alone(folder):
    """Not on the batch, nor on who else is drawn: to rounding, and its first noise bit for bit."""
    kind, _, engine = made(settings(folder))
    asked = prompts(kind, WORDS)
    whole = engine.generate(asked, Sampling(n=3, seed=7))
    engine.config = dataclasses.replace(engine.config, max_sequences=2)
    apart = engine.generate(asked, Sampling(n=3, seed=7))
    alone = engine.generate(asked[2:], Sampling(n=3, seed=7, first_index=2))
    shared = engine.generate(asked[::2], Sampling(n=2, seed=7, index_stride=2))
    for one, others in (
        (whole[2][1], (apart[2][1], alone[0][1], shared[1][1])),
        (whole[0][0], (apart[0][0], shared[0][0])),
    ):
        for other in others:
            assert torch.equal(one.states[0, 0], other.states[0, 0])
            torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-5)
    assert not torch.equal(whole[0][0].states, whole[0][1].states)
    other = engine.generate(asked, Sampling(n=1, seed=8))
    assert not torch.equal(other[0][0].states, whole[0][0].states)


@pytest.mark.parametrize("options", [{"first": 2}, {"first": 1, "window": 2, "move": "random"}])
def test_with_one_start_the_pictures_of_a_prompt_part_where_noise_enters(folder, options):
    """The first picture is the one that is drawn without it; what comes before the window is computed once for each prompt, and for no batch differently."""
    kind, _, alone = made(settings(folder))
    alone.config = dataclasses.replace(alone.config, **options)
    _, module, engine = made(settings(folder, same_start=True, **options))
    rows = []
    module.register_forward_hook(lambda *args: rows.append(len(args[2][0])))
    asked, sampling = prompts(kind, WORDS), Sampling(n=4, seed=7)
    whole, apart = engine.generate(asked, sampling), alone.generate(asked, sampling)
    first = whole[0][0].token_ids[0]
    assert sum(rows) == 3 * first + 12 * (5 - first)
    for group, own in zip(whole, apart, strict=True):
        assert all(torch.equal(one.states[0, 0], group[0].states[0, 0]) for one in group)
        assert len({one.states[0, 1].sum().item() for one in group}) == 4
        torch.testing.assert_close(group[0].states, own[0].states, rtol=0, atol=1e-5)
    assert not torch.equal(whole[0][0].states[0, 0], whole[1][0].states[0, 0])
    engine.config = dataclasses.replace(engine.config, max_sequences=2)
    parted = engine.generate(asked[1:], Sampling(n=3, seed=7, first_index=1))
    torch.testing.assert_close(parted[1][2].states, whole[2][2].states, rtol=0, atol=1e-5)
    plain = engine.generate(asked, Sampling(n=2, seed=7, temperature=0.0))
    assert (plain[0][0].made["image"] != plain[0][1].made["image"]).any(), "without noise each has its own"


def test_one_start_is_refused_where_it_changes_nothing():
    with pytest.raises(ValueError, match=r"same_start=true with rollout.denoise.noise=match"):
        DenoiseConfig(noise="match", same_start=True)
    with pytest.raises(ValueError, match=r"same_start=true with rollout.group_size=1"):
        RolloutConfig(engine="denoise", group_size=1, denoise=DenoiseConfig(same_start=True))


def test_the_numbers_drawn_are_standard_normal():
    x = normals(torch.arange(50) * 12345, 3, (8, 16, 16)).double().flatten()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((x.abs() < 1.959964).double().mean() - 0.95) < 0.005


def test_before_the_first_update_the_trainer_gives_each_step_the_log_prob_it_was_drawn_with(folder):
    for noise in ("sde", "dance", "cps"):
        kind, module, engine = made(settings(folder, noise=noise))
        groups = rollout(engine, prompts(kind, WORDS), Sampling(n=4, seed=1), kind.processor)
        answers = [t for group in groups for t in group]
        assert [len(t) for t in answers] == [4] * 12
        batch = pack(answers, layout=kind.layout)
        found = kind.logprobs(module, batch, kind.config).values
        # The sum over 256 numbers, each of them to rounding.
        torch.testing.assert_close(found, batch.behavior, rtol=0, atol=2e-3)


def test_the_divergence_of_a_batch_from_its_own_model_is_nothing_and_of_another_something(folder):
    kind, module, engine = made(settings(folder))
    exact = dataclasses.replace(kind.config.algorithm, kl="exact", kl_coefficient=0.1)
    config = dataclasses.replace(kind.config, algorithm=exact)
    answers = [t for g in rollout(engine, prompts(kind, WORDS), Sampling(n=2), kind.processor) for t in g]
    with torch.no_grad():
        seen = kind.logprobs(module, pack(answers, layout=kind.layout), config)
    assert seen.means is not None
    for t, means in zip(answers, seen.means.split([len(t) for t in answers]), strict=True):
        t.reference = means
    batch = pack(answers, layout=kind.layout)
    same = kind.logprobs(module, batch, config).divergence
    assert same.abs().max() < 1e-6
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.01)
    moved = kind.logprobs(module, batch, config)
    assert moved.divergence.min() > 1e-4
    assert moved.means is None


def test_a_folder_is_written_that_diffusers_loads_and_all_else_is_copied_byte_for_byte(folder, tmp_path):
    import diffusers

    kind, module, _ = made(settings(folder))
    with torch.no_grad():
        module.proj_out.bias.add_(0.5)
    kind.pipeline.write(module.state_dict().items(), tmp_path / "whole")
    kind.pipeline.write(module.state_dict().items(), tmp_path / "cut", file_bytes=50_000)
    files = {f.relative_to(folder) for f in folder.rglob("*") if f.is_file()}
    for name in files - {f for f in files if f.parts[0] == "transformer" and f.name != "config.json"}:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    size = sum(f.stat().st_size for f in (tmp_path / "whole").rglob("*") if f.is_file())
    weights = sum(w.nbytes for w in module.state_dict().values())
    assert 0 <= size - weights - kind.beside < 50_000  # names and shapes in the file of weights
    assert kind.beside > 100_000
    assert len(list((tmp_path / "cut/transformer").glob("*.safetensors"))) > 2
    for written in ("whole", "cut"):
        loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / written).transformer
        assert all(torch.equal(w, module.state_dict()[n]) for n, w in loaded.state_dict().items())


def test_a_picture_of_latents_that_are_not_finite_is_none_and_its_reward_fails_and_is_no_zero(folder):
    kind, module, engine = made(settings(folder))
    with torch.no_grad():
        module.proj_out.bias.fill_(torch.nan)
    answers = [t for g in rollout(engine, prompts(kind, WORDS)[:1], Sampling(n=1), kind.processor) for t in g]
    assert answers[0].made == {}
    with pytest.raises(ValueError, match="not finite"):
        digit([stripped(answers[0])])


def test_a_grey_picture_has_three_equal_channels_and_is_cut_at_black_and_white():
    found = picture(torch.tensor([[[-2.0, 0.0], [1.0, 0.5]]]))
    assert found.tolist() == [[[0] * 3, [128] * 3], [[255] * 3, [191] * 3]]


def test_a_prompt_longer_than_the_text_encoder_reads_is_refused(folder):
    kind, _, _ = made(settings(folder))
    assert len(_tokenizer()("a two")["input_ids"]) == 4
    record = Record("long", [{"role": "user", "content": "a two " * 9}], 2, "digits")
    with pytest.raises(ValueError, match="long: the prompt has 20 tokens, and the text encoder reads 8"):
        kind.processor.prompt(record)


MEAN = """
def mean(image):
    return float(image.mean())
"""


def test_the_picture_that_others_are_compared_with_is_another_one_in_each_step(folder, tmp_path):
    (tmp_path / "mine.py").write_text(MEAN)
    kind, module, engine = made(settings(folder))
    sampler = Sampler(
        engine, Unchanging(module), build_memory_plan({}, engine, {}, torch.device("cpu")), World()
    )
    reward = {f"{tmp_path}/mine.py:mean": 1.0}
    with RewardRunner({"digits": reward}, RewardConfig(workers=0)) as judge:

        def baselines(step):
            groups = rollout(engine, prompts(kind, WORDS), Sampling(n=2), kind.processor)
            Greedy(kind.config, sampler, judge, kind.processor)(step, groups)
            assert all(one.baseline == other.baseline for one, other in groups)
            return [group[0].baseline for group in groups]

        first = baselines(1)
        assert baselines(1) == first
        assert all(one != other for one, other in zip(first, baselines(2), strict=True))


def test_a_picture_that_is_matched_is_drawn_without_noise_and_learned_from_as_in_pre_training(folder):
    """With advantage 1 the gradient is that of the mean squared error of the velocity (flow matching), written out."""
    options = {"noise": "match", "level": 0.5**0.5, "likelihood": "mean", "first": 1}
    kind, module, engine = made(settings(folder, **options))
    asked = prompts(kind, WORDS)
    groups = rollout(engine, asked, Sampling(n=2, seed=5), kind.processor)
    plain = engine.generate(asked, Sampling(n=2, seed=5, temperature=0.0))
    for group, drawn in zip(groups, plain, strict=True):
        for t, one in zip(group, drawn, strict=True):
            assert (t.made["image"] == one.made["image"]).all()
            assert t.token_ids == [1, 2, 3]
    answers = [t for group in groups for t in group]
    levels = engine._noisy.levels.before
    batch = pack(answers, layout=kind.layout)
    found = kind.logprobs(module, batch, kind.config).values
    torch.testing.assert_close(found, batch.behavior, rtol=0, atol=1e-5)
    (-found.mean()).backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    errors = []
    for t in answers:
        ends = [x - levels[k] * v for k, (x, v) in zip(t.token_ids, t.states, strict=True)]
        assert all(torch.allclose(end, ends[0], atol=1e-5) for end in ends), "one picture"
        for place, (x, v) in zip(t.token_ids, t.states, strict=True):
            guess = module(
                hidden_states=x[None],
                timestep=1000 * levels[place][None],
                return_dict=False,
                **t.prompt.media,
            )[0][0]
            errors.append(((guess - v) ** 2).mean())
    torch.stack(errors).mean().backward()
    for name, gradient in ours.items():
        expected = module.get_parameter(name).grad
        assert torch.allclose(
            gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-9
        ), name
    noise = [t.states[0, 0] + (1 - levels[1]) * t.states[0, 1] for t in answers]
    assert 0.7 < torch.stack(noise).std() < 1.3, "noise of its own, drawn anew for each picture"
    assert not torch.allclose(noise[0], noise[1])
