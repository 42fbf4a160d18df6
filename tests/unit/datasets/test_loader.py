import json
from collections import Counter

import pytest

from lightrft.datasets.loader import PromptLoader
from lightrft.types import Prompt


def source(name, size, target="t"):
    return [
        Prompt(id=f"{name}/{n}", token_ids=[n], messages=[], target=target, source=name) for n in range(size)
    ]


def ids(prompts):
    return [p.id for p in prompts]


def test_an_epoch_draws_each_prompt_once_and_the_next_in_another_order():
    loader = PromptLoader([(source("a", 20), 1.0)], seed=0)
    first, second = ids(loader.draw(20)), ids(loader.draw(20))
    assert sorted(first) == sorted(second) == sorted(ids(source("a", 20)))
    assert first != second
    assert first != ids(source("a", 20))


def test_the_seed_decides_the_order():
    one, same, other = (PromptLoader([(source("a", 20), 1.0)], seed=seed).draw(20) for seed in (1, 1, 2))
    assert ids(one) == ids(same)
    assert ids(one) != ids(other)


def test_the_mixture_follows_the_weights_at_every_length():
    loader = PromptLoader([(source("a", 50), 3.0), (source("b", 5), 1.0)], seed=0)
    sources = [p.source for p in loader.draw(40)]
    for end in range(4, 41, 4):
        assert Counter(sources[:end]) == {"a": 3 * end // 4, "b": end // 4}


def test_a_small_source_of_a_mixture_still_goes_through_whole_epochs():
    loader = PromptLoader([(source("a", 50), 1.0), (source("b", 5), 1.0)], seed=0)
    drawn = [p.id for p in loader.draw(20) if p.source == "b"]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == ids(source("b", 5))


def test_what_is_drawn_does_not_depend_on_how_many_are_drawn_at_once():
    at_once, in_parts = (
        PromptLoader([(source("a", 7), 1.0), (source("b", 3), 2.0)], seed=0) for _ in range(2)
    )
    assert ids(at_once.draw(15)) == ids(in_parts.draw(4)) + ids(in_parts.draw(1)) + ids(in_parts.draw(10))


def test_ranks_share_out_what_one_process_would_draw():
    alone = PromptLoader([(source("a", 30), 1.0)], seed=0)
    ranks = [PromptLoader([(source("a", 30), 1.0)], seed=0, rank=rank, size=3) for rank in range(3)]
    for _ in range(2):
        shares = [ids(rank.draw(4)) for rank in ranks]
        assert [name for turn in zip(*shares, strict=True) for name in turn] == ids(alone.draw(12))


@pytest.mark.parametrize("before", [0, 3, 7, 11])
def test_a_resumed_loader_goes_on_where_the_other_stopped(before):
    sources = [(source("a", 7), 2.0), (source("b", 4), 1.0)]
    loader = PromptLoader(sources, seed=5)
    loader.draw(before)
    resumed = PromptLoader(sources, seed=5)
    resumed.load(loader.state())
    assert ids(resumed.draw(20)) == ids(loader.draw(20))


def test_a_state_does_not_change_when_the_loader_goes_on():
    loader = PromptLoader([(source("a", 7), 1.0)], seed=5)
    state = loader.state()
    loader.draw(3)
    assert state["drawn"] == [0]


def test_a_loader_may_resume_on_another_number_of_ranks():
    two = [PromptLoader([(source("a", 12), 1.0)], seed=0, rank=rank, size=2) for rank in range(2)]
    seen = [name for rank in two for name in ids(rank.draw(3))]
    alone = PromptLoader([(source("a", 12), 1.0)], seed=0)
    alone.load(two[0].state())
    assert sorted(seen + ids(alone.draw(6))) == sorted(ids(source("a", 12)))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            [(source("a", 6), 1.0)],
            "the training data of 'a' changed since the checkpoint: prompts was 7, is 6",
        ),
        (
            [(source("a", 7, target="u"), 1.0)],
            "the training data of 'a' changed since the checkpoint: contents was",
        ),
        ([(source("b", 7), 1.0)], "the run was trained on a, now tasks.train has b"),
        (
            [(source("a", 7), 1.0), (source("b", 7), 1.0)],
            "the run was trained on a, now tasks.train has a, b",
        ),
    ],
)
def test_changed_data_is_named_at_resume(sources, message):
    state = PromptLoader([(source("a", 7), 1.0)], seed=0).state()
    with pytest.raises(ValueError, match=message):
        PromptLoader(sources, seed=0).load(state)


def test_another_seed_is_refused_at_resume():
    state = PromptLoader([(source("a", 7), 1.0)], seed=0).state()
    with pytest.raises(ValueError, match="the run was started with seed=0, not 1"):
        PromptLoader([(source("a", 7), 1.0)], seed=1).load(state)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"Set tasks.train, e.g. \{gsm8k: 1.0\}"):
        PromptLoader([], seed=0)
    with pytest.raises(ValueError, match="has no prompts"):
        PromptLoader([([], 1.0)], seed=0)
    with pytest.raises(ValueError, match="gives 'a' the weight 0.0"):
        PromptLoader([(source("a", 1), 0.0)], seed=0)


@pytest.mark.parametrize("judged_after", [1, 3, 5, 8])
def test_a_prompt_that_rests_is_left_out_of_so_many_passes_and_comes_back(judged_after):
    """Whether its rewards are known in the pass in which it was drawn, or in the one after."""
    plain = ids(PromptLoader([(source("a", 5), 1.0)], seed=0).draw(10))
    name = plain[0] if judged_after <= 5 else plain[9]  # drawn by then, once
    loader = PromptLoader([(source("a", 5), 1.0)], seed=0)
    before = ids(loader.draw(judged_after))
    loader.rest([("a", name), ("b", "not of this data")], 2)
    assert loader.left_out == 1
    drawn = before + ids(loader.draw(18 - judged_after))
    first, second, third, fourth = drawn[:5], drawn[5:9], drawn[9:13], drawn[13:]
    assert sorted(first) == sorted(fourth) == ids(source("a", 5))
    assert sorted([*second, name]) == sorted([*third, name]) == ids(source("a", 5))
    assert loader.left_out == 0
    assert loader.position == 20  # places only grow, those left out included


def test_where_all_prompts_rest_they_come_back_together():
    loader = PromptLoader([(source("a", 4), 1.0)], seed=0)
    loader.draw(4)
    loader.rest([("a", f"a/{n}") for n in range(4)], 3)
    assert sorted(ids(loader.draw(4))) == ids(source("a", 4))


def test_the_mixture_holds_though_prompts_of_one_source_rest():
    loader = PromptLoader([(source("a", 30), 1.0), (source("b", 30), 1.0)], seed=0)
    loader.draw(60)
    loader.rest([("a", f"a/{n}") for n in range(25)], 5)
    assert Counter(p.source for p in loader.draw(40)) == {"a": 20, "b": 20}


@pytest.mark.parametrize("before", [0, 3, 7, 11])
@pytest.mark.parametrize("size", [1, 3])
def test_a_resumed_loader_knows_what_rests_on_any_number_of_ranks(before, size):
    sources = [(source("a", 7), 2.0), (source("b", 4), 1.0)]
    loader = PromptLoader(sources, seed=5)
    loader.draw(before)
    loader.rest([("a", "a/1"), ("a", "a/6"), ("b", "b/0")], 2)
    loader.draw(2)
    ranks = [PromptLoader(sources, seed=5, rank=rank, size=size) for rank in range(size)]
    for rank in ranks:
        rank.load(json.loads(json.dumps(loader.state())))
    shares = [ids(rank.draw(10)) for rank in ranks]
    assert [n for turn in zip(*shares, strict=True) for n in turn] == ids(loader.draw(10 * size))


def test_a_state_from_before_prompts_could_rest_is_read():
    loader = PromptLoader([(source("a", 7), 1.0)], seed=5)
    loader.draw(4)
    state = {name: value for name, value in loader.state().items() if name not in ("given", "resting")}
    resumed = PromptLoader([(source("a", 7), 1.0)], seed=5)
    resumed.load(state)
    assert ids(resumed.draw(9)) == ids(loader.draw(9))


def solved(group, *shares):
    """Of so many groups, the first of this number, the prompts and the mean rewards."""
    return [(("a", f"a/{n}"), group + n, share) for n, share in enumerate(shares)]


def test_passes_draw_a_prompt_as_often_as_its_priority_says():
    """Of 400 passes; a prompt that nobody judged is drawn in each."""
    loader = PromptLoader([(source("a", 4), 1.0)], seed=3, priority_floor=0.1)
    loader.prefer([*solved(0, 1.0, 0.5, 0.0), (("b", "not of this data"), 3, 1.0)])
    assert loader.mean_priority == pytest.approx((0.1 + 0.5 + 1 + 1) / 4)
    found, passes = Counter[str](), 400
    while loader.position < 4 * passes:
        found.update(ids(loader.draw(1)))
    assert found["a/2"] == found["a/3"] == passes
    assert abs(found["a/0"] - 0.1 * passes) < 4 * (0.09 * passes) ** 0.5
    assert abs(found["a/1"] - 0.5 * passes) < 4 * (0.25 * passes) ** 0.5
    loader.prefer(solved(4, 0.0))
    loader.draw(4)
    start = loader.position
    again = Counter[str]()
    while loader.position < start + 40:
        again.update(ids(loader.draw(1)))
    assert again["a/0"] == 10


@pytest.mark.parametrize("size", [1, 3])
def test_a_resumed_loader_knows_priorities_on_any_number_of_ranks(size):
    sources = [(source("a", 7), 2.0), (source("b", 4), 1.0)]
    loader = PromptLoader(sources, seed=5, priority_floor=0.1)
    loader.draw(3)
    loader.prefer([(("a", "a/1"), 0, 0.8), (("a", "a/6"), 1, 0.7), (("b", "b/0"), 2, 1.0)])
    loader.rest([("a", "a/2")], 2)
    loader.draw(2)
    ranks = [PromptLoader(sources, seed=5, rank=rank, size=size, priority_floor=0.1) for rank in range(size)]
    for rank in ranks:
        rank.load(json.loads(json.dumps(loader.state())))
    shares = [ids(rank.draw(12)) for rank in ranks]
    assert [n for turn in zip(*shares, strict=True) for n in turn] == ids(loader.draw(12 * size))


def test_a_resume_obeys_another_floor_and_draws_all_with_none():
    """Whatever the floor was when a prompt was judged."""
    sources = [(source("a", 4), 1.0)]
    loader = PromptLoader(sources, seed=5, priority_floor=0.01)
    loader.prefer(solved(0, 1.0, 1.0, 0.7))
    assert loader.mean_priority == pytest.approx((0.01 + 0.01 + 0.3 + 1) / 4)
    state = json.loads(json.dumps(loader.state()))
    for floor, mean in ((0.5, (0.5 + 0.5 + 0.5 + 1) / 4), (0.1, (0.1 + 0.1 + 0.3 + 1) / 4), (1.0, 1.0)):
        resumed = PromptLoader(sources, seed=5, priority_floor=floor)
        resumed.load(state)
        assert resumed.mean_priority == pytest.approx(mean)
    drawn = ids(resumed.draw(12))  # of the floor 1
    assert drawn == ids(PromptLoader(sources, seed=5).draw(12))
    late = PromptLoader(sources, seed=5, priority_floor=0.1)
    late.load(json.loads(json.dumps(resumed.state())))
    assert late.mean_priority == 1.0, "nobody measured while all were drawn"


def test_the_group_of_a_prompt_that_was_drawn_last_counts_in_whatever_order_they_are_judged():
    """As that of the rank which drew it, or a response that took several steps."""
    groups = [(("a", "a/0"), 3, 0.25), (("a", "a/0"), 7, 0.5), (("a", "a/1"), 4, 1.0)]
    states = []
    for order in (groups, groups[::-1]):
        loader = PromptLoader([(source("a", 2), 1.0)], seed=5, priority_floor=0.1)
        for one in order:
            loader.prefer([one])
        states.append(loader.state()["solved"])
    together = PromptLoader([(source("a", 2), 1.0)], seed=5, priority_floor=0.1)
    together.prefer(groups[::-1])
    assert states == [[[[0, 7, 0.5], [1, 4, 1.0]]]] * 2 == [together.state()["solved"]] * 2
