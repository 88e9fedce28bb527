"""A short video, encoded by PyAV, for tests of what reads one."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

ENCODERS = {"h264": "libx264", "hevc": "libx265"}


def scene(index: int) -> np.ndarray:
    """Smooth, so that a few kilobytes keep it, and another at each ``index``; RGB (96, 128, 3)."""
    rows, columns = np.mgrid[:96, :128]
    bright = [rows * 2, columns, np.full_like(rows, 20 * index)]
    return np.stack(bright, -1).astype(np.uint8)


def stream(codec: str, count: int, gop: int = 5, **options: str) -> list[bytes]:
    """Pictures ``scene(0)`` and so on as Annex B, one after the other."""
    if ENCODERS[codec] not in av.codec.codecs_available:
        pytest.skip(f"needs {ENCODERS[codec]} in PyAV")
    encoder = av.CodecContext.create(ENCODERS[codec], "w")
    encoder.width, encoder.height, encoder.pix_fmt = 128, 96, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, 10), 10, gop
    encoder.options = {
        "preset": "ultrafast", "tune": "zerolatency", "crf": "5", "x265-params": "log-level=0",
        **options,
    }  # fmt: skip
    frames = [av.VideoFrame.from_ndarray(scene(i), "rgb24") for i in range(count)]
    return [bytes(packet) for frame in [*frames, None] for packet in encoder.encode(frame)]
