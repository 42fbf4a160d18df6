import gc

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightrft.strategy.memory import Tensors
from lightrft.strategy.twins import NoHostRoomError, Twins, exchange, link_of
from lightrft.utils.device import is_out_of_memory, resident_gib

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


class Watched(TorchDispatchMode):
    """Notes after each copy how many bytes of some tensors are not in their twins."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors, self.held, self.copies = tensors, [], []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.copy_.default:
            self.copies.append(args[0].nbytes)
            held = sum(t.nbytes for twins, ts in self.tensors for t in ts if not twins.is_out(t))
            self.held.append(held + args[0].nbytes)  # what is on its way counts already
        return found


def phase(sizes, start=0.0):
    return Twins(), [torch.full((n,), start + place) for place, n in enumerate(sizes)]


@pytest.mark.parametrize(
    ("leave", "come"),
    [
        ([8, 8, 8], [8, 8, 8]),
        ([30], [10, 10, 10]),
        ([1, 2, 3], [50]),
        ([40, 2], [1, 1]),
        ([], [5]),
        ([5], []),
    ],
)
def test_some_come_while_others_go_and_the_device_never_holds_more_than_before_or_after(leave, come):
    """On a CPU each copy is made when it is asked for; what a device adds is that it makes two at a time."""
    (going, out), (coming, back) = phase(leave), phase(come, 100.0)
    coming.out(back)
    most = 4 * max(sum(leave), sum(come))
    with Watched([(going, out), (coming, back)]) as watched:
        exchange([(going, out)], [(coming, back, CPU)])
    assert watched.copies == [
        4 * n for n in leave + come
    ]  # all that goes is told first, and then only waited for
    assert max(watched.held[len(leave) :], default=0) <= most
    assert all(going.is_out(t) for t in out)
    assert not any(coming.is_out(t) for t in back)
    assert [t.tolist() for t in out] == [[float(place)] * n for place, n in enumerate(leave)]
    assert [t.tolist() for t in back] == [[100.0 + place] * n for place, n in enumerate(come)]


def test_an_exchange_is_what_two_moves_are_one_after_the_other():
    """Weights and moments of a small model, a hundred times in turn."""
    draw = torch.Generator().manual_seed(0)
    together, apart = (
        [torch.randn(n, 7, generator=draw.manual_seed(n)) for n in range(1, 20)] for _ in range(2)
    )
    mine, one = Twins(), Twins()
    mine.out(together[10:])
    one.out(apart[10:])
    here, there = slice(0, 10), slice(10, None)
    for _ in range(100):
        exchange([(mine, together[here])], [(mine, together[there], CPU)])
        one.out(apart[here])
        one.back(apart[there], CPU)
        for tensor in (*together[there], *apart[there]):
            tensor += 1
        here, there = there, here
    for ours, right in zip(together, apart, strict=True):
        assert torch.equal(ours, right)
    assert mine.copied == one.copied
    assert link_of(CPU).seconds() > 0


def test_what_lay_in_host_memory_makes_no_room_on_the_device():
    (going, out), (coming, back) = phase([8, 8]), phase([8], 100.0)
    coming.out(back)
    seen = []

    class Making(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            if function is torch.ops.aten.empty_like.default:
                seen.append(all(going.is_out(tensor) for tensor in out))
            return function(*args, **(kwargs or {}))

    # The meta device takes no numbers; when they are sent on their way is what counts.
    with Making(), pytest.raises(RuntimeError, match="incompatible tensor type"):
        exchange([(going, out)], [(coming, back, torch.device("meta"))])
    assert seen == [True]  # not while the second was still on its way


def test_where_host_memory_is_too_small_it_says_so_and_not_that_the_device_is_full():
    large = torch.zeros(()).expand(1 << 50)
    with pytest.raises(
        NoHostRoomError, match=r"strategy.offload=true: no host memory for 4194304.00 GiB"
    ) as error:
        Tensors(lambda: [torch.ones(2), large], device="cpu").offload()
    assert "strategy.offload=false" in str(error.value)
    assert not is_out_of_memory(error.value)
