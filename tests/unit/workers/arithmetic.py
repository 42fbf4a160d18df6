"""Functions for the tests of workers, of numbers alone: workers know nothing of rewards."""

import os
import sys
import time


def load(name):
    return {"halve": halve, "sleep": time.sleep, "die": os._exit, "modules": modules, "say": str}[name]


def halve(number):
    return number / 2


def modules(start):
    return sorted(name for name in sys.modules if name.startswith(start))
