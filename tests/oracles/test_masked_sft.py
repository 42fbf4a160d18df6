"""The loss of masked diffusion language models on given responses against its definition, and against transformers' own class, a row at a time."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch

from lightrft.build.sft import of_masked, of_words
from lightrft.commands.plan.offline import plan
from lightrft.config import (
    MaskedConfig,
    ModelConfig,
    SFTConfig,
    StrategyConfig,
    TaskConfig,
    UnmaskConfig,
    UpdateConfig,
)
from lightrft.config.plan import Hardware
from lightrft.config.sft import CONVERSATIONS
from lightrft.datasets.conversations import Answer
from lightrft.models.masked import canvas_logprobs
from lightrft.models.masking import LEAST, Masking
from lightrft.parallel.world import World
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_prompt
from lightrft.trainer.batching import pack
from lightrft.types import Prompt, Trajectory
from tests.masked import MASK, Plain, made, settings

LEARNED = (0, 1, 3)
"""Places of a response of four tokens that are learned."""


def answered(tokens, mask, stream=0):
    prompt = Prompt("q", [5, 6, 7], [], None, "tiny")
    return Trajectory(prompt, 0, tokens, mask, [0.0] * len(tokens), "stop", stream=stream)


@pytest.mark.parametrize("draws", [1, 3])
def test_its_mean_over_masks_is_the_bound_of_the_paper(draws):
    """L / k of a token where k of L are masked, k drawn evenly: sum over masks of 1 / (k C(L, k)) times what they cost, here of any prices."""
    prices = random.Random(0)
    known = {
        hidden: [prices.uniform(1, 4) for _ in hidden]
        for k in range(1, 4)
        for hidden in itertools.combinations(LEARNED, k)
    }
    bound = sum(sum(cost) / (len(hidden) * math.comb(3, len(hidden))) for hidden, cost in known.items())
    reading = Masking(UnmaskConfig(), MASK, draws)
    found = [
        sum(view.share * sum(known[tuple(view.places)]) for view in reading.views(t) if view.places)
        for t in (answered([9, 8, 7, 6], [True, True, False, True], stream) for stream in range(8000))
    ]
    assert abs(fmean(found) - bound) < 4 * stdev(found) / math.sqrt(len(found)) + 4 * LEAST


def test_what_is_masked_is_learned_tokens_alone_and_depends_on_the_stream_alone():
    reading = Masking(UnmaskConfig(), MASK, 2)
    one, again, other = (
        [*reading.views(answered(list(range(9)), [True] * 8 + [False], stream))] for stream in (1, 1, 2)
    )
    assert one == again != other
    for view in one + other:
        assert view.places == [p for p, token in enumerate(view.canvas) if token == MASK]
        assert view.canvas[8] == 8
        assert 1 / (2 * view.share) >= LEAST


def test_log_probs_are_those_of_transformers_for_the_rows_that_are_read():
    kind, module, _ = made(settings(), torch.float64)
    plain, reading = Plain(module), Masking(UnmaskConfig(), MASK, 2)
    answers = [answered([7, 8, 9, 3], [True, True, False, True], 4), answered([9, 9], [True, True], 11)]
    batch = pack(answers, layout=lambda these, _: reading.layout(these))
    found = canvas_logprobs(module, batch, temperature=1.0, max_logits=64).values
    expected = []
    for t in answers:
        values = [0.0] * len(t)
        for view in reading.views(t):
            logits = plain(t.prompt.token_ids + view.canvas)[len(t.prompt.token_ids) :].log_softmax(-1)
            for place in view.places:
                values[place] += view.share * float(logits[place, t.token_ids[place]])
        expected += values
    assert sum(x != 0 for x in expected) > 2
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert kind.processor.reading.mask == MASK


def config(**changes):
    plain = {"model": ModelConfig(path="random:masked"), "tasks": TaskConfig(train={"tiny": 1.0}), "steps": 1}
    return SFTConfig(**{**plain, **changes})


def test_a_canvas_is_filled_with_end_tokens_which_are_learned_and_a_cut_response_is_not(tmp_path):
    setup = of_masked(config(masked=MaskedConfig(canvas=6)), tmp_path, World())
    end = min(setup.processor.stop_ids)
    asked = replace(tiny_prompt(3), target=Answer([9, 8, end], [True, False, True], "stop"))
    (t,) = setup.objective.responses(asked, 3)
    assert t.token_ids == [9, 8, end, end, end, end]
    assert t.mask == [True, False, True, True, True, True]
    assert t.prompt.width * 6 >= len(asked.token_ids) + 6
    cut_off = Answer([9, end, 8], [True, True, True], "length")  # a turn, and the beginning of another
    (cut,) = setup.objective.responses(replace(asked, target=cut_off), 3)
    assert cut.token_ids == [9, end, 8]
    (same,), (later,) = (setup.objective.responses(asked, group) for group in (3, 4))
    assert same.stream == t.stream != later.stream


REFUSED = {
    "parallel": ({"strategy": StrategyConfig(backend="fsdp", sequence_parallel=2)}, "strategy.sequence_parallel=2: model.path=random:masked"),
    "zero": ({"strategy": StrategyConfig(backend="zero2")}, "strategy.backend=zero2: .* Set another strategy.backend"),
    "shared": ({"update": UpdateConfig(share_prompts=False)}, "update.share_prompts=False has no effect"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_masked_model_cannot_obey_is_refused_by_name(name, tmp_path):
    changes, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        of_masked(config(**changes), tmp_path, World())


def test_masks_are_refused_where_a_model_writes_from_left_to_right(tmp_path):
    plain = config(model=ModelConfig(path="random:llama"), masked=MaskedConfig(draws=2))
    with pytest.raises(
        ValueError, match="masked.draws=2 has no effect with model.path=random:llama, which writes"
    ):
        of_words(plain, tmp_path, World())
    with pytest.raises(ValueError, match="masked.draws=0"):
        MaskedConfig(draws=0)


def talks(*lengths, turns=1):
    """A format whose rows are conversations of so many turns each, with responses of these lengths."""
    talk = [
        part
        for _ in range(turns)
        for part in ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    ]
    return [{"messages": [*talk[:-1], {"role": "assistant", "content": "a" * n}]} for n in lengths]


def prompts_of(folder, rows, **changes):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = TaskConfig(train={"file": 1.0}, train_file=str(file), format=CONVERSATIONS)
    asked = config(tasks=tasks, **changes)
    return of_masked(asked, folder, World()).prompts_of(load_task("file"), "train")


def test_a_turn_that_others_follow_is_refused_for_it_would_be_learned_with_them_in_sight(tmp_path):
    rows = talks(3, turns=2) + talks(2)
    with pytest.raises(ValueError, match=r"train_on=all_turns: 1 of 2 conversations of task 'file'.* Set train_on=last_turn"):  # fmt: skip
        prompts_of(tmp_path, rows)
    assert [all(p.target.mask) for p in prompts_of(tmp_path, rows, train_on="last_turn")] == [True, True]
    # Of a turn and the beginning of the user's next one only the first is learned, and the other follows it all the same.
    with pytest.raises(ValueError, match="1 of 2 conversations"):
        prompts_of(tmp_path, rows, max_tokens=4, on_long_response="truncate")


def test_a_canvas_beyond_the_model_or_below_responses_is_told(tmp_path, caplog):
    prompts_of(tmp_path, talks(2, 9), masked=MaskedConfig(canvas=5))
    assert "1 of 2 responses are longer than masked.canvas=5" in caplog.text
    caplog.clear()
    prompts_of(tmp_path, talks(2), masked=MaskedConfig(canvas=100_000))
    assert "Lower tasks.max_prompt_tokens or masked.canvas" in caplog.text
    assert "longer than masked.canvas" not in caplog.text


def test_a_plan_counts_all_draws_of_a_response_with_its_canvas():
    asked = config(masked=MaskedConfig(draws=3, canvas=500), update=UpdateConfig(tokens_per_micro_batch=1024))
    hardware = Hardware(devices=1)
    assert plan(asked, hardware, 100, 200).tokens == 3 * (100 + 500)
    assert plan(asked, hardware, 100, 700).tokens == 3 * (100 + 700)
    wide = replace(asked, update=UpdateConfig(tokens_per_micro_batch=4096))
    assert plan(wide, hardware, 100, 200).tokens == 4096
