"""Environments of tests: what they reply is fixed by their seed."""

import random
import time
from typing import ClassVar


class Chatty:
    """Replies of random length for one to five turns, from both roles; gives each turn a reward."""

    def reset(self, *, seed, options):
        self.draw = random.Random(seed)
        self.left = self.draw.randint(1, 5)
        return "", {}

    def step(self, action):
        self.left -= 1
        words = "".join(self.draw.choice("abcdef 123") for _ in range(self.draw.randint(1, 40)))
        reply = [{"role": self.draw.choice(["user", "tool"]), "content": words}]
        return reply, self.draw.random(), self.left <= 0, False, {"counts": {"spoken": 1}}


class Forking:
    """Goes on, asks the prompt again, goes back to the first turn, and on where it was; the seed says what it replies."""

    PASTS = (None, (0, 0), None, (0, 1), (1, 2), None)

    def reset(self, *, seed, options):
        self.draw, self.turn = random.Random(seed), 0
        return "", {}

    def step(self, action):
        past = self.PASTS[self.turn]
        self.turn += 1
        words = "".join(self.draw.choice("abcdef 123") for _ in range(self.draw.randint(1, 20)))
        reply = [] if past == (0, 0) else [{"role": "user", "content": words}]
        info = {} if past is None else {"past": past}
        return reply, len(action) % 3, self.turn == len(self.PASTS), False, info


class Told:
    """The kind of characters that is wanted is told in the reply alone (datasets of task `told`)."""

    def __init__(self, blind=False):
        self.blind = blind

    def reset(self, *, options):
        self.clue, self.done = options["target"]["clue"], False
        return "", {}

    def step(self, action):
        self.done, done = True, self.done
        return "???" if self.blind else self.clue, 0.0, done, False, {}


class Moody:
    """Fails as its seed says: raises, hangs, dies, never, or always."""

    def __init__(self, kind="never", tries=None):
        self.kind, self.tries = kind, tries

    def reset(self, *, seed, options):
        self.id, self.turn = options["id"], 0
        if self.kind == "reset" and self.fails():
            raise KeyError("no day at all")
        return "", {}

    def step(self, action):
        self.turn += 1
        if self.turn == 2 and self.fails():
            if self.kind == "raise":
                raise KeyError("a bad day")
            if self.kind == "hang":
                time.sleep(60)
            if self.kind == "die":
                import os

                os._exit(3)
            if self.kind == "nan":
                return "", float("nan"), True, False, {}
        return f"turn {self.turn}", 1.0, self.turn == 3, False, {"counts": {"spoken": 1}}

    def fails(self):
        """Whether this one does: prompts with an odd number, so often as `tries` names a file that counts."""
        if int(self.id[-1]) % 2 == 0:
            return False
        if self.tries is None:
            return True
        from pathlib import Path

        file = Path(self.tries)
        count = int(file.read_text()) if file.exists() else 0
        file.write_text(str(count + 1))
        return count == 0


class Unseeded:
    """Begins as it likes."""

    begun = 0

    def reset(self, *, seed, options):
        Unseeded.begun += 1
        return f"number {Unseeded.begun}", {}

    def step(self, action):
        return "", 0.0, True, False, {}


class Opening:
    """Says something first, fixed by its seed."""

    def reset(self, *, seed):
        return f"The number begins with {seed % 10}.", {}

    def step(self, action):
        return "", 1.0, True, False, {}


class Instructs(Opening):
    """Says it as a system would."""

    def reset(self, *, seed):
        said, info = super().reset(seed=seed)
        return [{"role": "system", "content": said}], info


class Endless:
    """Never ends by itself, and has a reward for where it stands."""

    def reset(self):
        return "", {}

    def step(self, action):
        return "and then?", 1.0, False, False, {}

    def final_reward(self):
        return 5.0


class Changed(Moody):
    """Begins otherwise once one has failed."""

    words = "one"

    def reset(self, *, seed, options):
        super().reset(seed=seed, options=options)
        return Changed.words, {}

    def fails(self):
        failed = super().fails()
        Changed.words = "other" if failed else Changed.words
        return failed


class Witness:
    """Writes down what it is told and when it is closed; raises in its second turn, at first."""

    rows: ClassVar[list] = []
    closed = 0

    def reset(self, *, seed, options):
        Witness.rows.append(options["messages"])
        self.turn = 0
        return f"first {seed}", {}

    def step(self, action):
        self.turn += 1
        if self.turn == 2 and len(Witness.rows) == 4:
            raise KeyError("a bad day")
        return "half: \ud83d", 1.0, self.turn == 2, False, {}

    def close(self):
        Witness.closed += 1


class FailsHeldOut(Moody):
    """Fails for every second episode that is evaluated on."""

    def fails(self):
        return "/train/" not in self.id and int(self.id[-1]) % 2 == 1
