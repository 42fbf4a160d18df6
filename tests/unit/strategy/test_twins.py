import gc

import pytest
import torch
from torch.testing import assert_close

from lightrft.strategy.memory import Tensors
from lightrft.strategy.twins import Twins
from lightrft.utils.device import resident_gib

CPU = torch.device("cpu")


def test_a_thousand_moves_take_the_memory_of_one_and_lose_nothing():
    """On a CPU the way there and back is a copy each; what a device adds is where the copies lie."""
    weights = [torch.nn.Parameter(torch.randn(64, 1024)), torch.nn.Parameter(torch.randn(7))]
    right, moments = [w.detach().clone() for w in weights], torch.zeros(64, 1024)
    place = Tensors(lambda: [*weights, moments], device="cpu")
    place.offload()
    first = [w.data_ptr() for w in weights]
    place.onload()
    before = resident_gib()
    for turn in range(1000):
        with torch.no_grad():
            moments += 1
            weights[0] += 1
        place.offload()
        assert [w.data_ptr() for w in weights] == first
        place.onload()
        assert weights[0].data_ptr() != first[0], turn
    assert_close(weights[0].detach(), right[0] + 1000, atol=1e-2, rtol=0)
    assert_close(weights[1].detach(), right[1])
    assert_close(moments, torch.full_like(moments, 1000))
    assert place.twins.nbytes() == sum(t.nbytes for t in [*weights, moments])
    assert resident_gib() - before < 0.05
    assert place.twins.copied == 1001 * 2 * place.nbytes()


def test_what_is_out_already_and_what_never_was_stay_as_they_are():
    twins, (one, other) = Twins(), (torch.ones(3), torch.ones(2))
    twins.out([one])
    place = one.data_ptr()
    one.fill_(5.0)  # as a checkpoint that is read meanwhile
    twins.out([one])
    assert one.data_ptr() == place
    stays = other.data_ptr()
    twins.back([one, other], CPU)
    assert one.tolist() == [5.0] * 3
    assert other.data_ptr() == stays
    assert twins.copied == 2 * 12  # out once and back once; what is where it belongs is not copied


def test_a_tensor_of_another_size_gets_another_place_and_one_that_is_gone_leaves_none():
    twins, tensor = Twins(), torch.ones(3)
    twins.out([tensor])
    twins.back([tensor], CPU)
    tensor.data = torch.full((5,), 2.0)
    twins.out([tensor])
    assert tensor.tolist() == [2.0] * 5
    assert twins.nbytes() == 20
    del tensor
    gc.collect()
    assert twins.nbytes() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_moved_out_of_a_cuda_device_lies_in_locked_pages():
    twins, tensor = Twins(), torch.arange(1000.0, device="cuda")
    for _ in range(3):
        twins.out([tensor])
        assert tensor.is_pinned()
        twins.back([tensor], torch.device("cuda"))
    assert tensor.is_cuda
    assert float(tensor.sum()) == 499500
