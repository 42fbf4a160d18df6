"""Two ranks of a run, started as a cluster's scheduler would start them."""

import socket


def ranks(lightrft, *args, fault="none:none:0"):
    """Two ranks as Slurm would start them: nobody looks after them. Returns what is under way."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FAULT": fault}
    return [lightrft.start(*args, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in (0, 1)]
