"""Fixtures shared with the tests of whole runs."""

from tests.e2e.conftest import lightrft, server

__all__ = ["lightrft", "server"]
