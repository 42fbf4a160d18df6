"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# The models here are so small that a second thread only waits; on a shared machine it waits at everybody's cost.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
