"""A run that is hit, by an ordinary trainer of a user.

$FAULT is KIND:PHASE:RANK; it happens once, in step 2.
"""

import os
import signal
import time
from pathlib import Path

from lightrft.strategy.memory import Phase
from lightrft.trainer.rl import RLTrainer

KINDS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": lambda: {}["no such key"],
    "stall": lambda: time.sleep(600),
    "slow": lambda: time.sleep(2),
}


class Faulty(RLTrainer):
    def __post_init__(self):
        super().__post_init__()
        self.done = 0
        self.sampler.progress = self.before("rollout", self.sampler.progress)
        self.learner.policy_loss = self.before("train", self.learner.policy_loss)
        self.actor.scalar_state = self.before("save", self.actor.scalar_state)

    def before(self, phase, call):
        def hit_first(*given):
            self.hit(phase)
            return call(*given)

        return hit_first

    def hit(self, phase):
        kind, where, rank = os.environ.get("FAULT", "none:none:0").split(":")
        if (where, int(rank), 1) == (phase, self.world.rank, self.done) and not Path("happened").exists():
            Path("happened").touch()
            time.sleep(
                0.2
            )  # what happens is rarely the first thing in a phase, and others hear of a phase a moment later
            KINDS[kind]()

    def train_step(self, step):
        found = super().train_step(step)
        self.done = step
        return found

    def score(self, trajectories):
        with self.sampler.memory_plan(Phase.SCORE):
            self.hit("score")
        return super().score(trajectories)
