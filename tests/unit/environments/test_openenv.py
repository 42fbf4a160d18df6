"""An environment behind a real server of OpenEnv."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig
from lightrft.environments.episodes import Episodes, Failed

pytest.importorskip("openenv.core.env_server.http_server", reason="the package openenv is not installed")


@pytest.fixture
def server():
    """Address and process of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = Path(__file__).with_name("openenv_server.py")
    with subprocess.Popen([sys.executable, str(file), str(port)]) as process:
        for _ in range(600):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
        process.kill()


def test_sessions_of_a_server_are_episodes(server):
    url, process = server
    with Episodes(EnvironmentConfig(name="openenv", options={"url": url}, workers=0)) as episodes:
        (one, first), (two, second) = episodes.begin([(27, {}), (3, {})])
        assert first.messages[0]["content"] == "between 0 and 7"
        assert second.messages[0]["content"] == "between 0 and 3"
        wrong, right = episodes.step([(one, "3", False), (two, "3", False)])
        assert (wrong.messages[0]["content"], wrong.reward, wrong.done) == ("no, 1", 0.0, False)
        assert (right.messages, right.reward, right.done) == ((), 1.0, True)
        process.kill()
        process.wait()
        assert isinstance(episodes.step([(one, "7", False)])[0], Failed)


def test_a_field_that_no_observation_has_is_named(server):
    url, _ = server
    options = {"url": url, "observation": "text"}
    with Episodes(EnvironmentConfig(name="openenv", options=options, workers=0)) as episodes:
        ((_, found),) = episodes.begin([(27, {})])
    assert "environment.options.observation=text: the observation has" in found.reason
