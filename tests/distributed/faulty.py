"""A run that is hit: an ordinary trainer of a user, and an ordinary backend that sums gradients over ranks.

$FAULT is KIND:PHASE:RANK; it happens once, in step 2.
"""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lightrft.strategy.single import Single, SingleTrainable
from lightrft.trainer.rl import RLTrainer

KINDS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": lambda: {}["no such key"],
    "stall": lambda: time.sleep(600),
    "slow": lambda: time.sleep(2),
}


class Faulty(RLTrainer):
    def hit(self, phase):
        kind, where, rank = os.environ.get("FAULT", "none:none:0").split(":")
        if (where, int(rank), 1) == (phase, self.world.rank, self.done) and not Path("happened").exists():
            Path("happened").touch()
            time.sleep(
                0.2
            )  # what happens is rarely the first thing in a phase, and others hear of a phase a moment later
            KINDS[kind]()

    def _sampled(self, finished, total):
        self.hit("rollout")
        super()._sampled(finished, total)

    def score(self, trajectories):
        with self.stage(self.stage.phase.SCORE):
            self.hit("score")
        return super().score(trajectories)

    def policy_loss(self, batch):
        self.hit("train")
        return super().policy_loss(batch)

    def save(self):
        self.actor.when_saved = lambda: self.hit("save")
        super().save()


class Twins(Single):
    """Every rank has the whole model; gradients are summed."""

    def trainable(self, source, config, total_updates):
        return Twin(source.full(self.device), config, total_updates)


class Twin(SingleTrainable):
    def tensors(self):
        getattr(self, "when_saved", lambda: None)()
        return super().tensors()

    def gradient_norm(self):
        for master in self._masters:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
            dist.all_reduce(master.grad)
        return super().gradient_norm()
