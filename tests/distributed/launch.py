"""Real processes that know each other over gloo, for tests: a time limit, and the first error in full."""

import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a process that has imported all this once: an import takes longer than most tests.
multiprocessing.set_forkserver_preload(["torch", "transformers", "lightrft.build.rl", "lightrft.testing"])


def together(function, processes, *args, seconds=120, fresh=False):
    """[function(*args) of each rank], run in that many processes at once. What it returns must be savable by torch.

    `fresh` ranks are new interpreters, whose memory is their own.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _rank,
            (function, processes, folder, args),
            processes,
            join=False,
            start_method="spawn" if fresh else "forkserver",
        )
        deadline = time.monotonic() + seconds
        try:
            while not context.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{function.__name__} did not end within {seconds} s")
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(processes)]


def _rank(rank, function, processes, folder, args):
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
    torch.save(function(*args), Path(folder, f"{rank}.pt"))
    if dist.is_initialized():  # the function may have ended it for a group of its own
        dist.barrier()  # gloo may abort a process whose peers have left
        dist.destroy_process_group()
