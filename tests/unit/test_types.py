"""The examples in the data model are what the packing makes of them."""

import doctest

import torch

from lightrft import types
from lightrft.trainer.batching import pack
from lightrft.types import Prompt, Trajectory


def test_the_examples_run():
    found = doctest.testmod(types, extraglobs={"torch": torch})
    assert found.attempted > 10
    assert found.failed == 0


def test_the_example_of_inputs_is_what_packing_gives():
    prompt = Prompt("q", [5, 10, 6], [], "5", "t")
    answers = [
        Trajectory(prompt, 16, tokens, [True] * len(tokens), behavior, "stop")
        for tokens, behavior in (([8, 2], [-0.7, -0.1]), ([9], [-2.3]))
    ]
    batch = pack(answers)
    assert batch.segments.tolist() == [0, 0, 1]
    assert batch.inputs.token_ids.tolist() == [5, 10, 6, 8, 2, 9]
    assert batch.inputs.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert batch.inputs.prompt_spans == ((0, 3), (0, 3))
    assert batch.inputs.response_spans == ((3, 5), (5, 6))
    assert torch.equal(batch.inputs.predict, torch.tensor([2, 3, 2]))
