"""H.264 and H.265 streams as RGB, a picture for each message, through PyAV (FFmpeg)."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowlat_seg_ros.images.raw import Fault, ImageError, octets

#: A NAL unit begins, with its header's first byte (ITU-T H.264 and H.265, Annex B).
_UNIT = re.compile(rb"\0\0\x01(.)", re.DOTALL)


@dataclass(frozen=True)
class Packet:
    """One coded picture of a stream: what ``foxglove_msgs/CompressedVideo`` and
    ``ffmpeg_image_transport_msgs/FFMPEGPacket`` hold, with a ``std_msgs/Header``.

    ``codec``: the message's word for it; ``data``: Annex B, any buffer. ``after_gap``: packets
    before it were lost, so that it cannot be shown unless it is a key frame.
    """

    header: Any
    codec: str
    data: Any
    after_gap: bool = False


class VideoDecoder:
    """Decodes the packets of one camera in their order; each builds on those before it.

    Nothing is shown between a loss and the next key frame: FFmpeg would make up what is missing.
    """

    def __init__(self) -> None:
        self._codec = ""
        self._context: Any = None
        self._waiting = "no key frame of the stream has come yet"

    def decode(self, packet: Packet) -> np.ndarray:
        """The picture as uint8 (H, W, 3) RGB; raises :class:`~.raw.ImageError`.

        That is also raised, with :attr:`Fault.KEY_FRAME`, until a key frame comes.
        """
        rgb: np.ndarray = self._frame(packet).to_ndarray(format="rgb24")
        return rgb

    def skip(self, packet: Packet) -> None:
        """Take in a picture that nobody needs but those that follow it."""
        with suppress(ImageError):  # the next one says what is wrong
            self._frame(packet)

    def _frame(self, packet: Packet) -> Any:
        import av  # here, as only those who have a video need it

        codec, data = _codec_of(packet.codec), octets(packet.data).tobytes()
        is_key = _is_key_frame(codec, data)
        if codec != self._codec or (is_key and self._waiting):
            self._restart(codec)
        if packet.after_gap and not self._waiting:
            self._waiting = "packets were lost on their way"
        if is_key:
            self._waiting = ""
        if self._waiting:
            raise ImageError(
                Fault.KEY_FRAME,
                f"{self._waiting}, and the {codec} stream cannot be shown before its next key "
                "frame; if it does not come soon, have the encoder make one at least every second "
                "(a GOP of the frame rate)",
            )
        try:
            frames = self._context.decode(av.Packet(data))
        except av.error.FFmpegError as error:
            self._waiting = "a packet was damaged"
            raise ImageError(
                Fault.CONVERSION,
                f"data holds {len(data)} bytes that are no picture of {codec} ({error}); a key "
                "frame must come with its parameter sets, and data as Annex B: check the encoder",
            ) from error
        if not frames or frames[-1].is_corrupt:
            self._waiting = "a packet gave no whole picture"
            raise ImageError(
                Fault.CONVERSION,
                f"data holds {len(data)} bytes of {codec} that give no whole picture; each message "
                "must hold one, without B-frames: set the encoder to them (x264: tune zerolatency)",
            )
        return frames[-1]

    def _restart(self, codec: str) -> None:
        import av
        from av.codec.context import Flags

        self._codec, self._waiting = codec, "no key frame of the stream has come yet"
        self._context = av.CodecContext.create(codec, "r")
        # One picture out for each in; more threads would keep some back.
        self._context.thread_count = 1
        self._context.flags |= Flags.low_delay


def _codec_of(name: str) -> str:
    """FFmpeg's decoder for a message's word, such as h265, libx264 or hevc_nvenc."""
    word = name.partition(";")[0].strip().lower()
    if "264" in word:
        return "h264"
    if "265" in word or "hevc" in word:
        return "hevc"
    raise ImageError(
        Fault.ENCODING,
        f"the video's format is {name!r}; it must be H.264 or H.265: set the camera's encoder to "
        "h264 or h265, or image_transport to raw or compressed",
    )


def _is_key_frame(codec: str, data: bytes) -> bool:
    """Whether decoding can begin with the picture: what its first slice says."""
    for found in _UNIT.finditer(data):
        head = found[1][0]
        kind = head & 31 if codec == "h264" else head >> 1 & 63
        is_slice = 1 <= kind <= 5 if codec == "h264" else kind < 32
        if is_slice:
            return kind == 5 if codec == "h264" else 16 <= kind <= 21
    return False
