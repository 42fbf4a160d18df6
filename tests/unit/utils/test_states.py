import enum
import math
import random
from collections import OrderedDict, namedtuple

import numpy
import pytest
import torch

from lightrft.utils.states import file_crc, read_state, write_state


def round_trip(tmp_path, state):
    write_state(tmp_path / "s.pt", state)
    return read_state(tmp_path / "s.pt")


def test_containers_numbers_and_texts_come_back_as_they_were(tmp_path):
    state = {
        "a": [1, (2.5, None)],
        3: {"b": True, "big": 2**80, "bytes": b"\0x"},
        "text": "ü",
        "inf": -math.inf,
        "": (),
    }
    assert round_trip(tmp_path, state) == state
    assert math.isnan(round_trip(tmp_path, [math.nan])[0])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]
)
def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path, dtype):
    tensor = (torch.randn(3, 4) * 10).to(dtype)
    back = round_trip(tmp_path, {"t": tensor})["t"]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path):
    back = round_trip(tmp_path, torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_generators_go_on_where_they_were_saved(tmp_path):
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    saved = round_trip(
        tmp_path, {"p": random.getstate(), "n": numpy.random.get_state(), "t": torch.get_rng_state()}
    )
    drawn = random.random(), numpy.random.rand(), float(torch.rand(()))
    random.setstate(saved["p"])
    numpy.random.set_state(saved["n"])
    torch.set_rng_state(saved["t"])
    assert (random.random(), numpy.random.rand(), float(torch.rand(()))) == drawn


def test_an_optimizer_comes_back_with_the_same_moments(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    other = torch.optim.AdamW([weight], lr=0.3, fused=True)
    other.load_state_dict(round_trip(tmp_path, optimizer.state_dict()))
    assert torch.equal(other.state[weight]["exp_avg_sq"], optimizer.state[weight]["exp_avg_sq"])
    assert other.param_groups[0]["lr"] == 0.1


class Colour(enum.StrEnum):
    RED = "red"


def test_relatives_of_plain_types_become_plain(tmp_path):
    point = namedtuple("point", "x y")(1, 2)
    given = [OrderedDict(a=1), point, Colour.RED, numpy.float64(0.1), numpy.int32(7), numpy.bool_(True)]
    back = round_trip(tmp_path, given)
    assert back == [{"a": 1}, (1, 2), "red", 0.1, 7, True]
    assert [type(v) for v in back] == [dict, tuple, str, float, int, bool]


def test_what_cannot_be_saved_is_named_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"state\['a'\]\[1\] is a builtins.set"):
        write_state(tmp_path / "s.pt", {"a": [1, {2}]})


def test_the_checksum_given_back_is_that_of_the_file(tmp_path):
    crc = write_state(tmp_path / "s.pt", {"t": torch.randn(1000)})
    assert file_crc(tmp_path / "s.pt") == crc
    assert len(crc) == 8


def test_two_names_of_one_tensor_take_its_place_once(tmp_path):
    tensor = torch.randn(10_000)
    write_state(tmp_path / "one.pt", {"a": tensor})
    write_state(tmp_path / "two.pt", {"a": tensor, "b": tensor})
    assert (tmp_path / "two.pt").stat().st_size < 1.1 * (tmp_path / "one.pt").stat().st_size
