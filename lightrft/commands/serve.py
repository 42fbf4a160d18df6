"""`lightrft serve`."""

from __future__ import annotations

from dataclasses import replace

from lightrft.build.tables import SERVE, SERVED
from lightrft.config import Config
from lightrft.models.load import load_processor
from lightrft.models.source import Source
from lightrft.utils.device import pick_device


def serve(config: Config, host: str, port: int) -> int:
    """Runs a server that a training run with these settings gives weights and sends prompts."""
    device = pick_device(config.strategy.device)
    model = replace(config.model, compile=False, kernels="off")  # the server computes by what it brings
    module = Source(model, learns=False).empty(device)
    processor = load_processor(config.model, config.media)
    rollout = replace(config.rollout, engine=SERVED)
    return SERVE(module, processor, rollout, host=host, port=port)
