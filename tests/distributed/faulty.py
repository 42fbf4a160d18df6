"""A run that is hit, by an ordinary trainer of a user.

$FAULT is KIND:PHASE:RANK; it happens once, in step 2.
"""

import os
import signal
import time
from pathlib import Path

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
        with self.memory_plan(self.memory_plan.phase.SCORE):
            self.hit("score")
        return super().score(trajectories)

    def policy_loss(self, batch):
        self.hit("train")
        return super().policy_loss(batch)

    def save(self):
        numbers = self.actor.scalar_state

        def hit_before():
            self.hit("save")
            return numbers()

        self.actor.scalar_state = hit_before
        super().save()
        self.actor.scalar_state = numbers
