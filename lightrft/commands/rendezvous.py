"""Where the processes that we start on this machine find each other: a store that listens on 127.0.0.1 alone.

torch's own rendezvous listens on all addresses and keeps pickles in its store, so that whoever reaches it runs code here.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

BACKEND = "lightrft"
"""The name of this rendezvous among torch's."""
LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 60
"""Longest time that the launcher waits for its own store."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that say at which interface backends listen."""


def loopback_store() -> dist.TCPStore:
    """A new store whose server runs in this process, at a free port of 127.0.0.1."""
    listening = socket.create_server((LOOPBACK, 0))
    port = listening.getsockname()[1]
    return dist.TCPStore(
        LOOPBACK,
        port,
        None,
        True,
        timedelta(seconds=ANSWER_SECONDS),
        wait_for_workers=False,
        use_libuv=True,
        master_listen_fd=listening.detach(),
    )


def loopback_only() -> dict[str, str]:
    """Environment variables by which the backends of processes on one machine listen on 127.0.0.1 too; those set already stay."""
    names = [
        name for name, found in psutil.net_if_addrs().items() if any(a.address == LOOPBACK for a in found)
    ]
    return {variable: names[0] for variable in INTERFACES if names and variable not in os.environ}


class OneMachine(RendezvousHandler):
    """One launcher that is alone, with a store; nothing is negotiated, so nothing is unpickled."""

    def __init__(self, run_id: str, store: dist.TCPStore) -> None:
        self.run_id = run_id
        self.store = store

    @property
    def use_agent_store(self) -> bool:
        """Ranks talk through the launcher's store."""
        return True

    def get_backend(self) -> str:
        """The name of this rendezvous."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Rank 0 of 1, at once."""
        place = RendezvousStoreInfo(LOOPBACK, self.store.port)
        return RendezvousInfo(dist.PrefixStore(self.run_id, self.store), 0, 1, place)

    def is_closed(self) -> bool:
        """Never: the run ends with the launcher."""
        return False

    def set_closed(self) -> None:
        """Nobody else is to be told."""

    def num_nodes_waiting(self) -> int:
        """Nobody else can come."""
        return 0

    def get_run_id(self) -> str:
        """The name of the run."""
        return self.run_id

    def shutdown(self) -> bool:
        """The store ends with the launcher."""
        return True


def one_machine(parameters: RendezvousParameters) -> OneMachine:
    """What torch's launcher asks for by name; the store is one of its options."""
    return OneMachine(parameters.run_id, parameters.config["store"])


rendezvous_handler_registry.register(BACKEND, one_machine)
