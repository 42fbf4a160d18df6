"""Two processes on two devices add up 256 MiB: prints a JSON line. Started by gpu_parts.py through torch.distributed.run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightrft.utils.device import collective_backend, pick_device, use

if __name__ == "__main__":
    device = pick_device("auto")
    use(device)
    dist.init_process_group(collective_backend(device))
    numbers = torch.ones(2**27, dtype=torch.bfloat16, device=device)
    for times in (3, 10):  # the first make what is needed
        torch.accelerator.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(numbers.fill_(1.0))
        torch.accelerator.synchronize()
    spent = (time.perf_counter() - start) / 10
    if dist.get_rank() == 0:
        print(
            json.dumps(
                {"seconds": spent, "gb_per_second": numbers.nbytes / spent / 1e9, "sum": float(numbers[0])}
            )
        )
    dist.destroy_process_group()
