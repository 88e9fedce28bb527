"""``lowlat-seg benchmark``: what the engine costs, against what it replaces, in one run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, PRECISIONS, ConfigError, EngineConfig
from lowlat_seg_ros.lab.arguments import HIGH_SCALE, changed, size
from lowlat_seg_ros.ros.start import RosError, isolate, require_ros

EXAMPLES = """\
examples:
  lowlat-seg benchmark --json benchmark.json            all parts; minutes on two CPU cores
  lowlat-seg benchmark --json benchmark.json --out DIR  also writes a page with tables and charts
  lowlat-seg benchmark --config paper_resnet101 --resolution 1024x2048 --device cuda --rate 30
  lowlat-seg benchmark --checkpoint FILE --only sides   only frame in to mask out, another network
  lowlat-seg benchmark --only end_to_end --rate 5,15,30 --frames 100   only the way in and out
  lowlat-seg benchmark --only sides --rate 5,15,30 --out DIR   all methods at three rates
  lowlat-seg benchmark --only steady --rate 30 --frames 54000  half an hour of frames
  lowlat-seg benchmark --quick                          a few frames, to see whether it works

All methods are measured after a warm-up in one process, in which they take turns in blocks, so that
a drift of the machine affects all of them. The fast track is what the engine does for each frame,
the slow track the background thread with Sh.

measured, by the names of the parts for --only:
  sides        full, the engine's own full network, and ddrnet23_slim with random weights on every
               frame, back to back, with the threads and runtime that are fastest; these and
               single_frame (Sl and AdaptNet alone) at --rate (..._paced); fast_idle and fast_busy:
               the engine at --rate, its slow track idle or busy all the time; results of Sh per
               second, stages, memory
  propagation  Eq. (1) with 256 channels and at the size of this network, against F.unfold, a 3x3
               convolution and the machine's limits (roofline); alone, and with a busy core
  resolutions  the fast track at 1/2, 3/4, 1 and 3/2 of the width and height, and a fitted line
  steady       fast_busy alone, --frames in a row; only if --only names it
  freshness    the engine with its defaults: results of Sh per second, and their age in frames
  cameras      1 to 6 cameras, each with an engine, segmented one after another
  end_to_end   what the way into the live node and out of it adds to the engine; needs ROS 2
and always multiply-adds and CUDA graphs

written to --json: all of it, times in ms, by these names; of the sides at the first --rate, and at
each below "rates"; "bars" are all ratios, ratio_busy_p99 is fast_busy p99 / full p50
written to --out: benchmark.md with all tables; in figures latency.png, rates.png, scaling.png

Times depend on what else the machine does, so close other programs; the report says how many cores
other processes kept busy. Latency does not depend on weights or images: the frames are a rendered
drive, and without --checkpoint the weights are the package's own for --config, if there are any,
else random.
"""

if TYPE_CHECKING:
    from lowlat_seg_ros.lab.benchmark.timing import EndToEnd

#: What is measured, and what only where --only asks for it.
PARTS = ("sides", "freshness", "propagation", "resolutions", "cameras", "end_to_end")
ON_REQUEST = ("steady",)

#: Frames of each method with --quick.
QUICK = 6


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add = parser.add_argument
    # fmt: off
    add("--config", choices=tuple(NETWORKS), default=DEFAULT_NETWORK,
        help="network (default %(default)s)")
    add("--checkpoint", type=Path, metavar="FILE", help="weights, whose network replaces --config")
    add("--high-scale", type=float, metavar="S", help=HIGH_SCALE)
    add("--only", metavar="PART[,PART]",
        help=f"measure only these parts (default {','.join(PARTS)})")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--resolution", type=size, metavar="HxW",
        help="size of the frames, in pixels (default 360x480)")
    add("--rate", default="5", metavar="HZ[,HZ]",
        help="rates of the camera (default %(default)s); [sides] and [end_to_end] are measured at "
        "each of them, the other parts at the first")
    add("--frames", type=int, default=200, metavar="N",
        help="frames of each method, size and number of cameras (default %(default)s)")
    add("--quick", action="store_true", help=f"{QUICK} frames of each, whatever --frames says")
    add("--precision", choices=PRECISIONS, default=EngineConfig.precision,
        help="number format of the inner convolutions of all networks (default %(default)s)")
    add("--priority", choices=("normal", "realtime"), default=EngineConfig.foreground_priority,
        help="priority of the fast track's frames (default %(default)s)")
    add("--runtime", choices=("auto", "pytorch", "openvino"), default=EngineConfig.runtime,
        help="what runs the fast track's convolutions on a CPU (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--out", type=Path, metavar="DIR",
        help="write a page with tables and charts to this folder")
    # fmt: on


def run(args: argparse.Namespace) -> int:
    parts = PARTS if args.only is None else tuple(args.only.split(","))
    if not set(parts) <= {*PARTS, *ON_REQUEST}:
        raise ConfigError(f"--only is {args.only!r}; choose of {', '.join(PARTS + ON_REQUEST)}")
    if args.frames < 2:
        raise ConfigError(f"--frames is {args.frames}; measure at least 2, better 200")
    rates = _rates(args.rate)
    if args.resolution is not None and min(args.resolution) < 16:
        height, width = args.resolution
        raise ConfigError(
            f"--resolution is {height}x{width}; frames have at least 16 pixels a side"
        )
    # Imported late: torch is slow to load, and --help needs none of this.
    from rich.console import Console

    from lowlat_seg_ros.lab.benchmark import measure, report
    from lowlat_seg_ros.lab.report import write_json

    # The options that shape the figures, without the places of files on this machine.
    words = changed(argparse.Namespace(**{**vars(args), "json": None, "out": None}), configure)
    frames, console = QUICK if args.quick else args.frames, Console()
    command = " ".join(["lowlat-seg benchmark", *words])
    try:
        node = _node_parameters(args) if "end_to_end" in parts else None
    except (ConfigError, RosError) as error:
        if args.only is not None:
            raise
        node = None
        console.print(f"Without end_to_end: {error}", markup=False)
    done = measure.everything(args, parts, rates, frames, command)
    if node is not None:
        done = dataclasses.replace(done, end_to_end=_end_to_end(args, node, rates, frames))
    report.print_report(console, done)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, done.as_json())
    if args.out is not None:
        console.print(f"Written: {report.write_page(args.out, done)}", soft_wrap=True)
    return 0


def _rates(text: str) -> list[float]:
    """The cameras' rates in Hz; ConfigError for what is none."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--rate is {text!r}; give numbers, such as 15 or 5,15,30") from None
    for rate_hz in rates:
        if not 0.0 < rate_hz <= 1000.0:
            raise ConfigError(f"--rate is {rate_hz}; it must lie in (0, 1000] Hz")
    return rates


def _node_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the live node; raises RosError or ConfigError where it cannot run."""
    from lowlat_seg_ros.lab.benchmark.costs import shipped

    require_ros()
    checkpoint = args.checkpoint or shipped(args.config)
    if checkpoint is None:
        raise ConfigError(
            f"--config is {args.config}, which has no weights, which the node needs; give "
            "--checkpoint, or leave end_to_end out of --only"
        )
    return {
        "checkpoint": str(checkpoint.resolve()),
        "device": args.device,
        "precision": args.precision,
        "foreground_priority": args.priority,
        "runtime": args.runtime,
    }


def _end_to_end(
    args: argparse.Namespace, node: dict[str, Any], rates: list[float], frames: int
) -> tuple[EndToEnd, ...]:
    isolate()  # before rclpy is imported
    from lowlat_seg_ros.lab.benchmark.measure import bar, rendered
    from lowlat_seg_ros.tools import end_to_end

    sizes = end_to_end.SIZES if args.resolution is None else (args.resolution,)
    images = rendered(rates[0], args.resolution)
    with bar("end_to_end", len(sizes) * len(rates)) as step:
        return end_to_end.measure(node, images, sizes, rates, frames, step)
