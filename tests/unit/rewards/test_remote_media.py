"""Pictures, clips and sounds sent for rewards over HTTP: read there as here, or refused by name; nothing sent names a file or an address."""

import base64
import io
import json

import numpy
import pytest
from PIL import Image

from lightrft.config import RemoteConfig, RewardConfig
from lightrft.media.parts import read_media
from lightrft.media.sources import Limits, MediaError
from lightrft.rewards import service
from lightrft.rewards.base import RewardRunner, seen, stripped
from lightrft.rewards.models import Output
from lightrft.rewards.remote import RemoteReward
from lightrft.rewards.wire import MOST_FRAMES, MOST_IN_ANSWER, Sent, named, read_table, resolved
from lightrft.types import Prompt, Trajectory
from lightrft.workers.pool import Failure
from tests.unit.rewards.test_remote import ANY_TASK, post, serving

HOW = {"max_pixels": 0, "fps": 2.0, "max_frames": 4, "max_seconds": 0, "rate": 8000}
DRAW = numpy.random.default_rng(3)
PIXELS = DRAW.integers(0, 256, (6, 5, 3), dtype=numpy.uint8)


def png(pixels=PIXELS):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def asking(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


def part(kind, source):
    return {"type": kind, kind: source}


def arrived(messages, limits=Limits()):  # noqa: B008  # frozen
    """What the other side reads, after a way through JSON."""
    sent = Sent(limits)
    body = json.loads(json.dumps({"messages": sent.messages(messages), "media": sent.table}))
    return resolved(body["messages"], read_table(body["media"]))


@pytest.mark.parametrize(
    "source",
    [
        png(),
        {"bytes": png(), "path": "a.png"},
        Image.fromarray(PIXELS),
        PIXELS,
        "data:image/png;base64," + base64.b64encode(png()).decode(),
    ],
    ids=["bytes", "table", "picture", "array", "data"],
)
def test_a_picture_is_there_what_it_is_here(source):
    (found,) = read_media(arrived(asking(part("image", source))), **HOW).images
    assert numpy.array_equal(numpy.asarray(found), PIXELS)


def test_files_are_sent_and_their_names_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    messages = arrived(asking(part("image", str(tmp_path / "a.png"))))
    assert messages[0]["content"][0]["image"] == {"bytes": png(), "path": str(tmp_path / "a.png")}


@pytest.mark.parametrize("fps", [None, 3.0])
def test_a_clip_of_pictures_has_the_same_frames_at_the_same_times(fps):
    frames = [DRAW.integers(0, 256, (4, 4, 3), dtype=numpy.uint8) for _ in range(9)]
    source = frames if fps is None else {"frames": frames, "fps": fps}
    messages = asking(part("video", source))
    (here,), (there,) = (read_media(one, **HOW).videos for one in (messages, arrived(messages)))
    assert numpy.array_equal(here.frames, there.frames)
    assert (here.seconds, here.fps, here.duration) == (there.seconds, there.fps, there.duration)


def test_a_clip_of_a_file_is_sent_as_it_is(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for n in range(8):
            frame = av.VideoFrame.from_ndarray(numpy.full((32, 32, 3), 20 * n, numpy.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    messages = asking(part("video", str(tmp_path / "a.mp4")))
    (here,), (there,) = (read_media(one, **HOW).videos for one in (messages, arrived(messages)))
    assert numpy.array_equal(here.frames, there.frames)


@pytest.mark.parametrize("dtype", [numpy.int16, numpy.float32])
def test_a_sound_has_the_same_samples(dtype, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    samples = (DRAW.uniform(-0.5, 0.5, (400, 2)) * (32767 if dtype is numpy.int16 else 1)).astype(dtype)
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    for source in ({"array": samples, "sampling_rate": 8000}, str(tmp_path / "a.wav")):
        messages = asking(part("audio", source))
        (here,), (there,) = (read_media(one, **HOW).audios for one in (messages, arrived(messages)))
        assert numpy.array_equal(here, there)


def test_siblings_share_a_medium():
    sent, source = Sent(), png()
    for _ in range(8):
        sent.messages(asking(part("image", source)))
    assert len(sent.table) == 1
    assert sent.size == len(base64.b64encode(source))


def test_a_medium_that_is_too_large_or_not_there_is_refused_here():
    with pytest.raises(MediaError, match=r"more than media\.max_megabytes=1e-05"):
        arrived(asking(part("image", png())), Limits(megabytes=1e-5))
    with pytest.raises(MediaError, match="no such file"):
        arrived(asking(part("image", "/nowhere.png")))
    with pytest.raises(MediaError, match="rate is not stated"):
        arrived(asking(part("audio", {"array": [0.0], "sampling_rate": None})))


def brightness(answers):
    """The mean of a picture, as a reward model would read it."""
    found = []
    for answer in answers:
        try:
            (image,) = read_media(answer.prompt.messages, **HOW).images
        except MediaError as error:
            found.append(Failure(str(error)))
        else:
            found.append(float(numpy.asarray(image).mean()))
    return found


def responses(*sources):
    """Two to each picture."""
    prompts = [
        Prompt(f"q{n}", [], asking(part("image", source)), None, ANY_TASK) for n, source in enumerate(sources)
    ]
    return [
        Trajectory(prompt, n, [], [], [], "stop", answer="x")
        for n, prompt in enumerate(prompts)
        for _ in "12"
    ]


def far(url, trajectories, *, send_media=True, limits=Limits(), **settings):  # noqa: B008  # frozen
    view = seen if send_media else stripped
    config = RemoteConfig(urls={"far": f"{url}#bright"}, send_media=send_media, retries=0, **settings)
    return RemoteReward("far", config, limits)([view(t) for t in trajectories])


@pytest.fixture
def bright():
    """A server whose reward reads pictures."""
    rewards = {ANY_TASK: {"bright": 1.0}}
    models = {"bright": Output(brightness, sees_media=True)}
    runner = RewardRunner(rewards, RewardConfig(workers=0, on_failure="drop"), models)
    with serving(runner=runner) as (url, server):
        yield url, server


def test_what_is_seen_there_is_what_is_seen_here(bright):
    sources = [png(numpy.full((3, 3, 3), 30 * n, numpy.uint8)) for n in range(6)]
    found = far(bright[0], responses(*sources), batch=4)
    assert found == [30.0 * n for n in range(6) for _ in "12"]


def test_a_picture_that_cannot_be_sent_or_read_costs_its_own_responses_alone(bright):
    dark = png(numpy.zeros((2, 2, 3), numpy.uint8))
    found = far(bright[0], responses(dark, "/nowhere.png", png()[:60], dark))
    assert [one for one in found if not isinstance(one, Failure)] == [0.0] * 4
    assert "its media cannot be sent: /nowhere.png: no such file" in found[2].reason
    assert "the server's reward failed on it" in found[4].reason


def test_too_much_for_one_request_goes_in_several(bright, monkeypatch):
    monkeypatch.setattr("lightrft.rewards.remote.MOST_SENT", 120)
    sources = [png(numpy.full((1, 1, 3), 10 * n, numpy.uint8)) for n in range(3)]
    assert far(bright[0], responses(*sources)) == [0.0, 0.0, 10.0, 10.0, 20.0, 20.0]
    (one, _) = far(bright[0], responses(png()))
    assert "more than a request may have (120)" in one.reason


def test_without_media_sent_their_names_are_told():
    told = named(asking(part("image", "cat.png"), part("audio", {"bytes": b"x", "path": "a.wav"})))
    assert [one["text"] for one in told[0]["content"]] == ["[image cat.png]", "[audio a.wav]", "?"]
    with serving() as (url, _):
        config = RemoteConfig(urls={"far": url})
        prompt = Prompt("q", [], asking(part("image", "cat.png")), "1", ANY_TASK)
        one = Trajectory(prompt, 0, [], [], [], "stop", answer="1")
        assert RemoteReward("far", config)([stripped(one)]) == [1.0]


PICTURE = {"base64": base64.b64encode(png()).decode()}
PLAYLIST = {"base64": base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n").decode()}


@pytest.mark.parametrize(
    ("media", "content", "told"),
    [
        ("x", [], "media: expected a list"),
        ([PICTURE] * 1025, [], "at most 1024"),
        (["/etc/passwd"], [], "media[0]: expected {base64"),
        ([{"path": "/etc/passwd"}], [], "media[0]: expected {base64"),
        ([{"base64": "aGk=", "path": "/etc/passwd"}], [], "media[0]: expected {base64"),
        ([{"base64": "aGk=", "frames": ["aGk="]}], [], "media[0]: expected {base64"),
        ([{"base64": 7}], [], "media[0]: expected bytes in base64"),
        ([{"base64": "http://169.254.169.254/"}], [], "media[0]: expected bytes in base64"),
        ([{"base64": "a\nGk="}], [], "media[0]: expected bytes in base64"),
        ([{"base64": ""}], [], "media[0]: there are no bytes"),
        ([{**PICTURE, "name": 3}], [], "media[0]: name"),
        ([{"frames": []}], [], "frames: expected a list of 1 to"),
        ([{"frames": ["aGk="] * (MOST_FRAMES + 1)}], [], "frames: expected a list of 1 to"),
        ([{"frames": ["/etc/passwd "]}], [], "media[0].frames[0]: expected bytes"),
        ([{"frames": ["aGk="], "fps": 0}], [], "fps: expected a number"),
        ([{"frames": ["aGk="], "fps": True}], [], "fps: expected a number"),
        ([{"frames": ["aGk="], "fps": 1e300}], [], "fps: expected a number"),
        ([PICTURE], [part("image", "/etc/passwd")], "image: expected the place"),
        ([PICTURE], [part("image", 1)], "image: expected the place"),
        ([PICTURE], [part("image", -1)], "image: expected the place"),
        ([PICTURE], [part("image", False)], "image: expected the place"),
        ([PICTURE], [part("image", 10**30)], "image: expected the place"),
        ([PICTURE], [part("image", {"bytes": "x"})], "image: expected the place"),
        ([PICTURE], [part("program", 0)], "a part of the type 'program'"),
        ([PICTURE], [part("text", 0)], "a part of the type 'text'"),
        ([PICTURE], ["x"], "a part of the type None"),
        ([PICTURE], [part("image", 0)] * (MOST_IN_ANSWER + 1), f"at most {MOST_IN_ANSWER}"),
        ([PICTURE], [part("video", 0)], "no file of a clip"),
        ([PLAYLIST], [part("video", 0)], "no file of a clip"),
        ([{"frames": ["aGk="]}], [part("image", 0)], "image: media[0] is a clip"),
    ],
)
def test_what_is_no_medium_is_refused_and_the_server_goes_on(bright, media, content, told):
    url = bright[0]
    body = {"media": media, "answers": [{"messages": asking(*content), "answer": "x"}]}
    status, said = post(url, "/rewards", body)
    assert (status, told in said["error"]) == (400, True), said
    good = {"media": [PICTURE], "answers": [{"messages": asking(part("image", 0)), "answer": "x"}]}
    assert post(url, "/rewards", good) == (200, {"rewards": {"bright": [float(PIXELS.mean())]}})


@pytest.mark.parametrize(
    "content", [b"no picture", b"%!PS-Adobe-3.0\n", png()[:50], b"\x89PNG\r\n\x1a\n" * 9]
)
def test_a_picture_that_is_none_has_no_reward(bright, content):
    broken = {"base64": base64.b64encode(content).decode()}
    body = {"media": [broken], "answers": [{"messages": asking(part("image", 0)), "answer": "x"}]}
    assert post(bright[0], "/rewards", body) == (200, {"rewards": {"bright": [None]}})


def test_media_stand_in_prompts_alone(bright):
    said = [{"role": "tool", "content": [part("image", 0)]}]
    body = {"media": [PICTURE], "answers": [{"messages": asking(), "answer": "x", "said": said}]}
    status, told = post(bright[0], "/rewards", body)
    assert (status, told["error"]) == (400, "answers[0]: said: expected a list of {role, content}")


def test_requests_together_take_no_more_memory_than_there_is_room_for(bright, monkeypatch):
    url, server = bright
    monkeypatch.setattr(service, "MOST_READING", 100)
    body = {"answers": [{"messages": asking(), "answer": "x" * 90}]}
    assert post(url, "/rewards", body)[0] == 429
    monkeypatch.setattr(server, "most_bytes", 100)
    assert post(url, "/rewards", body)[0] == 413
    assert server._reading == 0


def test_a_form_without_a_place_for_media_is_refused():
    with pytest.raises(ValueError, match=r"remote\.send_media=true with remote\.protocol=openrlhf"):
        RemoteConfig(urls={"far": "http://localhost:1"}, protocol="openrlhf", send_media=True)
