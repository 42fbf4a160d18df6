"""Questions with media through our Processor, against transformers' own way from a conversation to a forward pass."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch.testing import assert_close

from lightrft.config import MediaConfig, ModelConfig, NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.families import placeholders
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.tiny import tiny_model
from lightrft.models.tiny_media import MEDIA
from lightrft.trainer.batching import pack
from lightrft.types import Record, Sampling, Trajectory

Image = pytest.importorskip("PIL.Image")

RATE = 16_000
SEES_CLIPS = ("internvl", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker")
HEARS = ("qwen2_audio", "qwen2_5_omni_thinker", "granite_speech")
CASES = [
    *((family, "image") for family in MEDIA if "vision_config" in MEDIA[family]),
    *((family, "video") for family in SEES_CLIPS),
    *((family, "audio") for family in HEARS),
]


def medium(kind, seed):
    draw = numpy.random.default_rng(seed)
    if kind == "image":
        return Image.fromarray(draw.integers(0, 255, (34 + seed, 30, 3), dtype=numpy.uint8))
    if kind == "video":
        # Clips of one question are equally long: InternVL's processor stacks them.
        return draw.integers(0, 255, (4 + 2 * (seed > 0), 56, 56, 3), dtype=numpy.uint8)
    return {"array": draw.normal(size=RATE + 700 * seed).astype("float32"), "sampling_rate": RATE}


def conversations(kind):
    """One medium after the words, none, two around the words."""

    def part(seed):
        return {"type": kind, kind: medium(kind, seed)}

    def words(text):
        return {"type": "text", "text": text}

    return [
        [{"role": "system", "content": "Look."}, {"role": "user", "content": [words("what is "), part(0)]}],
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": [part(1), words("or"), part(2), words("?")]}],
    ]


def reader(family):
    try:
        return load_processor(ModelConfig(path=f"random:{family}"), MediaConfig())
    except (ImportError, ValueError) as error:
        pytest.skip(f"the processor of {family} cannot be made here: {' '.join(str(error).split())[:120]}")


def by_transformers(processor, messages):
    """Everything that the family's processor makes of a conversation; frames and samples as they are."""
    contents = [
        m["content"] if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]
        for m in messages
    ]
    found = {
        kind: [p[kind] for parts in contents for p in parts if p["type"] == kind]
        for kind in ("image", "video", "audio")
    }
    marks = [
        {"role": m["role"], "content": [{k: v for k, v in p.items() if k in ("type", "text")} for p in parts]}
        for m, parts in zip(messages, contents, strict=True)
    ]
    text = processor.apply_chat_template(marks, add_generation_prompt=True, tokenize=False)
    given = {}
    if found["image"]:
        given["images"] = [found["image"]]
    if found["video"]:
        metadata = [
            {
                "total_num_frames": len(v),
                "fps": 1.0,
                "duration": float(len(v)),
                "frames_indices": list(range(len(v))),
            }
            for v in found["video"]
        ]
        given["videos"] = [found["video"]]
        given["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": [metadata]}
    if found["audio"]:
        given["audio"], given["sampling_rate"] = [a["array"] for a in found["audio"]], RATE
    return dict(processor(text=[text], return_tensors="pt", **given))


def by_the_paper(model):
    """`get_rope_index` of Qwen2-VL and Qwen2.5-VL, for one sequence: each run of text or of a clip begins one after the largest
    place before it (Wang et al. 2024, https://arxiv.org/abs/2409.12191, section 2.1). That of transformers 5 forgets time."""
    config = model.config
    per_second = getattr(config.vision_config, "tokens_per_second", 0)

    def places(input_ids, video_grid_thw=None, second_per_grid_ts=None, **_):
        tokens, found, free, at = input_ids[0].tolist(), [], 0, 0
        grids = [] if video_grid_thw is None else video_grid_thw.tolist()
        while at < len(tokens):
            if tokens[at] == config.video_token_id:
                frames, height, width = grids.pop(0)
                for t in range(frames):
                    later = int(t * per_second * float(second_per_grid_ts[0])) if per_second else t
                    for h in range(height // 2):
                        found += [[free + later, free + h, free + w] for w in range(width // 2)]
                at, free = at + frames * (height // 2) * (width // 2), max(map(max, found)) + 1
            else:
                found.append([free] * 3)
                at, free = at + 1, free + 1
        return torch.tensor(found).T[:, None], torch.tensor([[free - len(tokens)]])

    return places


def plain_model(family, kind):
    """Of transformers; where it is known to number places wrongly, with right ones."""
    model = tiny_model(family)
    if kind == "video" and family in ("qwen2_vl", "qwen2_5_vl"):
        model.model.get_rope_index = by_the_paper(model)
    return model


def followed_by(found, token_ids):
    """The same inputs with an answer behind the question."""
    extra = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
    result = dict(found)
    result["input_ids"] = torch.cat([found["input_ids"], torch.tensor([token_ids])], 1)
    for name in extra.keys() & found.keys():
        filled = torch.full((1, len(token_ids)), extra[name], dtype=found[name].dtype)
        result[name] = torch.cat([found[name], filled], 1)
    return result


@pytest.mark.parametrize(("family", "kind"), CASES, ids=lambda value: value)
def test_what_is_read_is_what_transformers_reads(family, kind):
    """Tokens, and the log-probs of answers, packed and with positions found beforehand, are those of plain passes."""
    processor = reader(family)
    theirs = plain_model(family, kind)
    never = torch.tensor(placeholders(theirs.config))
    draw = torch.Generator().manual_seed(0)
    trajectories, expected = [], []
    for group, messages in enumerate(conversations(kind)):
        prompt = processor.open(processor.prompt(Record(f"r{group}", messages, None, "test")))
        found = by_transformers(processor.media.processor, messages)
        assert prompt.token_ids == found["input_ids"][0].tolist()
        for size in (3, 6):
            answer = torch.randint(1, 250, (size,), generator=draw).tolist()
            trajectories.append(Trajectory(prompt, group, answer, [True] * size, [0.0] * size, "stop"))
            with torch.no_grad():
                logits = theirs(**followed_by(found, answer), use_cache=False).logits[0, -size - 1 : -1]
            logits = logits.index_fill(1, never, -torch.inf).log_softmax(-1)
            expected.append(logits.gather(1, torch.tensor(answer)[:, None])[:, 0])
    ours = load_model(ModelConfig(path=f"random:{family}"))
    with torch.no_grad():
        values = logprobs(ours, pack(trajectories), temperature=1.0, max_logits=2000).values
    assert_close(values, torch.cat(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "kind"), CASES, ids=lambda value: value)
def test_greedy_answers_are_those_of_generate(family, kind):
    processor = reader(family)
    prompts = [
        processor.open(processor.prompt(Record(str(n), messages, None, "test")))
        for n, messages in enumerate(conversations(kind))
    ]
    theirs = plain_model(family, kind)
    engine = NativeEngine(
        load_model(ModelConfig(path=f"random:{family}")), frozenset(), processor.text, NativeEngineConfig()
    )
    answers = engine.generate(prompts, Sampling(max_tokens=8, temperature=0, ignore_eos=True))
    for messages, prompt, (answer,) in zip(conversations(kind), prompts, answers, strict=True):
        found = by_transformers(processor.media.processor, messages)
        text = theirs.generate(
            **found,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=placeholders(theirs.config),
        )
        assert answer.token_ids == text[0, len(prompt.token_ids) :].tolist()
