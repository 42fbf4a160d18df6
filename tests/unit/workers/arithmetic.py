"""Functions for the tests of workers, of numbers alone: workers know nothing of rewards."""

import os
import re
import sys
import time


def load(name):
    return {
        "halve": halve,
        "sleep": time.sleep,
        "die": os._exit,
        "modules": modules,
        "say": str,
        "variable": os.environ.get,
        "hold": lambda size: len(bytearray(size)),
        "number": lambda _: os.getpid(),
        "stick": lambda text: re.match("(a+)+$", text),
    }[name]


def halve(number):
    return number / 2


def modules(start):
    return sorted(name for name in sys.modules if name.startswith(start))
