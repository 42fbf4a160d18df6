import pytest
import torch

from lightrft.strategy import device
from lightrft.strategy.device import pick_device

has_accelerator = torch.accelerator.is_available()


def test_cpu_is_cpu():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(has_accelerator, reason="needs a machine without accelerator")
def test_auto_takes_the_cpu_where_there_is_nothing_else():
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.skipif(not has_accelerator, reason="needs an accelerator")
def test_auto_takes_the_accelerator():
    assert pick_device("auto").type != "cpu"


@pytest.mark.skipif(has_accelerator, reason="needs a machine without accelerator")
def test_a_device_that_is_not_there_is_named_with_the_cure():
    with pytest.raises(
        ValueError, match="strategy.device=cuda:1: torch finds no accelerator.*strategy.device=auto"
    ):
        pick_device("cuda:1")


def test_a_device_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="strategy.device=gpu"):
        pick_device("gpu")


def test_memory_is_measured_in_gib():
    assert 0.05 < device.resident_gib() < 100
    assert device.peak_gib() >= 0.9 * device.resident_gib()
    assert device.device_bytes(torch.device("cpu")) == pytest.approx(device.resident_gib() * 2**30, rel=0.2)


def test_habits_of_host_memory_can_be_set_and_undone():
    device.reuse_host_memory()
    block = torch.ones(2**20)
    assert float(block.sum()) == 2**20
    del block
    device.release_memory(torch.device("cpu"))
