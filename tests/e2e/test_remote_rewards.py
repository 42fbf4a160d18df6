"""Two programs: one serves rewards, the other trains by them."""

import re
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest

from tests.e2e.runs import PLAIN, steps, summary, wait_until

REWARDS = ["--rewards.functions", "same_kind", "1", "--rewards.workers", "0"]


@contextmanager
def served(lightrft, *flags, **variables):
    """The address of a `lightrft serve-rewards`, a process of its own."""
    running = lightrft.start("serve-rewards", *REWARDS, "--port", "0", *flags, env=variables)
    try:
        wait_until(lambda: "http" in running.output and running.output.endswith("\n"), running=running)
        yield re.findall(r"https?://\S+", running.output)[0]
    finally:
        running.send(signal.SIGTERM)
        ended = running.wait()
        assert ended.status == 0, ended.output


def far(address, *flags):
    return ["--remote.urls", "far", f"{address}#same_kind", "--rewards.functions", "far", "1", *flags]


def test_a_run_learns_by_a_reward_elsewhere_what_it_learns_by_its_own(lightrft, tmp_path):
    lightrft("train", "tiny", *PLAIN, "--rewards.functions", "same_kind", "1", "--run", "own")
    with served(lightrft) as address:
        lightrft("train", "tiny", *PLAIN, *far(address), "--run", "run")
    assert [row["reward/far"] for row in steps(tmp_path / "run")] == [
        row["reward/same_kind"] for row in steps(tmp_path / "own")
    ]
    assert summary(tmp_path / "run")["evaluation"] == summary(tmp_path / "own")["evaluation"]


def test_a_run_says_what_is_missing_when_nobody_serves(lightrft, tmp_path):
    retries = ["--remote.retries", "0"]
    said = lightrft("train", "tiny", *PLAIN, *far("http://localhost:9", *retries), "--run", "run", status=2)
    assert "reward 'far' failed on responses of task 'tiny': no server gave it in 1 attempts" in said


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_a_certificate_and_a_key_keep_others_out(lightrft, tmp_path):
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        [*make.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    flags = ["--key", "WORD", "--certificate", "cert.pem", "--private-key", "key.pem"]
    run = ["train", "tiny", *PLAIN, "--steps", "1"]
    with served(lightrft, *flags, WORD="secret") as address:
        assert address.startswith("https://")
        with_key = far(address, "--remote.key", "WORD", "--remote.retries", "0")
        trusted = {"SSL_CERT_FILE": str(tmp_path / "cert.pem")}
        stranger = lightrft.start(*run, *with_key, "--run", "stranger", env={"WORD": "secret"}).wait()
        assert (stranger.status, "CERTIFICATE_VERIFY_FAILED" in stranger.output) == (2, True), stranger.output
        known = lightrft.start(*run, *with_key, "--run", "known", env={"WORD": "secret", **trusted}).wait()
        assert known.status == 0, known.output
        keyless = lightrft.start(*run, *far(address), "--run", "keyless", env=trusted).wait()
        assert (keyless.status, "status 401" in keyless.output) == (2, True), keyless.output
    assert len(steps(tmp_path / "known")) == 1
