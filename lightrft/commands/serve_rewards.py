"""`lightrft serve-rewards`."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightrft.build.data import training_rewards
from lightrft.build.judges import check_judging, check_without_policy, hold_judging_models, named_judge
from lightrft.build.process import check_fused, prepare_process
from lightrft.build.reward_models import model_rewards
from lightrft.commands.address import Address
from lightrft.config import Config
from lightrft.config.ranges import Range
from lightrft.config.rewards import rewards_of
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.requests import Tasks
from lightrft.rewards.service import MOST_BYTES_WITH_MEDIA, Batcher, RewardServer
from lightrft.rewards.table import JUDGE
from lightrft.tasks.table import load_tasks
from lightrft.types import Trajectory
from lightrft.utils.device import pick_device

log = logging.getLogger("lightrft")
ANY_TASK = "rewards"
"""The task of responses that name none that is known here."""
BATCH_MS = Range(0, 10_000)


def serve_rewards(config: Config, address: Address, batch_ms: float) -> int:
    """Gives the rewards of these settings to whoever asks at this address, until it is stopped; 0 then."""
    if batch_ms not in BATCH_MS:
        raise ValueError(f"--batch-ms {batch_ms:g}: must be {BATCH_MS}.")
    key, context = address.checked_key(), address.context()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    prepare_process(config)
    with RewardRunner(
        rewards_by_task(config),
        replace(config.rewards, on_failure="drop"),
        model_rewards(config),
        config.sandbox,
    ) as judge:
        judge.quotes = False
        check_judging(config, [judge], training=False)
        if JUDGE in judge.models:
            check_without_policy(config, "serve-rewards")
            check_fused(config, named_judge(config))
        batcher = Batcher(lambda answers: judged(judge, answers), batch_ms / 1000)
        tasks = Tasks(tuple(judge.weights), ANY_TASK * (ANY_TASK in judge.weights))
        with listening(address, batcher, tasks, key) as server:  # before weights load: the port may be taken
            hold_judging_models(config, judge, pick_device(config.strategy.device))
            if any(output is not None and output.sees_media for output in judge.models.values()):
                server.most_bytes = MOST_BYTES_WITH_MEDIA
            if context is not None:
                server.socket = context.wrap_socket(
                    server.socket, server_side=True, do_handshake_on_connect=False
                )
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
            threading.Thread(target=server.serve_forever, daemon=True).start()
            names = ", ".join(sorted(judge.labels.values()))
            log.info(
                "rewards %s at http%s://%s:%d",
                names,
                "s" * (context is not None),
                *server.server_address[:2],
            )
            try:
                batcher.run()
            except KeyboardInterrupt:
                log.info("stopped after %d passes", batcher.passes)
            finally:
                server.shutdown()
    return 0


def listening(address: Address, batcher: Batcher, tasks: Tasks, key: str) -> RewardServer:
    """The server at its address, which answers nobody yet. ValueError for one that cannot be listened at."""
    try:
        return RewardServer((address.host, address.port), batcher, tasks, key=key)
    except OSError as error:
        raise ValueError(
            f"--host {address.host} --port {address.port}: nothing can listen there ({error.strerror or error}). Take another port, or 0 for any "
            "that is free."
        ) from error


def rewards_by_task(config: Config) -> dict[str, dict[str, float]]:
    """Task -> its rewards; rewards.functions for the responses of all others. ValueError if there is none at all."""
    found = training_rewards(config, load_tasks(config.tasks.train).values())
    plain = rewards_of(config.rewards.functions, ANY_TASK, config.tasks.train)
    if plain:
        found[ANY_TASK] = plain
    if not found:
        raise ValueError(
            "there is no reward to serve. Set rewards.functions, e.g. --rewards.functions math 1, or name tasks in tasks.train."
        )
    return found


def judged(judge: RewardRunner, answers: Sequence[Trajectory]) -> Mapping[str, Sequence[float | None]]:
    """Each response's rewards by name, those of its task; None where one failed or is of another task."""
    judge(answers)
    return {label: [t.parts.get(label) for t in answers] for label in judge.labels.values()}
