"""A game as an environment: guess a word's length. One class with `reset` and `step`, as gymnasium has them.

lightrft train tiny --tasks.train episodes 1 --environment.name examples/environment.py:Length --environment.turn-tokens 6
"""

import random
import re

WORDS = ["tree", "house", "garden", "station", "elephant", "chocolate"]


class Length:
    """Says a word, and after each guess whether its length is more or less."""

    def reset(self, *, seed):
        """The first observation becomes the prompt. All responses of a group get the same seed."""
        self.word = random.Random(seed).choice(WORDS)
        return f"How many letters has {self.word}? Answer with a number.", {}

    def step(self, action):
        """Observation, reward, terminated, truncated, info: the reward of every turn is a part of the reward `environment`."""
        found = re.findall(r"\d+", action)
        if not found:
            return "Write a number.", -0.1, False, False, {"counts": {"no_number": 1}}
        guess = int(found[-1][:9])
        if guess == len(self.word):
            return "", 1.0, True, False, {}
        return ("It has more." if guess < len(self.word) else "It has less."), 0.0, False, False, {}
