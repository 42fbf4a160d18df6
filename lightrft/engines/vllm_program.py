"""The program that `lightrft serve` starts: vLLM's server, with a reader for clips in the frames that the trainer took of them.

Clips and sounds travel inside questions, as data URLs, without loss.
"""

from __future__ import annotations

import base64
import io
import runpy
from typing import Any

import torch
from numpy.typing import NDArray

from lightrft.engines import transport as wire
from lightrft.media.parts import Clip
from lightrft.models.media import frames_taken
from lightrft.utils.imports import require

READER = "lightrft"
"""The name of the reader among vLLM's."""


def picture_url(image: Any) -> str:
    """A picture as PNG."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=1)
    return _url("image/png", data.getvalue())


def clip_url(clip: Clip) -> str:
    """A clip as a safetensors file of its frames."""
    times = torch.tensor([clip.fps, clip.duration, *clip.seconds], dtype=torch.float64)
    bucket = {"frames": torch.from_numpy(clip.frames), "times": times}
    return _url("video/x-frames", b"".join(wire.pieces(wire.header(bucket), bucket.values())))


def sound_url(samples: NDArray[Any], rate: int) -> str:
    """A sound as WAV of float32."""
    data = io.BytesIO()
    require("soundfile", "media").write(data, samples, rate, format="WAV", subtype="FLOAT")
    return _url("audio/wav", data.getvalue())


def read_clip(data: bytes) -> Clip:
    """The clip of a `clip_url`, of what is encoded in it."""
    bucket = wire.unpacked(bytearray(data))
    fps, duration, *seconds = bucket["times"].tolist()
    return Clip(bucket["frames"].numpy(), seconds, fps, duration)


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def main() -> None:
    """Runs the server with the arguments of this program."""
    video: Any = require("vllm.multimodal.video", "vllm")

    @video.VIDEO_LOADER_REGISTRY.register(READER)
    class Frames(video.VideoLoader):  # type: ignore[misc]
        """The method of VideoLoader; options such as how many frames to take have no effect: that was chosen by the trainer."""

        @classmethod
        def load_bytes(cls, data: bytes, **_options: Any) -> tuple[NDArray[Any], dict[str, Any]]:
            clip = read_clip(data)
            return clip.frames, frames_taken(clip)

    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
