"""Figures of a bag with masks as JSON, and as one HTML file for a browser without network."""

from __future__ import annotations

import argparse
import base64
import html
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.frames import IGNORE_LABEL
from lowlat_seg_ros.images import ImageError, to_rgb
from lowlat_seg_ros.lab.metrics import is_key_frame
from lowlat_seg_ros.lab.report import plain, write_json
from lowlat_seg_ros.labels import ClassTable, overlay
from lowlat_seg_ros.messages import IMAGE, stamp_ns
from lowlat_seg_ros.network.checkpoint import DEFAULT_CHECKPOINT, read_header
from lowlat_seg_ros.tools.bag import recording
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.recording import STAGES, Published, Recording, figures
from lowlat_seg_ros.tools.bag.storage import BagReader, to_ids

#: Pictures are no wider than this, in px, and JPEG of this quality.
WIDTH, QUALITY = 640, 80


def report(args: argparse.Namespace) -> int:
    """Read, compute, write; the exit status, 1 if an image of the bag is unaccounted for."""
    if args.pictures < 1:
        raise ConfigError(f"--pictures is {args.pictures}; show at least 1 frame")
    topics, header = Topics.of(args), read_header(args.checkpoint or DEFAULT_CHECKPOINT)
    table = ClassTable("masks", header.classes, header.colours)
    with BagReader(args.bag) as bag:
        found = recording.read(bag, topics, table, args.pictures)
        whole = figures(found)
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "report.json", whole)
        write_page(args.out / "report.html", bag, topics, found, whole)
    print(summary(whole))
    print(f"Written: {args.out / 'report.json'}, {args.out / 'report.html'}")
    return 0 if whole["unaccounted"] == 0 else 1


def summary(whole: dict[str, Any]) -> str:
    """The most telling of the figures, as lines."""
    engine, age = (whole["latency"][name].steady for name in ("engine", "age"))
    lines = [
        str(whole["account"]),
        f"engine p50 {engine.p50:.1f}, p99 {engine.p99:.1f} ms; stamp to mask p50 {age.p50:.1f}, "
        f"p99 {age.p99:.1f} ms; key frames {100 * whole['key_share']:.0f} %",
    ]
    if (scores := whole["accuracy"]) is not None:
        lines.append(
            f"mIoU {100 * scores.own.miou:.1f} %; as seen at publish time "
            f"{100 * scores.miou_at_publish:.1f} %; streaming {100 * scores.miou_streaming:.1f} %"
        )
    return "\n".join([*lines, *whole["notes"]])


def write_page(
    path: Path, bag: BagReader, topics: Topics, recording: Recording, whole: dict[str, Any]
) -> None:
    """Write the page, with pictures of the frames that the recording says are to be shown.

    ``whole``: what :func:`figures` says of the recording.
    """
    data = plain({
        "figures": whole,
        "classes": [
            {"name": name, "colour": colour}
            for name, colour in zip(recording.table.names, recording.table.colours, strict=True)
        ],
        "stages": STAGES,
        "frames": frames(recording),
        "pictures": _pictures(bag, topics, recording),
    })  # fmt: skip
    template = (Path(__file__).parent / "page.html").read_text()
    title = html.escape(f"{bag.path.resolve().name}: {recording.facts.get('source', 'recording')}")
    # What ends a script element must not occur in it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    path.write_text(template.replace("{{title}}", title).replace("{{data}}", text))


def frames(recording: Recording) -> list[dict[str, Any]]:
    """What the page says of each image of the bag; ``mask`` is null for one without."""
    by_index = {mask.index: mask for mask in recording.published}
    first_ns = recording.arrivals[0].arrived_ns
    return [
        {
            "stamp": f"{arrival.stamp_ns // 10**9}.{arrival.stamp_ns % 10**9:09d}",
            "arrived_ms": (arrival.arrived_ns - first_ns) / 1e6,
            "mask": _mask(by_index[index], arrival.label) if index in by_index else None,
        }
        for index, arrival in enumerate(recording.arrivals)
    ]


def _mask(published: Published, label: np.ndarray | None) -> dict[str, Any]:
    result = published.segmentation
    source, chosen = result.provenance, result.selection
    return {
        "kind": source.kind.value,
        "reset": source.reset.value if source.reset else None,
        "exact": source.exact,
        "key_age_frames": source.key_age_frames,
        "key_age_ms": source.key_age_ms,
        "features_age_ms": source.features_age_ms,
        "is_key": is_key_frame(result),
        "deviation": chosen.deviation if chosen else None,
        "threshold": chosen.threshold if chosen else None,
        "stages_ms": [getattr(result.timing, name) for name in STAGES],
        "latency_ms": result.timing.latency_ms,
        "wait_ms": published.timing.wait_ms,
        "age_ms": published.timing.age_ms,
        "expected_accuracy": result.expected_accuracy,
        "level": result.deadline.level,
        "missed": result.deadline.missed,
        "right": _right(result.mask, label),
    }


def _right(mask: np.ndarray, label: np.ndarray | None) -> float | None:
    if label is None or label.shape != mask.shape or (label == IGNORE_LABEL).all():
        return None
    return float((mask == label)[label != IGNORE_LABEL].mean())


def _pictures(bag: BagReader, topics: Topics, recording: Recording) -> list[dict[str, Any]]:
    """Input, overlay and confidence of the frames shown, as data URIs where there are any."""
    shown = set(recording.shown)
    masks = {p.index: p.segmentation.mask for p in recording.published}
    stamps = {recording.arrivals[index].stamp_ns for index in shown}
    confidences: dict[int, np.ndarray] = {}
    if bag.topics.get(topics.confidence) == IMAGE:
        for raw in bag.raw([topics.confidence]):
            message = bag.decode(raw)
            if (stamp := stamp_ns(message.header.stamp)) in stamps:
                confidences[stamp] = to_ids(message)
    found: list[dict[str, Any]] = []
    for index, raw in enumerate(bag.raw([topics.image])):
        if index not in shown:
            continue
        try:
            image = to_rgb(bag.decode(raw))
        except ImageError:  # a rejected image, of which there is nothing to show
            found.append({"index": index, "input": None, "overlay": None, "confidence": None})
            continue
        mask, certain = masks.get(index), confidences.get(recording.arrivals[index].stamp_ns)
        mixed = None if mask is None else overlay(image, mask, recording.table)
        found.append({
            "index": index,
            "input": _uri(image),
            "overlay": None if mixed is None else _uri(mixed),
            "confidence": None if certain is None else _uri(_coloured(certain)),
        })  # fmt: skip
    return found


def _coloured(certain: np.ndarray) -> np.ndarray:
    """RGB, from dark for unsure to bright for sure, also in shades of grey."""
    return np.asarray(cv2.applyColorMap(certain, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _uri(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(picture[..., ::-1])
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done  # any uint8 RGB picture can be encoded
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
