"""What a vLLM server loads into its workers (--worker-extension-cls) to take new weights, see vllm_server.py.

On a CPU vLLM packs weights into a layout of oneDNN's that no new weights reach: importing this module switches that off.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load
from vllm import _custom_ops
from vllm.platforms import current_platform

from lightrft.engines.transport import HOST, WeightListener
from lightrft.engines.vllm_weights import check_taken, pack_again

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker
else:
    Worker = object

if current_platform.is_cpu():
    _custom_ops._supports_onednn = False

NOTHING = ""
"""The mark of weights that nobody has given."""


class Receiver(Worker):  # type: ignore[misc]  # vLLM's own, where it is installed
    """Methods that a worker has besides its own. `mark`: which sync the present weights are from."""

    lightrft_mark = NOTHING
    lightrft_listener: WeightListener | None = None
    lightrft_taken: set[str] | None
    """Names of the new weights so far; None of a model that does not tell them."""

    def lightrft_begin(self) -> str:
        """Weights are about to change: those that are there are nobody's. Says where they can be sent without HTTP."""
        self.lightrft_mark, self.lightrft_taken = NOTHING, set()
        self.lightrft_listener = self.lightrft_listener or WeightListener(os.environ.get(HOST, ""))
        return self.lightrft_listener.tell()

    @torch.no_grad()
    def lightrft_receive(self, seconds: str) -> str:
        """Some of the weights, sent there within that time; says why they did not come if they did not."""
        assert self.lightrft_listener is not None
        try:
            bucket = self.lightrft_listener.receive(float(seconds))
        except OSError as error:
            return str(error)
        self._lightrft_load(bucket)
        return ""

    @torch.no_grad()
    def lightrft_take(self, bucket: str) -> None:
        """Some of the weights: a safetensors file as base64."""
        self._lightrft_load(load(base64.b64decode(bucket)))

    def _lightrft_load(self, bucket: dict[str, torch.Tensor]) -> None:
        taken = self.model_runner.model.load_weights(bucket.items())
        if taken is None or self.lightrft_taken is None:
            self.lightrft_taken = None
        else:
            self.lightrft_taken |= taken

    def lightrft_finish(self, mark: str) -> None:
        """All have come."""
        check_taken(self.model_runner.model, self.lightrft_taken)
        if current_platform.is_cpu():
            pack_again(self.model_runner.model)
        self.lightrft_mark = mark

    def lightrft_which(self) -> str:
        """The mark of the present weights."""
        return self.lightrft_mark
