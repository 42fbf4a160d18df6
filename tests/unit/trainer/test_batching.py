"""Packing, planning and mini-batches with numbers one can check by hand."""

import pytest
import torch

from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import minibatches, pack, plan, to_device, unpack
from lightrft.types import Prompt, Trajectory


def prompt(name, tokens, **changes):
    return Prompt(id=name, token_ids=tokens, messages=[], target=None, source="test", **changes)


def answer(to, tokens, *, group=0, mask=None, reward=1.0):
    return Trajectory(
        prompt=to,
        group=group,
        token_ids=tokens,
        mask=[True] * len(tokens) if mask is None else mask,
        behavior=[-0.5] * len(tokens),
        finish="stop",
        reward=reward,
    )


A, B = prompt("a", [10, 11, 12]), prompt("b", [20])
THREE = [answer(A, [1, 2], reward=0.25), answer(A, [3], mask=[False]), answer(B, [4, 5, 6], group=1)]


def test_a_batch_lays_answers_end_to_end():
    batch = pack(THREE)
    assert batch.inputs.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.segments.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.groups.tolist() == [0, 0, 1]
    assert batch.mask.tolist() == [True, True, False, True, True, True]
    assert batch.scores.tolist() == [0.25, 1, 1]
    assert batch.weights.tolist() == [0] * 6
    assert batch.behavior.tolist() == [-0.5] * 6


def test_a_prompt_is_read_once_for_its_answers():
    inputs = pack(THREE).inputs
    assert inputs.token_ids.tolist() == [10, 11, 12, 1, 2, 3, 20, 4, 5, 6]
    assert inputs.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3]
    assert inputs.prompt_spans == ((0, 3), (0, 3), (6, 7))
    assert inputs.response_spans == ((3, 5), (5, 6), (7, 10))
    assert inputs.predict.tolist() == [2, 3, 2, 6, 7, 8]


def test_without_sharing_each_answer_has_its_own_copy_of_the_prompt():
    inputs = pack(THREE, share_prompts=False).inputs
    assert inputs.token_ids.tolist() == [10, 11, 12, 1, 2, 10, 11, 12, 3, 20, 4, 5, 6]
    assert inputs.predict.tolist() == [2, 3, 7, 9, 10, 11]


def test_an_empty_answer_takes_no_place_and_predicts_nothing():
    batch = pack([answer(A, [1]), answer(A, []), answer(A, [2])])
    assert batch.segments.tolist() == [0, 2]
    assert batch.num_sequences == 3
    assert batch.inputs.token_ids.tolist() == [10, 11, 12, 1, 2]
    assert batch.inputs.response_spans == ((3, 4), (4, 4), (4, 5))
    assert batch.inputs.predict.tolist() == [2, 2]


def test_two_draws_of_one_question_are_two_groups_and_share_nothing():
    inputs = pack([answer(A, [1], group=0), answer(A, [2], group=1)]).inputs
    assert inputs.prompt_spans == ((0, 3), (4, 7))


def test_equal_prompts_of_different_questions_are_not_taken_for_one():
    twin = prompt("c", [10, 11, 12])
    assert pack([answer(A, [1]), answer(twin, [2])]).inputs.prompt_spans == ((0, 3), (4, 7))


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt 'empty' has no tokens"):
        pack([answer(prompt("empty", []), [1])])


def test_positions_with_several_rows_go_on_from_the_last_word_of_the_question():
    """Row 0 counts text; the others go on with 8, though a clip before the last word reached 9 in time."""
    seen = prompt("seen", [1, 2, 3], positions=torch.tensor([[0, 1, 2], [0, 9, 7], [0, 4, 7]]))
    positions = pack([answer(seen, [4, 5])]).inputs.positions
    assert positions.tolist() == [[0, 1, 2, 3, 4], [0, 9, 7, 8, 9], [0, 4, 7, 8, 9]]


def test_media_of_a_shared_prompt_is_handed_over_once():
    seen = prompt("seen", [1], media={"pixel_values": torch.ones(2, 3)})
    shared = pack([answer(seen, [4]), answer(seen, [5])]).inputs.media["pixel_values"]
    apart = pack([answer(seen, [4]), answer(seen, [5])], share_prompts=False).inputs.media["pixel_values"]
    assert shared.shape == (2, 3)
    assert apart.shape == (4, 3)


def test_a_column_is_there_only_if_every_answer_has_it():
    answers = [answer(A, [1, 2]), answer(A, [3])]
    answers[0].columns["old"] = torch.tensor([0.5, 0.25])
    assert pack(answers).old is None
    answers[1].columns["old"] = torch.tensor([0.125])
    assert pack(answers).old.tolist() == [0.5, 0.25, 0.125]


def test_columns_only_leaves_out_what_a_model_reads():
    assert pack(THREE, inputs=False).inputs is None


def test_unpacked_columns_are_float32_and_detached():
    values = torch.arange(6, dtype=torch.float64).requires_grad_()
    unpack(values, THREE, "old")
    assert [t.columns.pop("old").tolist() for t in THREE] == [[0, 1], [2], [3, 4, 5]]
    unpack(values, THREE, "old")
    assert {(t.columns["old"].dtype, t.columns["old"].requires_grad) for t in THREE} == {
        (torch.float32, False)
    }
    for t in THREE:
        t.columns.clear()


def test_every_tensor_goes_to_the_device():
    batch = to_device(pack(THREE), "meta")
    tensors = [getattr(batch, name) for name in batch.__dataclass_fields__]
    tensors += [batch.inputs.token_ids, batch.inputs.positions, batch.inputs.targets, batch.inputs.predict]
    assert {x.device.type for x in tensors if isinstance(x, torch.Tensor)} == {"meta"}


# -- the plan ----------------------------------------------------------------------------------------------------------


def lengths(batches):
    return [[len(t) for t in batch] for batch in batches]


def test_groups_stay_together_where_they_fit():
    answers = tiny_trajectories([(4, [3, 3]), (4, [1, 1])])
    assert lengths(plan(answers, 16)) == [[3, 3, 1, 1]]
    assert lengths(plan(answers, 15)) == [[3, 3], [1, 1]]


def test_a_group_that_does_not_fit_is_split_and_its_prompt_read_again():
    assert lengths(plan(tiny_trajectories([(4, [3, 3, 3])]), 10)) == [[3, 3], [3]]
    assert lengths(plan(tiny_trajectories([(4, [3, 3, 3])]), 7)) == [[3], [3], [3]]


def test_an_answer_longer_than_the_budget_goes_alone():
    assert lengths(plan(tiny_trajectories([(4, [3, 50, 3])]), 10)) == [[50], [3], [3]]


def test_a_whole_group_is_never_divided_and_goes_alone_where_it_is_longer_than_the_budget():
    answers = tiny_trajectories([(4, [3, 3, 3]), (4, [1, 1]), (4, [2, 2])])
    assert lengths(plan(answers, 10, whole_groups=True)) == [[3, 3, 3], [2, 2], [1, 1]]
    assert lengths(plan(answers, 1, whole_groups=True)) == [[3, 3, 3], [2, 2], [1, 1]]
    assert lengths(plan(answers, 14, whole_groups=True)) == [[3, 3, 3], [2, 2, 1, 1]]


def test_small_pieces_fill_the_gaps_of_large_ones():
    answers = tiny_trajectories([(1, [2]), (1, [8]), (1, [8])])
    assert lengths(plan(answers, 12)) == [[8, 2], [8]]


def test_without_sharing_every_answer_pays_for_its_prompt():
    answers = tiny_trajectories([(4, [1, 1, 1])])
    assert lengths(plan(answers, 7)) == [[1, 1, 1]]
    assert lengths(plan(answers, 7, share_prompts=False)) == [[1], [1], [1]]


def test_siblings_that_lie_apart_are_brought_together():
    one, two, three, four = tiny_trajectories([(4, [1, 2]), (4, [3, 4])])
    assert lengths(plan([one, three, two, four], 100)) == [[3, 4, 1, 2]]


def test_empty_answers_are_in_no_batch():
    assert lengths(plan(tiny_trajectories([(4, [0, 2, 0])]), 100)) == [[2]]
    assert plan(tiny_trajectories([(4, [0, 0])]), 100) == []


def test_the_plan_of_nothing_is_nothing():
    assert plan([], 100) == []


# -- mini-batches ------------------------------------------------------------------------------------------------------


def test_a_single_minibatch_keeps_the_order():
    answers = tiny_trajectories([(1, [1, 1]), (1, [1])])
    assert minibatches(answers, 1, seed=3) == [answers]


def test_minibatches_are_shuffled_by_their_seed_alone():
    answers = tiny_trajectories([(1, [1, 1])] * 6)

    def groups(seed):
        return [[t.group for t in part] for part in minibatches(answers, 3, seed=seed)]

    assert groups(1) == groups(1)
    assert groups(1) != groups(2)
    assert [len(part) for part in groups(1)] == [4, 4, 4]


def test_there_are_no_empty_minibatches():
    assert [len(part) for part in minibatches(tiny_trajectories([(1, [1, 1])]), 5, seed=0)] == [1, 1]
    assert minibatches([], 3, seed=0) == []


def test_minibatches_divide_no_group_that_is_to_stay_whole():
    answers = tiny_trajectories([(1, [1, 1, 1])] * 2 + [(1, [1])])
    parts = minibatches(answers, 3, seed=0, whole_groups=True)
    assert sorted(sorted(t.group for t in part) for part in parts) == [[0, 0, 0], [1, 1, 1], [2]]
    assert minibatches([], 3, seed=0, whole_groups=True) == []


def test_grades_are_columns_in_the_order_asked_for_and_nan_where_there_are_none():
    one, two = tiny_trajectories([(2, [1, 1])])
    one.parts = {"cost": -1.0, "general": 0.5}
    batch = pack([one, two], outputs=["general", "cost"])
    assert batch.grades[0].tolist() == [0.5, -1.0]
    assert batch.grades[1].isnan().all()
    assert pack([one, two]).grades is None
    assert pack([], inputs=False, outputs=["general"]).grades.shape == (0, 1)


def test_batches_are_filled_evenly_where_that_needs_no_more_of_them():
    answers = tiny_trajectories([(1, [n]) for n in (9, 7, 5, 3)])
    assert lengths(plan(answers, 20)) == [[9, 3], [7, 5]], "first-fit alone: [9, 7], [5, 3]"
    assert lengths(plan(tiny_trajectories([(1, [n]) for n in (5, 5, 3, 3, 3)]), 12)) == [[5, 5], [3, 3, 3]], (
        "the least loaded would end with [5, 3, 3], which is 14 with prompts, so first-fit stays"
    )


def test_an_answer_beyond_the_budget_is_alone_and_lifts_it_for_no_other():
    answers = tiny_trajectories([(1, [n]) for n in (19, 5, 5, 3, 3, 3)])
    parts = lengths(plan(answers, 12))
    assert [19] in parts
    assert all(sum(part) + len(part) <= 12 for part in parts if part != [19])
