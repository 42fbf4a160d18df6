"""Copies of what prompts show: small, once each, within a limit, and without a path of the machine."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from lightrft.console.web import answers
from lightrft.console.web.one_file import export
from lightrft.datasets import response_file
from lightrft.runs import trajectories
from lightrft.runs.layout import RunFolder
from lightrft.runs.media import MediaCopies
from lightrft.runs.reader import Run
from lightrft.testing import tiny_trajectories

images = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")


def asked(parts, answers_=1):
    made = tiny_trajectories([(3, [2] * answers_)])
    prompt = replace(
        made[0].prompt, messages=[{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]
    )
    return [replace(t, prompt=prompt, reward=1.0, answer="x") for t in made]


@pytest.fixture
def parts(tmp_path):
    """A picture, a sound and a clip in a folder of the machine, and a file that is none."""
    place = tmp_path / "private"
    place.mkdir()
    images.new("RGB", (900, 300), (255, 0, 0)).save(place / "a.jpg")
    wave = np.sin(np.arange(40 * 8000) * 0.3).astype(np.float32) / 2
    soundfile.write(place / "b.wav", wave, 8000)
    frames = [np.full((20, 30, 3), 60 * n, np.uint8) for n in range(4)]
    (place / "secret.png").write_text("password")
    return [
        {"type": "image", "image": str(place / "a.jpg")},
        {"type": "audio", "audio": str(place / "b.wav")},
        {"type": "video", "video": {"frames": frames, "fps": 2.0}},
        {"type": "image", "image": str(place / "secret.png")},
    ]


def decoded(url, kind):
    assert url.startswith(f"data:{kind};base64,")
    return io.BytesIO(base64.b64decode(url.partition(",")[2]))


def test_pictures_sounds_and_clips_are_shown_from_copies_when_their_files_are_gone(tmp_path, parts):
    run = tmp_path / "run"
    copies = MediaCopies(RunFolder(run).media, 64.0)
    for step in (1, 2):
        trajectories.save(run, step, asked(parts, 2), media=copies)
    assert len(list(RunFolder(run).media.iterdir())) == 3, "each once, of all steps and siblings"
    for name in ("a.jpg", "b.wav"):
        (tmp_path / "private" / name).unlink()
    picture, sound, clip, other = answers.answer([Run(run)], "0/pictures/2/1")["asked"]
    assert images.open(decoded(picture["url"], "image/png")).size == (443, 147)
    samples, rate = soundfile.read(decoded(sound["url"], "audio/ogg"))
    assert (rate, len(samples)) == (16_000, 30 * 16_000), "the first half minute"
    moving = images.open(decoded(clip["url"], "image/webp"))
    assert (moving.n_frames, moving.size) == (4, (30, 20))
    assert "no copy of it was kept" in other["missing"]
    assert (picture["name"], sound["name"]) == ("a.jpg", "b.wav")
    told = json.dumps([answers.answer([Run(run)], "0/groups/1"), trajectories.load(run, 1)])
    assert str(tmp_path / "private") not in told
    assert "password" not in told
    export([Run(run)], tmp_path / "run.html", 20.0)
    assert "0/pictures/1/0" in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize("mib", [0.0, 0.00005])
def test_beyond_the_limit_only_names_are_kept(tmp_path, parts, mib):
    copies = MediaCopies(RunFolder(tmp_path).media, mib)
    trajectories.save(tmp_path, 1, asked(parts), media=copies)
    assert not RunFolder(tmp_path).media.is_dir() or not list(RunFolder(tmp_path).media.iterdir())
    (message,) = trajectories.load(tmp_path, 1)[0]["messages"]
    assert [part.get("copy") for part in message["content"]] == ["", "", "", "", None]
    assert message["content"][0]["image"] == "a.jpg"


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/passwd", "0123456789abcdef.html", ""])
def test_a_copy_leads_to_no_other_file(tmp_path, parts, name):
    file = trajectories.save(tmp_path, 1, asked(parts), media=MediaCopies(RunFolder(tmp_path).media, 64.0))
    rows = trajectories.load(tmp_path, 1)
    rows[0]["messages"][0]["content"][0]["copy"] = name
    with file.open("wb") as opened:
        response_file.write(opened, rows)
    first, *_ = answers.answer([Run(tmp_path)], "0/pictures/1/0")["asked"]
    assert "no copy of it was kept" in first["missing"]
