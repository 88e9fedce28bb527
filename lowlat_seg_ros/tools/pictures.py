"""Pictures, folders of pictures, videos and cameras, frame by frame, as RGB; videos are written."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from lowlat_seg_ros.lab.data.sequence import DataError, visible

#: Files that are read as one picture; any other file is read as a video.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Photos of phones and cameras that nothing here reads.
PHOTOS = (".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".nef")

#: Frames per second of a folder's pictures, and of a camera or video that does not say.
FOLDER_HZ, CAMERA_HZ = 10.0, 30.0


@dataclass(frozen=True, eq=False)
class Picture:
    """``image`` uint8 (H, W, 3) RGB; ``stamp_ns`` counts from the begin of the source."""

    image: np.ndarray
    stamp_ns: int
    name: str


@dataclass(frozen=True)
class Source:
    """Pictures to be read once."""

    pictures: Iterator[Picture]
    rate_hz: float  # frames per second; 0 for stills, which have nothing to do with each other
    count: int  # how many frames there are, 0 where nobody knows
    endless: bool = False  # a camera
    unreadable: list[str] = field(default_factory=list)  # files that are no pictures, as found


class Video(AbstractContextManager["Video"]):
    """A video file that is open for reading; a context manager. DataError if it is no video.

    ``rate_hz``: its average frame rate, 0 where it does not say. ``count``: its number of frames,
    0 where it does not say.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        try:
            self._container = self._stack.enter_context(av.open(str(path)))
        except (av.FFmpegError, OSError) as error:
            raise self._unreadable(error) from error
        if not self._container.streams.video:
            self._stack.close()
            raise DataError(f"{path} holds no video; give a video file")
        stream = self._container.streams.video[0]
        self.rate_hz = float(stream.average_rate or 0)
        self.count = stream.frames

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(
        self, rate_hz: float | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Every frame, upright, as uint8 (H, W, 3) RGB, and its time in ns from the first one.

        ``rate_hz``: times of a camera of that rate, instead of the video's own. ``size``: resize
        to (H, W). DataError where the file is damaged, or has no times and ``rate_hz`` is None.
        """
        first_ns = None
        try:
            for index, frame in enumerate(self._container.decode(video=0)):
                image = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                if size is not None and image.shape[:2] != size:
                    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
                if rate_hz is not None:
                    yield image, round(index * 1e9 / rate_hz)
                    continue
                if frame.pts is None or frame.time_base is None:
                    raise DataError(f"{self._path} has no times for its frames; give --rate")
                now_ns = int(frame.pts * frame.time_base * 1_000_000_000)
                first_ns = now_ns if first_ns is None else first_ns
                yield image, now_ns - first_ns
        except (av.FFmpegError, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self._path} cannot be read as a video ({error}); check the file")


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """H.264 in MP4 (yuv420p, which every player knows); a context manager.

    ``size`` (H, W) of the pictures; an odd height or width is extended by a copy of its last line.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate_hz: float) -> None:
        self._size = size
        # The index goes to the front, so that browsers play before all is loaded.
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        rate = Fraction(rate_hz).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "20"})
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, picture: np.ndarray) -> None:
        """Add one picture, uint8 (H, W, 3) RGB; ValueError if it has another size."""
        if picture.shape != (*self._size, 3):
            raise ValueError(f"picture is {picture.shape}; it must be {(*self._size, 3)}")
        odd = [(0, side % 2) for side in self._size]
        even = np.pad(picture, (*odd, (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, "rgb24")))

    def close(self) -> None:
        """Write what is still in the encoder, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def upright(image: np.ndarray, degrees: int) -> np.ndarray:
    """``image`` (H, W, C) turned counter-clockwise, by the multiple of 90 nearest to ``degrees``.

    Phones store a portrait video lying on its side, with the rotation that a player applies.
    """
    return np.ascontiguousarray(np.rot90(image, round(degrees / 90)))


def read_picture(path: Path) -> np.ndarray | None:
    """uint8 (H, W, 3) RGB, turned as its EXIF data say; None if the file is no picture."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def open_source(path: Path, rate_hz: float | None, stills: bool, stack: ExitStack) -> Source:
    """The pictures of ``path``, a picture, video, folder or camera, which ``stack`` closes.

    ``rate_hz``: frames per second, where ``path`` is a folder or a video that does not say.
    ``stills``: pictures of a folder are no sequence. They are none either if their sizes differ.
    Raises :class:`~lowlat_seg_ros.lab.data.sequence.DataError`, which says what to do.
    """
    if str(path).isdigit() and not path.exists():
        path = Path(f"/dev/video{path}")
    if path.is_relative_to("/dev"):
        return _camera(path, stack)
    if path.is_dir():
        return _folder(path, rate_hz or FOLDER_HZ, stills)
    if re.match(r"[a-z]{2,}:/", str(path)):  # as Path leaves of rtsp://
        raise DataError(
            f"{path} is a stream of the network, which is not read; record it first, as with "
            "'ffmpeg -i ADDRESS -c copy drive.mp4', and give the video"
        )
    if not path.is_file():
        raise DataError(
            f"there is no {path}; give a picture, a video, a folder of pictures, or a camera such "
            "as 0 or /dev/video0"
        )
    if path.suffix.lower() in SUFFIXES:
        image = read_picture(path)
        if image is None:
            raise DataError(f"{path} cannot be read as a picture; check the file")
        return Source(iter([Picture(image, 0, path.stem)]), 0.0, 1)
    if path.suffix.lower() in PHOTOS:
        raise DataError(f"{path} is a photo in a format that is not read; convert it to JPEG")
    video = stack.enter_context(Video(path))
    frames = enumerate(video.frames(rate_hz))
    pictures = (Picture(image, ns, f"frame_{index:06d}") for index, (image, ns) in frames)
    return Source(pictures, rate_hz or video.rate_hz or CAMERA_HZ, video.count)


def _folder(path: Path, rate_hz: float, stills: bool) -> Source:
    """Its pictures in the order of their names, where 10 comes after 9."""
    there = visible(path.iterdir(), path)
    files = sorted((file for file in there if file.suffix.lower() in SUFFIXES), key=lambda file: [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)
    ])  # fmt: skip
    known = set(files)
    unreadable = [file.name for file in there if file not in known and file.is_file()]
    if not files:
        others = [file for file in there if file.is_dir()] or there
        hint = f", or what is in it one by one, such as {others[0]}" if others else ""
        raise DataError(
            f"{path} has no pictures; give a folder with files that end in {', '.join(SUFFIXES)}"
            f"{hint}"
        )
    unique = len({file.stem for file in files}) == len(files)

    def pictures() -> Iterator[Picture]:
        for index, file in enumerate(files):
            image = read_picture(file)
            if image is None:
                unreadable.append(file.name)
                continue
            name = file.stem if unique else file.name
            yield Picture(image, round(index * 1e9 / rate_hz), name)

    unrelated = stills or _sizes_differ(files)
    return Source(pictures(), 0.0 if unrelated else rate_hz, len(files), unreadable=unreadable)


def _sizes_differ(files: list[Path]) -> bool:
    """Whether pictures at the begin, in the middle and at the end are not all of one size.

    A few are enough to tell pictures that were collected from those of one camera.
    """
    some = {files[round(share * (len(files) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)}
    images = (read_picture(file) for file in some)
    return len({image.shape for image in images if image is not None}) > 1


def _camera(device: Path, stack: ExitStack) -> Source:
    camera = cv2.VideoCapture(str(device)) if device.exists() else None
    if camera is None or not camera.isOpened():
        raise DataError(
            f"the camera {device} cannot be opened; see which there are with 'ls /dev/video*', and "
            "whether another program uses it"
        )
    stack.callback(camera.release)

    def pictures() -> Iterator[Picture]:
        began_ns = time.monotonic_ns()
        for number in itertools.count():
            done, image = camera.read()
            if not done:
                return
            rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            yield Picture(rgb, time.monotonic_ns() - began_ns, f"frame_{number:06d}")

    rate_hz = camera.get(cv2.CAP_PROP_FPS)
    return Source(pictures(), rate_hz if rate_hz > 0 else CAMERA_HZ, 0, endless=True)
