"""`lightrft serve`: a vLLM server that takes its weights from a training run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightrft.config import RolloutConfig
from lightrft.config.addresses import is_loopback, secret
from lightrft.engines.external import CURE, folder_without_weights, refuse
from lightrft.engines.transport import HOST
from lightrft.engines.vllm import known_arguments
from lightrft.engines.vllm_gate import KEY, Gate
from lightrft.engines.vllm_program import READER
from lightrft.models.processor import Processor
from lightrft.utils.imports import require

MEDIA = (
    "--enable-scale-out",
    "--no-mm-device-do-normalize",
    "--media-io-kwargs",
    json.dumps({"video": {"video_backend": READER}}),
)
"""For questions whose media come with tokens; for the second see vllm.py, for the last vllm_program.py."""
RECEIVER = "lightrft.engines.vllm_worker.Receiver"


def serve(module: nn.Module, processor: Processor, config: RolloutConfig, *, host: str, port: int) -> int:
    """Runs it until it is stopped, and returns its exit status. `module`: for its configuration, type and device.

    ValueError for a host that others reach, without a key: whoever reaches the server gives it weights and calls its workers.
    """
    refuse(config)
    key = {KEY: secret("rollout.server.key", config.server.key)} if config.server.key else {}
    if not key and not is_loopback(host):
        raise ValueError(
            f"--host {host} without a key: whoever reaches this machine could give the server weights and orders. Put a key into an "
            "environment variable, here and where you train, and name it: --rollout.server.key VLLM_KEY. Or leave --host out, to "
            "serve this machine alone."
        )
    require("vllm", "vllm", CURE)
    weight, options = next(module.parameters()), config.vllm
    on_cpu = weight.device.type == "cpu"
    words = flags(known_arguments(options, on_cpu=on_cpu), actions()) if options.options else []
    environment = {**os.environ, **key, HOST: host}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # for requests to its workers
    if on_cpu:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", f"{max(1, round(options.cache_gib))}")
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with folder_without_weights(module, processor) as folder:
        command = [
            *(sys.executable, "-m", "lightrft.engines.vllm_program"),
            *("--model", str(folder), "--served-model-name", "policy", "--host", host, "--port", str(port)),
            *("--load-format", "dummy", "--dtype", str(weight.dtype).removeprefix("torch.")),
            *("--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
            *("--worker-extension-cls", RECEIVER, "--max-num-seqs", str(options.max_num_seqs)),
            *("--tensor-parallel-size", str(options.tensor_parallel_size)),
            *(["--middleware", f"{Gate.__module__}.{Gate.__name__}"] if key else []),
            *(["--enforce-eager"] if options.enforce_eager else []),
            *(MEDIA if processor.media is not None else []),
            *(["--max-model-len", str(options.max_model_len)] if options.max_model_len else []),
            *(["--no-enable-chunked-prefill"] if on_cpu else []),  # ON_CPU of vllm.py
            *([] if on_cpu else ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]),
            *words,
        ]
        try:
            return subprocess.run(command, env=environment, check=False).returncode
        except KeyboardInterrupt:
            return 130


def actions() -> dict[str, argparse.Action]:
    """How vLLM's command reads each of its arguments, by name."""
    arguments: Any = require("vllm.engine.arg_utils", "vllm", CURE)
    parser = arguments.EngineArgs.add_cli_args(arguments.FlexibleArgumentParser())
    return {action.dest: action for action in parser._actions}


def flags(further: Mapping[str, Any], actions: Mapping[str, argparse.Action]) -> list[str]:
    """vLLM's arguments as words of its command, in the way its `actions` read them.

    ValueError for an argument that a program can give, but no command.
    """
    words = []
    for name, value in further.items():
        if name not in actions:
            raise ValueError(
                f"rollout.vllm.options.{name}: the command of a vLLM server has no such flag. Leave it out."
            )
        action, flag = actions[name], f"--{name.replace('_', '-')}"
        negatable = f"--no-{name.replace('_', '-')}" in action.option_strings
        if value is None or (value is False and not negatable):
            continue  # the default of a flag that is only there or not
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and action.nargs not in (None, "?"):
            if not value:
                raise ValueError(
                    f"rollout.vllm.options.{name}=[]: vLLM reads one word at least. Leave it out."
                )
            words += [flag, *map(_word, value)]
        else:
            words += [flag, _word(value)]
    return words


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
