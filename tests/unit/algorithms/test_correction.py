import torch

from lightrft.algorithms.correction import mismatch


def test_mismatch_is_the_distance_of_the_log_probs_inside_the_mask():
    trainer = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    distance = mismatch(trainer, torch.tensor([-1.5, -1.0, 0.0]), torch.tensor([True, True, False]))
    assert distance.tolist() == [0.5, 1.0, 0.0]
    assert not distance.requires_grad


def test_a_token_the_trainer_finds_impossible_is_shown_as_infinite():
    never = torch.tensor([-torch.inf, -torch.inf])
    distance = mismatch(never, torch.tensor([-1.0, 0.0]), torch.tensor([True, False]))
    assert distance.tolist() == [torch.inf, 0.0]
