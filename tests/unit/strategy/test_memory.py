"""The memory plan: which resident is on the device in which phase."""

import io
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from lightrft.strategy.memory import MemoryPlan, NoRoomError, Phase, Tensors

PHASES = [Phase.ROLLOUT, Phase.SCORE, Phase.SYNC, Phase.TRAIN]


@dataclass
class Device:
    """A device that counts: what is loaded, and what moved, in order."""

    loaded: dict = field(default_factory=dict)
    moves: list = field(default_factory=list)
    peak: int = 0

    def bytes(self):
        return sum(self.loaded.values())


@dataclass
class Block:
    """A resident of a device that counts."""

    device: Device
    name: str
    size: int

    def onload(self):
        assert self.name not in self.device.loaded, f"{self.name} is loaded twice"
        self.device.loaded[self.name] = self.size
        self.device.moves.append(f"+{self.name}")
        self.device.peak = max(self.device.peak, self.device.bytes())

    def offload(self):
        del self.device.loaded[self.name]
        self.device.moves.append(f"-{self.name}")

    def nbytes(self):
        return self.size


def stage_of(needs):
    """A memory_plan with one resident per entry: the phases that need it, and its size. Nothing is loaded in IDLE."""
    device = Device()
    memory_plan = MemoryPlan(device.bytes)
    for place, (phases, size) in enumerate(needs):
        memory_plan.add(f"r{place}", Block(device, f"r{place}", size), *phases)
    return memory_plan, device


residents = st.lists(st.tuples(st.sets(st.sampled_from(PHASES)), st.integers(1, 9)), max_size=5)
walks = st.lists(st.sampled_from([*PHASES, Phase.IDLE]), max_size=12)


@given(residents, walks)
def test_inside_a_phase_exactly_its_residents_are_loaded(needs, walk):
    memory_plan, device = stage_of(needs)
    for phase in walk:
        with memory_plan(phase):
            assert device.loaded == {
                f"r{i}": size for i, (phases, size) in enumerate(needs) if phase in phases
            }


@given(residents, walks)
def test_entering_moves_only_the_difference_and_frees_before_it_fills(needs, walk):
    memory_plan, device = stage_of(needs)
    before = Phase.IDLE
    for phase in walk:
        device.moves.clear()
        with memory_plan(phase):
            leaving = [
                f"-r{i}" for i, (phases, _) in enumerate(needs) if before in phases and phase not in phases
            ]
            arriving = [
                f"+r{i}" for i, (phases, _) in enumerate(needs) if phase in phases and before not in phases
            ]
            assert device.moves == leaving + arriving
        assert device.moves == leaving + arriving, "leaving moves nothing"
        before = phase


@given(residents, walks)
def test_the_peak_is_never_more_than_the_fullest_phase(needs, walk):
    memory_plan, device = stage_of(needs)
    for phase in walk:
        with memory_plan(phase):
            pass
    assert device.peak <= max(sum(size for phases, size in needs if phase in phases) for phase in PHASES)


@given(residents, st.sampled_from(PHASES), st.sampled_from(PHASES))
def test_phases_do_not_nest(needs, outer, inner):
    memory_plan, device = stage_of(needs)
    with memory_plan(outer):
        loaded = dict(device.loaded)
        with pytest.raises(RuntimeError, match="do not nest"), memory_plan(inner):
            pass
        assert device.loaded == loaded
        assert memory_plan.phase is outer


def test_a_phase_that_raises_can_be_left_and_entered_again():
    memory_plan, device = stage_of([({Phase.TRAIN}, 3)])
    with pytest.raises(KeyError), memory_plan(Phase.TRAIN):
        raise KeyError
    with memory_plan(Phase.ROLLOUT):
        assert device.loaded == {}


def test_seconds_are_counted_by_phase_until_they_are_reset():
    memory_plan, _ = stage_of([])
    for phase in (Phase.TRAIN, Phase.TRAIN, Phase.SCORE):
        with memory_plan(phase):
            pass
    seconds = memory_plan.reset_seconds()
    assert sorted(seconds) == ["score", "train"]
    assert all(s >= 0 for s in seconds.values())
    assert memory_plan.reset_seconds() == {}


def test_the_last_entry_says_what_moved():
    memory_plan, _ = stage_of([({Phase.ROLLOUT}, 2**30), ({Phase.TRAIN}, 2**31)])
    with memory_plan(Phase.ROLLOUT):
        pass
    with memory_plan(Phase.TRAIN):
        assert memory_plan.moves == ["-r0", "+r1", "1.00 -> 2.00 GiB"]


@pytest.mark.parametrize(("unit", "bytes_of_one"), [("GiB", 2**30), ("MiB", 2**20)])
def test_the_table_shows_each_resident_in_its_phases_and_the_sums(unit, bytes_of_one):
    """In MiB where no phase takes a GiB: a tiny model would be 0.00 throughout."""
    memory_plan, _ = stage_of(
        [({Phase.ROLLOUT, Phase.TRAIN}, bytes_of_one), ({Phase.TRAIN}, bytes_of_one // 2)]
    )
    out = io.StringIO()
    Console(file=out, width=100).print(memory_plan.table())
    sums = next(line for line in out.getvalue().splitlines() if f"sum, {unit}" in line)
    assert [x for x in sums.replace("│", " ").split() if x[0].isdigit()] == ["1.00", "0.00", "0.00", "1.50"]


def test_tensors_that_do_not_move_stay_where_they_are():
    tensor = torch.nn.Parameter(torch.ones(3))
    place = Tensors(lambda: [tensor], device="meta", moves=False)
    place.onload()
    place.offload()
    assert tensor.device.type == "cpu"
    assert place.nbytes() == 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_tensors_move_and_keep_their_identity():
    device = str(torch.accelerator.current_accelerator())
    parameter = torch.nn.Parameter(torch.ones(3, device=device))
    place = Tensors(lambda: [parameter], device=device)
    place.offload()
    assert parameter.device.type == "cpu"
    place.onload()
    assert str(parameter.device).startswith(device)
    assert parameter.tolist() == [1, 1, 1]


class Full(Block):
    """A resident for which there is no room."""

    def onload(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_where_there_is_no_room_to_wake_it_says_who_holds_the_memory_and_what_to_lower():
    device = Device()
    memory_plan = MemoryPlan(device.bytes)
    memory_plan.add("engine weights", Block(device, "engine weights", 3 * 2**30), Phase.ROLLOUT)
    memory_plan.add("engine cache", Full(device, "engine cache", 2 * 2**30), Phase.ROLLOUT)
    with pytest.raises(NoRoomError) as error, memory_plan(Phase.ROLLOUT):
        raise AssertionError("not reached")
    told = str(error.value)
    assert "no room on the device for engine cache (2.00 GiB) in phase rollout" in told
    assert "Held in it: engine weights 3.00 GiB" in told
    assert "lower rollout.native.max_sequences" in told
    assert "rollout.vllm.tensor_parallel_size" in told


def test_where_a_phase_has_no_room_to_compute_it_says_what_to_lower():
    memory_plan, _ = stage_of([({Phase.TRAIN}, 2**30)])
    told = "what it computes in phase train.*lower update.tokens_per_micro_batch"
    with pytest.raises(NoRoomError, match=told), memory_plan(Phase.TRAIN):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(KeyError), memory_plan(Phase.TRAIN):  # what is no lack of memory is told as it is
        raise KeyError("x")


def test_the_most_memory_of_a_phase_is_that_of_its_residents_and_of_what_it_computed():
    """Counted by the device from one asking to the next, as torch does."""
    most = [0]

    def asked():
        found, most[0] = most[0], 0
        return found

    class Heavy(Block):
        def onload(self):
            super().onload()
            most[0] = max(most[0], 3 * 2**30)

    memory_plan = MemoryPlan(Device().bytes, most=asked)
    memory_plan.add("weights", Heavy(Device(), "weights", 1), Phase.TRAIN)
    most[0] = 9 * 2**30  # before any phase: nobody's
    for needed in (1, 2):
        with memory_plan(Phase.SCORE):
            most[0] = needed * 2**29
    with memory_plan(Phase.TRAIN):
        pass
    assert memory_plan.reset_peaks() == {"score": 1.0, "train": 3.0}
    assert memory_plan.reset_peaks() == {}


def test_bytes_that_were_copied_are_those_of_the_tensors_that_moved():
    stays, comes, goes = torch.ones(7), torch.ones(5), torch.ones(3, dtype=torch.float64)
    memory_plan = MemoryPlan(lambda: 0)
    both, only = (Phase.SCORE, Phase.TRAIN), (Phase.TRAIN,)
    for name, tensor, phases in (("a", stays, both), ("b", comes, only), ("c", goes, (Phase.SCORE,))):
        memory_plan.add(name, Tensors(lambda tensor=tensor: [tensor], "cpu"), *phases)
    memory_plan.begin()
    assert memory_plan.reset_copied() == 7 * 4 + 5 * 4 + 3 * 8
    with memory_plan(Phase.SCORE):
        pass
    assert memory_plan.reset_copied() == 7 * 4 + 3 * 8
    with memory_plan(Phase.TRAIN):
        pass
    assert memory_plan.reset_copied() == 3 * 8 + 5 * 4
    with memory_plan(Phase.TRAIN):
        pass
    assert memory_plan.reset_copied() == 0


class Beside(Block):
    """A resident that notes where some tensors are when it moves."""

    places: dict = {}  # noqa: RUF012  # name -> Tensors

    def onload(self):
        super().onload()
        self.device.moves[-1] += "".join(sorted(n for n, t in self.places.items() if t.is_here()))

    def offload(self):
        super().offload()
        self.device.moves[-1] += "".join(sorted(n for n, t in self.places.items() if t.is_here()))


def test_tensors_change_places_after_others_have_left_and_before_others_come(monkeypatch):
    device = Device()
    memory_plan = MemoryPlan(device.bytes, lambda: device.moves.append("released"))
    parts = {"a": torch.arange(4.0), "b": torch.arange(6.0)}
    places = {name: Tensors(lambda t=t: [t], "cpu") for name, t in parts.items()}
    monkeypatch.setattr(Beside, "places", places)
    memory_plan.add("cache", Beside(device, "cache", 1), Phase.ROLLOUT)
    memory_plan.add("a", places["a"], Phase.ROLLOUT)
    memory_plan.add("b", places["b"], Phase.TRAIN)
    memory_plan.add("other", Beside(device, "other", 1), Phase.TRAIN)
    for place in places.values():
        place.offload()
    for phase in (Phase.ROLLOUT, Phase.TRAIN, Phase.ROLLOUT):
        with memory_plan(phase):
            pass
    assert device.moves == [
        "released",
        "+cachea",
        "-cachea",
        "released",  # what the cache held, before b comes
        "released",
        "+otherb",
        "-otherb",
        "released",
        "released",
        "+cachea",
    ]
    assert [t.tolist() for t in parts.values()] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert memory_plan.reset_link_seconds() > 0
    assert memory_plan.reset_link_seconds() == 0


class NoRoomFor(TorchDispatchMode):
    """A device on which tensors of so many numbers find no room, until what was freed is given back if that helps."""

    def __init__(self, numbers, helps=False):
        super().__init__()
        self.numbers, self.helps, self.full = numbers, helps, 0

    def release(self):
        if self.helps and self.full:
            self.numbers = None

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        if function is torch.ops.aten.empty_like.default and args[0].numel() == self.numbers:
            self.full += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **(kwargs or {}))


def test_where_there_is_no_room_for_tensors_it_says_for_which():
    memory_plan = MemoryPlan(lambda: 0)
    for name, numbers in (("actor weights", 3), ("actor optimizer", 5)):
        tensor = torch.zeros(numbers)
        memory_plan.add(name, Tensors(lambda t=tensor: [t], "cpu"), Phase.TRAIN)
    memory_plan.begin()
    with (
        NoRoomFor(5),
        pytest.raises(NoRoomError, match="no room on the device for actor optimizer"),
        memory_plan(Phase.TRAIN),
    ):
        raise AssertionError("not reached")


def test_what_finds_no_room_while_others_still_go_comes_when_all_have_gone():
    """Freed blocks of other sizes hold the memory that it needs until they are given back."""
    device = NoRoomFor(5, helps=True)
    memory_plan = MemoryPlan(lambda: 0, device.release)
    goes, comes = (
        [torch.full((5,), 1.0), torch.full((9,), 2.0)],
        [torch.full((5,), 3.0), torch.full((2,), 4.0)],
    )
    places = [Tensors(lambda t=t: t, "cpu") for t in (goes, comes)]
    memory_plan.add("engine cache", places[0], Phase.ROLLOUT)
    memory_plan.add("actor weights", places[1], Phase.TRAIN)
    memory_plan.begin()
    with memory_plan(Phase.ROLLOUT):
        pass
    with device, memory_plan(Phase.TRAIN):
        assert places[1].is_here()
        assert all(places[0].twins.is_out(tensor) for tensor in goes)
    assert device.full == 2  # beside those that went, and after them
    assert [t.tolist() for t in comes] == [[3.0] * 5, [4.0] * 2]
    assert places[1].twins.copied == 2 * 4 * 7
