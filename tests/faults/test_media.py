"""Odd media: read right, or refused by a MediaError that names them; made here with PyAV, nothing is downloaded."""

import contextlib
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lightrft.config import ModelConfig, TaskConfig
from lightrft.datasets.formats import FORMATS
from lightrft.datasets.sources import BadRecords
from lightrft.media.clips import clip
from lightrft.media.pictures import picture
from lightrft.media.sounds import sound
from lightrft.media.sources import Limits, MediaError
from lightrft.models.load import load_processor
from lightrft.tasks.base import records
from lightrft.types import Record

av = pytest.importorskip("av")
RATE = 44_100


def tone(seconds):
    times = np.arange(int(RATE * seconds)) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def mp3(path, seconds, *, header, kind="mp3"):
    options = {"write_xing": str(int(header))} if kind == "mp3" else {}
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        whole = av.AudioFrame.from_ndarray(
            (tone(seconds)[None] * 32767).astype("int16"), format="s16", layout="mono"
        )
        whole.sample_rate = RATE
        for frame in av.AudioResampler(format="s16p", layout="mono", rate=RATE).resample(whole):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


@pytest.mark.parametrize(("header", "kind"), [(False, "mp3"), (True, "mp3"), (False, "wav")])
def test_mpeg_audio_is_read_to_its_end_whatever_its_header_says(tmp_path, header, kind):
    found = sound(mp3(tmp_path / f"a.{kind}", 5.3, header=header, kind=kind), rate=RATE, max_seconds=0)
    assert len(found) / RATE == pytest.approx(5.3, abs=0.06)
    assert 0.2 < np.abs(found[-RATE:-2000]).max() < 0.4, "the end is there, at its volume"
    with pytest.raises(MediaError, match="too long"):
        sound(mp3(tmp_path / f"a.{kind}", 5.3, header=header, kind=kind), rate=RATE, max_seconds=2)


def film(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 30
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 16 + 7 * number, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def trimmed(source, path, start):
    """As `ffmpeg -ss START -c copy`: the packets since the last key frame stay, and an edit list hides them."""
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                away = int(start / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - away, packet.dts - away, stream
                made.mux(packet)
    return str(path)


def shown(path):
    found = clip(path, fps=10, max_frames=100, max_pixels=0)
    return len(found.frames), int(found.frames[0, 0, 0, 0]), int(found.frames[-1, 0, 0, 0])


def test_a_trimmed_clip_shows_what_its_edit_list_leaves(tmp_path):
    whole = film(tmp_path / "base.mp4")
    assert shown(str(whole))[0] == 30
    count, first, last = shown(trimmed(whole, tmp_path / "edit.mp4", 1.55))
    assert count in (14, 15)
    assert first > 110
    assert last > 210


def test_a_clip_that_was_cut_off_is_refused(tmp_path):
    raw = film(tmp_path / "base.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(MediaError, match="cut.mkv: cut off after 2.. of 3.0 seconds"):
        shown(str(tmp_path / "cut.mkv"))


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1, "16000", [], 1e9, True])
def test_a_rate_that_is_none_is_refused_and_hangs_nothing(rate):
    with pytest.raises(MediaError, match="the rate is"):
        sound({"array": [0.0] * 100, "sampling_rate": rate}, rate=16_000, max_seconds=0)


@pytest.mark.parametrize(
    "source", ["A" * 60_000, "data/\0", "~nobody/x.wav", {"array": [[1, 2], [3]], "sampling_rate": 16_000}]
)
def test_what_is_no_source_is_refused_in_a_short_line(source):
    with pytest.raises(MediaError) as error:
        sound(source, rate=16_000, max_seconds=0)
    assert len(str(error.value)) < 400


def test_frames_whose_rate_is_no_number_are_refused():
    with pytest.raises(MediaError, match="the rate is nan"):
        clip(
            {"frames": [np.zeros((4, 4, 3), np.uint8)], "fps": float("nan")},
            fps=1,
            max_frames=2,
            max_pixels=0,
        )


def test_a_file_may_be_named_by_its_url(tmp_path):
    place = mp3(tmp_path / "a b.mp3", 1, header=True)
    assert len(sound(f"file://{place.replace(' ', '%20')}", rate=RATE, max_seconds=0)) > 40_000


def test_postscript_is_no_picture(tmp_path):
    (tmp_path / "picture.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(MediaError, match="not a picture of a kind"):
        picture(str(tmp_path / "picture.png"), max_pixels=0)


@pytest.fixture(scope="module")
def sees():
    return load_processor(ModelConfig(path="random:llava"))


@pytest.fixture(scope="module")
def hears():
    return load_processor(ModelConfig(path="random:qwen2_audio"))


def record(content):
    return Record("r", [{"role": "user", "content": content}], "x", "t")


def test_a_text_that_speaks_of_a_mark_is_named(sees):
    with pytest.raises(ValueError, match="'<image>', which the model takes for its own mark of image"):
        sees.prompt(record("what does <image> mean?"))


def test_a_sound_too_short_to_be_heard_is_named(hears):
    prompt = hears.prompt(
        record([{"type": "audio", "audio": {"array": [0.1] * 160, "sampling_rate": 16_000}}])
    )
    with pytest.raises(MediaError, match="r: "):
        hears.open(prompt)


def test_plain_text_templates_join_parts():
    plain = load_processor(ModelConfig(path="random:llava", chat_template="plain"))
    assert plain.rendered([{"role": "user", "content": "hello"}]) == "hello\n"


def png(size):
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", size).save(data, "PNG")
    return data.getvalue()


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    limits = Limits(megapixels=0.5)
    assert picture(png((1000, 500)), max_pixels=0, limits=limits).size == (1000, 500)
    with pytest.raises(MediaError, match=r"1000 x 501 pixels are too many .media.max_megapixels=0.5."):
        picture(png((1000, 501)), max_pixels=0, limits=limits)


class Stranger(BaseHTTPRequestHandler):
    """A server that answers by the path: a picture, more than is wanted, slowly, or by sending on."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/a.png")
            self.end_headers()
            return
        with contextlib.suppress(OSError):
            if self.path == "/late":
                for letter in b"HTTP/1.0 200 OK" * 100:
                    self.wfile.write(bytes([letter]))
                    time.sleep(0.1)
            self.send_response(200)
            self.end_headers()
            if self.path == "/a.png":
                self.wfile.write(png((4, 4)))
            while self.path == "/endless":
                self.wfile.write(b"0" * 65536)
            while self.path == "/drip":
                self.wfile.write(b"0")
                time.sleep(0.1)


@pytest.fixture
def stranger():
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        server.asked = []
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, *hosts):
    limits = Limits(hosts, megabytes=1, seconds=1)
    return picture(f"http://127.0.0.1:{server.server_port}{path}", max_pixels=0, limits=limits)


def test_no_address_is_fetched_that_no_setting_lists(stranger):
    for hosts in ((), ("example.org",)):
        with pytest.raises(
            MediaError, match=r"a.png: records may not fetch from '127.0.0.1'.*--media.urls 127.0.0.1"
        ):
            get(stranger, "/a.png", *hosts)
    assert stranger.asked == []
    assert get(stranger, "/a.png", "127.0.0.1").size == get(stranger, "/a.png", "*").size == (4, 4)


def test_a_server_may_not_send_on_to_another_host(stranger):
    with pytest.raises(MediaError, match="may not fetch from 'localhost'"):
        get(stranger, "/away", "127.0.0.1")
    assert stranger.asked == ["/away"]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/endless", "more than media.max_megabytes=1"),
        ("/drip", "not fetched within media.fetch_seconds=1"),
        ("/late", "not fetched within media.fetch_seconds=1"),
    ],
)
def test_a_fetch_ends_whatever_the_server_does(stranger, path, complaint):
    start = time.monotonic()
    with pytest.raises(MediaError, match=complaint):
        get(stranger, path, "127.0.0.1")
    assert time.monotonic() - start < 3


def placed(source, folder, **settings):
    row = {"prompt": "what?", "image": source, "target": "x"}
    bad = BadRecords("raise")
    found = records(
        [("a.jsonl:1", row)],
        FORMATS["columns"],
        TaskConfig(**settings),
        bad,
        source="t",
        instruction="",
        folder=folder,
    )
    return found[0].messages[0]["content"][0]["image"]


@pytest.mark.parametrize(
    "source",
    [
        "/etc/hostname",
        "../a.png",
        "b/../../a.png",
        "~/a.png",
        "file:///etc/hostname",
        {"path": "/etc/hostname"},
    ],
)
def test_a_record_names_files_below_its_data_alone(tmp_path, source):
    with pytest.raises(ValueError, match=r"a.jsonl:1: .* lies outside .*tasks.media_root"):
        placed(source, tmp_path / "data")
    assert placed(source, tmp_path / "data", media_root="/")


def test_files_below_the_data_are_named_as_ever(tmp_path):
    assert placed("b/../a.png", tmp_path) == f"{tmp_path}/b/../a.png"
    assert placed(f"{tmp_path}/a.png", tmp_path) == f"{tmp_path}/a.png"
    assert placed("http://x/a.png", tmp_path) == "http://x/a.png"
