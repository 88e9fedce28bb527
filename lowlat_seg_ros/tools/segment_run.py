"""What ``lowlat-seg segment`` does, once its options are known."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame, Segmentation
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.metrics import Latency
from lowlat_seg_ros.lab.report import write_json
from lowlat_seg_ros.labels import ClassTable, Legend, overlay
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, Header, read_header
from lowlat_seg_ros.tools.pictures import Picture, Source, VideoWriter, open_source

#: Height in px at which a network runs whose checkpoint does not say what it was trained at.
USUAL_HEIGHT = 360


def segment_all(args: argparse.Namespace) -> int:
    """Read, segment, write; the exit status."""
    checkpoint = args.checkpoint or DEFAULT_CHECKPOINT
    header = read_header(checkpoint)
    table = ClassTable(checkpoint.stem, header.classes, header.colours)
    figures = Figures(table)
    with ExitStack() as stack:
        source = open_source(args.input, args.rate, args.stills, stack)
        pictures = islice(source.pictures, 0, None, args.every)
        first = next(pictures, None)
        if first is None:
            raise DataError(f"{args.input} has no picture that can be read; there is no mask")
        config = EngineConfig(inference_height=_network_height(args, header, first.image))
        engine = stack.enter_context(Engine.from_checkpoint(checkpoint, config, args.device))
        writer = stack.enter_context(Writer(args, source, table))
        pictures = islice(chain([first], pictures), args.max_frames or None)
        # Ctrl-C is how a camera's recording ends; any other input is interrupted by it.
        with suppress(*[KeyboardInterrupt] if source.endless else []):
            total = _expected(args, source)
            for picture in tqdm(pictures, total=total, unit="frame", disable=None):
                if source.rate_hz == 0:  # a still: nothing is carried from the one before
                    engine.reset()
                result = engine.process(Frame(picture.image, picture.stamp_ns))
                writer.write(picture, result.mask)
                figures.add(result)
    if not figures.frames:
        raise DataError(f"{args.input} was interrupted before the first mask; there are no figures")
    write_json(args.out / "summary.json", figures.as_json())
    print(figures)
    if source.unreadable:
        print(f"Left out, as they cannot be read as pictures: {', '.join(source.unreadable)}")
    print(f"Written to {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    return 0


def _network_height(args: argparse.Namespace, header: Header, image: np.ndarray) -> int:
    """The setting ``inference_height`` for pictures such as ``image``, and a word on it."""
    if args.inference_height is not None:
        return int(args.inference_height)
    trained = header.trained_height
    side, why = (trained, "which it was trained at") if trained else (USUAL_HEIGHT, "the usual one")
    height, width = image.shape[:2]
    # Objects in a portrait picture are as large as in a landscape one of the same shorter side.
    found = side if height <= width else round(side * height / width)
    print(
        f"The network runs at a height of {found} px ({why}; pictures have {height}); "
        "--inference-height changes it, 0 is the pictures' own"
    )
    return found


def _expected(args: argparse.Namespace, source: Source) -> int | None:
    """How many masks there will be; None where nobody knows."""
    limits = (-(-source.count // args.every), args.max_frames)
    return min((limit for limit in limits if limit), default=None)


class Writer(AbstractContextManager["Writer"]):
    """Writes masks, overlays and the video; a context manager. DataError where it cannot."""

    def __init__(self, args: argparse.Namespace, source: Source, table: ClassTable) -> None:
        self._out, self._alpha, self._mask_only = args.out, args.alpha, args.mask_only
        self._pictures = args.input.is_dir() or source.rate_hz == 0
        self._rate_hz, self._live = source.rate_hz / args.every, source.endless
        self._table, self._legend = table, Legend(table)
        self._video: VideoWriter | None = None
        self._size, self._written = (0, 0), 0
        try:
            (self._out / "masks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{args.out} cannot be written ({error}); choose another --out"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    def write(self, picture: Picture, mask: np.ndarray) -> None:
        """Add one picture and its mask, uint8 (H, W)."""
        self._save(Path("masks") / f"{picture.name}.png", mask)
        if self._mask_only:
            return
        mixed = overlay(picture.image, mask, self._table, self._alpha)
        self._legend.draw(mixed)
        if self._pictures:
            path = Path("overlays") / f"{picture.name}.jpg"
            self._save(path, cv2.cvtColor(mixed, cv2.COLOR_RGB2BGR))
        if self._rate_hz:
            self._add_to_video(mixed, picture.stamp_ns)

    def _save(self, path: Path, pixels: np.ndarray) -> None:
        (self._out / path).parent.mkdir(exist_ok=True)
        if not cv2.imwrite(str(self._out / path), pixels):
            raise DataError(f"{self._out / path} cannot be written; is the disk full?")

    def _add_to_video(self, mixed: np.ndarray, stamp_ns: int) -> None:
        if self._video is None:
            self._size = (mixed.shape[0], mixed.shape[1])
            self._video = VideoWriter(self._out / "overlay.mp4", self._size, self._rate_hz)
        if mixed.shape[:2] != self._size:  # a video has one size
            mixed = cv2.resize(mixed, self._size[::-1], interpolation=cv2.INTER_AREA)
        # A camera gives frames as fast as they are taken from it, so a slow machine skips some.
        due = round(stamp_ns / 1e9 * self._rate_hz) if self._live else 0
        for _ in range(max(1, due - self._written)):
            self._video.write(mixed)
            self._written += 1


class Figures:
    """Frames, latency in ms, kinds of masks, and the share of pixels of each class."""

    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._latencies: list[float] = []
        self._kinds: Counter[str] = Counter()
        self._pixels = np.zeros(256)

    @property
    def frames(self) -> int:
        return len(self._latencies)

    def add(self, result: Segmentation) -> None:
        self._latencies.append(result.timing.latency_ms)
        self._kinds[result.provenance.kind.value] += 1
        self._pixels += cv2.calcHist([result.mask], [0], None, [256], [0, 256]).ravel()

    def as_json(self) -> dict[str, Any]:
        """For :func:`~lowlat_seg_ros.lab.report.write_json`."""
        shares = self._pixels / max(1.0, self._pixels.sum())
        return {
            "frames": self.frames,
            "latency_ms": Latency.of(self._latencies),
            "kinds": dict(self._kinds),
            "classes": [
                {"id": index, "name": name, "colour": colour, "share": float(shares[index])}
                for index, (name, colour) in enumerate(
                    zip(self._table.names, self._table.colours, strict=True)
                )
            ],
        }

    def __str__(self) -> str:
        figures = self.as_json()
        first, steady = figures["latency_ms"].first, figures["latency_ms"].steady
        later = f", then p50 {steady.p50:.1f}, p99 {steady.p99:.1f} ms" if steady.count else ""
        kinds = ", ".join(f"{kind} {count}" for kind, count in figures["kinds"].items())
        classes = sorted(figures["classes"], key=lambda item: -item["share"])
        shares = ", ".join(f"{item['name']} {100 * item['share']:.1f} %" for item in classes)
        return (
            f"Frames: {self.frames} ({kinds}); frame to mask: first {first:.1f} ms, which "
            f"warms up{later}\nClasses: {shares}"
        )
