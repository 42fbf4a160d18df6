import json
import subprocess
import sys

import pytest
import torch

from lightrft.utils import device
from lightrft.utils.device import pick_device

FAKE = """
import json, os, types
import torch
import torch.distributed as dist
from torch.utils import backend_registration

class Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self):
        return True

    def has_primary_context(self, index):
        return True

    def is_built(self):
        return True

class Module(backend_registration._DummyBackendModule):
    state = torch.tensor([7], dtype=torch.uint8)

    def mem_get_info(self, device):
        return 3 << 30, 8 << 30

    def get_device_name(self, device):
        return "Fake One"

    def get_rng_state(self):
        return Module.state

    def set_rng_state(self, state):
        Module.state = state

backend_registration._setup_privateuseone_for_python_backend("fake", Module(), Hook())
dist.Backend.register_backend("fakeccl", lambda *args: None, devices=["fake"])

from lightrft.utils import device
from lightrft.utils.seeding import generator_states, restore_generators

picked = device.pick_device("auto")
states = generator_states()
Module.state = torch.tensor([9], dtype=torch.uint8)
restore_generators(states)
print(json.dumps({
    "count": device.num_accelerators(),
    "picked": str(picked),
    "named": str(device.pick_device("fake")),
    "backend": device.collective_backend(picked),
    "free": device.available_bytes(picked),
    "shown": device.accelerators(),
    "state": Module.state.tolist(),
    "varlen": device.has_varlen_kernel(torch.zeros(1, dtype=torch.bfloat16)),
}))
"""
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


@pytest.mark.skipif(has_accelerator, reason="needs a machine without accelerator")
def test_an_accelerator_that_nobody_has_heard_of_is_used_like_any_other():
    """One made of Python, registered with torch under a name of its own."""
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "count": 1,
        "picked": "fake:0",
        "named": "fake:0",
        "backend": "cpu:gloo,fake:fakeccl",
        "free": 3 << 30,
        "shown": {"fake:0": "Fake One, 3 GiB free of 8"},
        "state": [7],
        "varlen": False,
    }


def test_ranks_on_cpus_meet_over_gloo():
    assert device.collective_backend(torch.device("cpu")) == "gloo"


def test_tf32_is_refused_where_nothing_multiplies_so_and_is_off_elsewhere():
    before = torch.get_float32_matmul_precision()
    device.use_tf32(torch.device("cpu"), False)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ValueError, match=r"strategy.tf32=true: cpu devices .* Set strategy.tf32=false"):
        device.use_tf32(torch.device("cpu"), True)
    with pytest.raises(ValueError, match="strategy.tf32=true: xpu"):
        device.use_tf32(torch.device("xpu"), True)


def test_numbers_are_sent_as_they_are():
    cpu = torch.device("cpu")
    assert device.sent([1, 2], cpu).tolist() == [1, 2]
    tensor = torch.ones(2)
    assert device.sent(tensor, cpu) is tensor
    assert device.most_device_bytes(cpu) == 0
