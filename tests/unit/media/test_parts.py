import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from lightrft.media.parts import (
    Made,
    Media,
    MediaError,
    described,
    has_media,
    located,
    parts,
    read_media,
    readable,
)

Image = pytest.importorskip("PIL.Image", reason="needs the extra media")
soundfile = pytest.importorskip("soundfile", reason="needs the extra media")
av = pytest.importorskip("av", reason="needs the extra media")
pytest.importorskip("soxr", reason="needs the extra media")

REAL = Path(__file__).resolve().parents[4] / "shared/data/video/clips"
STEP = 6
"""Grey levels from one frame to the next, more than a lossy codec blurs."""
RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def said(*contents):
    return [{"role": "user", "content": list(contents)}]


def read(kind, source, **changes) -> Media:
    options = {"max_pixels": 0, "fps": 1.0, "max_frames": 16, "max_seconds": 0.0, "rate": 16_000} | changes
    return read_media(said({"type": kind, kind: source}), **options)


def image(source, **changes):
    return read("image", source, **changes).images[0]


def video(source, **changes):
    return read("video", source, **changes).videos[0]


def audio(source, **changes):
    return read("audio", source, **changes).audios[0]


def encoded(picture, kind="png", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def tone(rate, seconds=1.0, pitch=440.0):
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def write_clip(path, seconds=4, fps=10, size=(64, 32), codec="mpeg4"):
    """The grey level of each frame tells its number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 8_000_000
        for number in range(seconds * fps):
            frame = np.full((size[1], size[0], 3), STEP * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(found):
    return [round(float(frame.mean()) / STEP) for frame in found.frames]


def test_parts_are_found_in_order():
    messages = [
        {"role": "system", "content": "Look."},
        *said(
            {"type": "image", "image": "a.png"},
            {"type": "text", "text": "and"},
            {"type": "audio", "audio": b"x"},
        ),
        *said({"type": "video", "video": "b.mp4"}),
    ]
    assert parts(messages) == [("image", "a.png"), ("audio", b"x"), ("video", "b.mp4")]
    assert has_media(messages)
    assert not has_media(messages[:1])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "smell", "smell": 1}, "has the type 'smell'; there are: text, image, video, audio"),
        ("image", "has the type None"),
        ({"type": "image"}, "a part of type image lacks its source"),
        ({"type": "image", "image": None, "text": "x"}, "a part of type image lacks its source"),
        ({"type": "text"}, "a part of type text lacks its source"),
        ({"type": "text", "text": 5}, "a part of type text holds a int"),
    ],
)
def test_a_part_that_is_none_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        parts(said(part))


def test_relative_paths_are_put_below_the_folder_and_nothing_else_is_changed():
    kept = [
        "/a.png",
        "~/a.png",
        "http://x/a.png",
        "data:,x",
        b"a",
        {"bytes": b"a", "path": "a.png"},
        np.zeros(3),
    ]
    changed = ["a.png", Path("a.png"), {"bytes": None, "path": "a.png"}, ["a.png", b"b"]]
    messages = said(*({"type": "video", "video": source} for source in kept + changed))
    found = [source for _, source in parts(located(messages, Path("/data")))]
    assert repr(found[: len(kept)]) == repr(kept)
    assert found[len(kept) :] == [
        "/data/a.png",
        Path("/data/a.png"),
        {"bytes": None, "path": "/data/a.png"},
        ["/data/a.png", b"b"],
    ]
    assert messages[0]["content"][len(kept)]["video"] == "a.png"


def test_nothing_is_read_before_read_media():
    def explode():
        raise AssertionError

    messages = said(
        {"type": "image", "image": Made("a bomb", explode)}, {"type": "image", "image": "none.png"}
    )
    assert described(located(messages, Path("/nowhere")))[0]["content"] == [
        {"type": "image", "image": "a bomb"},
        {"type": "image", "image": "/nowhere/none.png"},
    ]


def test_described_messages_hold_only_text():
    sources = [
        b"x",
        {"array": [0.0], "sampling_rate": 1},
        {"bytes": b"x", "path": "a.wav"},
        "data:audio/wav;base64,AAAA",
    ]
    messages = described(said(*({"type": "audio", "audio": source} for source in sources)))
    assert [source for _, source in parts(messages)] == [
        "bytes",
        "a dict with array, sampling_rate",
        "a.wav",
        "data:audio/wav;base64,AA...",
    ]


def test_a_content_is_readable_as_one_text():
    (message,) = said({"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"})
    assert readable(message["content"]) == "[image a.png]What is it?"
    assert readable("What?") == "What?"


def test_nulls_of_a_table_without_gaps_are_left_out():
    messages = located(said({"type": "text", "text": "x", "image": None}), Path("/data"))
    assert messages[0]["content"] == [{"type": "text", "text": "x"}]


def test_every_source_of_a_picture_gives_the_same_pixels(tmp_path):
    original = Image.new("RGB", (4, 2), RED)
    data = encoded(original)
    (tmp_path / "a.png").write_bytes(data)
    sources = [
        original,
        data,
        np.asarray(original),
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        {"bytes": data, "path": "b.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        "data:image/png;base64," + base64.b64encode(data).decode(),
        Made("red", lambda: data),
    ]
    for source in sources:
        found = image(source)
        assert (found.mode, found.size) == ("RGB", (4, 2)), source
        assert found.getpixel((3, 1)) == RED, source


@pytest.mark.parametrize(
    ("size", "small"), [((200, 100), (20, 10)), ((30, 30), (14, 14)), ((1000, 1), (200, 1))]
)
def test_a_large_picture_is_scaled_down_in_its_shape(size, small):
    assert image(Image.new("RGB", size), max_pixels=200).size == small
    assert image(Image.new("RGB", size)).size == size


def test_a_small_picture_is_not_scaled():
    assert image(Image.new("RGB", (20, 10)), max_pixels=200).size == (20, 10)


def test_a_picture_taken_with_a_turned_camera_is_turned_upright():
    picture = Image.new("RGB", (20, 10), BLUE)
    picture.paste(RED, (0, 0, 10, 10))
    turned = Image.Exif()
    turned[0x0112] = 6
    found = image(encoded(picture, exif=turned))
    assert found.size == (10, 20)
    assert (found.getpixel((5, 2)), found.getpixel((5, 17))) == (RED, BLUE)


def test_transparent_pixels_become_white():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    assert [image(encoded(half)).getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_a_palette_with_a_transparent_colour_is_understood():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 255, 0, *RED])
    palette.putpixel((1, 0), 1)
    found = image(encoded(palette, transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_sixteen_bits_are_scaled_not_cut_off():
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert [image(encoded(grey)).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_grey_black_and_white_and_print_colours_become_rgb():
    for mode in ("L", "1", "LA", "CMYK", "YCbCr"):
        assert image(Image.new(mode, (2, 2))).mode == "RGB", mode


def test_the_picture_given_is_not_changed():
    given = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    image(given, max_pixels=50)
    assert (given.mode, given.size) == ("RGBA", (20, 10))


def bomb():
    """A PNG of a few bytes that claims to be 30000 x 30000."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.png", r"/nowhere/a\.png: no such file"),
        (b"", "bytes: no bytes in it"),
        (b"hello", "bytes: not a picture of a kind that PIL reads"),
        (encoded(Image.effect_noise((64, 64), 50))[:-800], r"bytes: broken or cut off"),
        (encoded(Image.effect_noise((64, 64), 50), "jpeg")[:-800], r"bytes: broken or cut off"),
        ({"bytes": b"hello", "path": "a.png"}, r"a\.png: not a picture"),
        (5, "int: a int is not a source"),
        ({"path": None}, "a NoneType is not a source"),
        (np.zeros((4, 4, 3)), r"ndarray: an array \(4, 4, 3\) of float64; a picture needs uint8"),
        (np.zeros((4, 4, 7), np.uint8), r"ndarray: an array \(4, 4, 7\) is no picture"),
        (np.zeros((0, 4, 3), np.uint8), r"a picture needs uint8 numbers"),
        (Image.new("F", (2, 2)), "real numbers of unknown range"),
        (bomb(), "bytes: too large"),
        (Made("a drawing", lambda: b"hello"), "a drawing: not a picture"),
        ("http://127.0.0.1:9/a.png", r"http://127\.0\.0\.1:9/a\.png: records may not fetch from '127.0.0.1'"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named_with_the_reason(source, message):
    with pytest.raises(MediaError, match=message):
        image(source)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"a\.png: the file is empty"):
        image(tmp_path / "a.png")


def loudest_pitch(samples, rate):
    return np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_resampling_keeps_pitch_loudness_and_length(rate):
    found = audio({"array": tone(rate), "sampling_rate": rate})
    assert found.dtype == np.float32
    assert found.shape == (16_000,)
    assert loudest_pitch(found, 16_000) == 440
    assert np.abs(found[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_every_kind_of_file_gives_the_tone(tmp_path, kind):
    soundfile.write(tmp_path / f"a.{kind}", tone(16_000), 16_000)
    found = audio(tmp_path / f"a.{kind}")
    assert len(found) == pytest.approx(16_000, abs=1200)  # mp3 and ogg are written in blocks
    assert loudest_pitch(found, 16_000) == pytest.approx(440, abs=2)
    assert np.array_equal(found, audio((tmp_path / f"a.{kind}").read_bytes()))


def test_channels_are_averaged_whichever_way_the_array_lies():
    both = np.stack([tone(16_000), np.zeros(16_000, np.float32)])
    for array in (both, both.T, both.T.tolist()):
        np.testing.assert_allclose(
            audio({"array": array, "sampling_rate": 16_000}), tone(16_000) / 2, atol=1e-7
        )


def test_whole_numbers_are_scaled_by_the_range_of_their_type():
    for array in (np.array([-32768, 0, 16384], np.int16), np.array([0, 128, 192], np.uint8)):
        assert audio({"array": array, "sampling_rate": 16_000}).tolist() == [-1, 0, 0.5]


def wave(samples=None, rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, tone(rate) if samples is None else samples, rate, format="wav")
    return file.getvalue()


def flac():
    file = io.BytesIO()
    soundfile.write(file, tone(16_000), 16_000, format="flac")
    return file.getvalue()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.wav", r"/nowhere/a\.wav: no such file"),
        (b"hello", "bytes: broken, or not a sound of a kind that libsndfile reads"),
        (wave()[:-1000], "bytes: cut off after 31044 of 32044 bytes"),
        (flac()[:-1000], "bytes: (broken|cut off)"),
        (wave(np.zeros(0)), "bytes: the sound is empty"),
        ({"array": [], "sampling_rate": 16_000}, "the sound is empty"),
        ({"array": [0.0, float("nan")], "sampling_rate": 16_000}, "some samples are not finite"),
        ({"array": [0.0, 0.0]}, "the rate is not stated"),
        (tone(16_000), "ndarray: the rate is not stated"),
        ({"array": ["a"], "sampling_rate": 16_000}, "is no sound"),
        (
            {"array": np.zeros((2, 2, 2)), "sampling_rate": 16_000},
            r"an array \(2, 2, 2\) of float64 is no sound",
        ),
    ],
)
def test_a_sound_that_cannot_be_used_is_named_with_the_reason(source, message):
    with pytest.raises(MediaError, match=message):
        audio(source)


@pytest.mark.parametrize("source", [wave(), {"array": tone(16_000), "sampling_rate": 16_000}])
def test_a_sound_over_the_limit_is_refused(source):
    with pytest.raises(MediaError, match=r"1\.0 seconds are too long; the limit is 0\.9"):
        audio(source, max_seconds=0.9)
    assert len(audio(source, max_seconds=1.0)) == 16_000


@pytest.mark.parametrize("kind", ["mp4", "avi", "mkv"])
def test_frames_are_taken_at_the_rate_asked_for_from_the_middle_of_each_part(tmp_path, kind):
    found = video(write_clip(tmp_path / f"a.{kind}"), fps=1.0)
    assert found.frames.shape == (4, 32, 64, 3)
    assert numbers(found) == [5, 15, 25, 35]
    assert found.seconds == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.01)
    assert (found.fps, found.duration) == (pytest.approx(1.0, abs=0.03), pytest.approx(4.0, abs=0.1))


def test_a_long_clip_gives_max_frames_over_all_of_it(tmp_path):
    found = video(write_clip(tmp_path / "a.mp4"), fps=5.0, max_frames=2)
    assert numbers(found) == [10, 30]
    assert found.fps == 0.5


def test_a_clip_gives_no_frame_twice(tmp_path):
    found = video(write_clip(tmp_path / "a.mp4", seconds=1), fps=100.0, max_frames=50)
    assert numbers(found) == list(range(10))


def test_a_clip_of_bytes_is_that_of_the_file(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    assert np.array_equal(video(path.read_bytes()).frames, video(path).frames)


def test_frames_are_scaled_down_in_their_shape(tmp_path):
    assert video(write_clip(tmp_path / "a.mp4"), max_pixels=512).frames.shape == (4, 16, 32, 3)


def test_pictures_are_a_clip_sampled_already_unless_they_state_a_rate():
    array = np.arange(8, dtype=np.uint8)[:, None, None, None] * STEP + np.zeros((1, 4, 4, 3), np.uint8)
    for source in (array, list(array), [Image.fromarray(frame) for frame in array]):
        assert numbers(video(source, fps=2.0)) == list(range(8))
    assert video(array, fps=2.0).seconds == [n / 2 for n in range(8)]
    found = video({"frames": array, "fps": 4.0}, fps=1.0)
    assert (numbers(found), found.seconds, found.fps, found.duration) == ([2, 6], [0.5, 1.5], 1.0, 2.0)


def test_an_even_choice_is_made_of_too_many_pictures():
    array = np.arange(8, dtype=np.uint8)[:, None, None, None] * STEP + np.zeros((1, 4, 4, 3), np.uint8)
    assert numbers(video(array, max_frames=4)) == [1, 3, 5, 7]


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_a_clip_taken_with_a_turned_camera_is_turned_upright(turned):
    path = REAL / f"decord_video_{turned}.mov"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    assert video(path).frames.shape[1:3] == ((320, 568) if turned in (0, 180) else (568, 320))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.mp4", r"/nowhere/a\.mp4: no such file"),
        (b"hello", "bytes: broken, cut off, or not a clip of a kind that FFmpeg reads"),
        (wave(), "bytes: there is no video in it"),
        ([], "list: the clip has no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "ndarray: the clip has no frames"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)],
            "list: the frames have different sizes",
        ),
    ],
)
def test_a_clip_that_cannot_be_used_is_named_with_the_reason(source, message):
    with pytest.raises(MediaError, match=message):
        video(source)


@pytest.mark.parametrize("kind", ["mp4", "avi"])
def test_a_clip_that_is_cut_off_is_refused(tmp_path, kind):
    whole = write_clip(tmp_path / f"a.{kind}").read_bytes()
    with pytest.raises(MediaError, match="cut off"):
        video(whole[: len(whole) // 2])


def test_each_kind_is_read_in_the_order_of_the_messages():
    one, two = ({"array": [level] * 4, "sampling_rate": 16_000} for level in (0.25, 0.5))
    messages = said({"type": "audio", "audio": one}, {"type": "image", "image": Image.new("RGB", (2, 2))})
    found = read_media(
        messages + said({"type": "audio", "audio": two}),
        max_pixels=0,
        fps=1,
        max_frames=1,
        max_seconds=0,
        rate=16_000,
    )
    assert [sound[0] for sound in found.audios] == [0.25, 0.5]
    assert (len(found.images), found.videos) == (1, [])
