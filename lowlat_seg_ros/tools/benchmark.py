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

measured; [in brackets] the name of the part for --only:
  [sides]
  full            the full network (Sl, Sh and classifier) on every frame, back to back, on all
                  cores (or all but one, if that is faster because other programs run); it is the
                  engine's own network, with the same optimisations
  ddrnet23_slim   DDRNet-23-slim on every frame in the same way, with random weights
  ..._paced       the same at --rate; single_frame_paced is Sl and AdaptNet alone on every frame
  control         a fixed convolution after each frame; its p99 over p50 says how much other work
                  disturbed the machine
  fast_idle       the engine at --rate without key frames: its slow track has nothing to do
  fast_busy       the engine at --rate with the slow track busy all the time: every frame is a key
                  frame, and while none waits Sh computes the last one again
  refinements     results of Sh per second: in fast_busy, and without any frame; the first also as
                  a share of what the time between frames allows
  stages          times of the stages of full and of the fast track with the slow track idle; on a
                  GPU by its own clock
  memory          of the networks, of the process, and of each further camera
  [propagation]   Eq. (1) with 256 channels and 45x60 cells (on a GPU 128x256 in bf16), and at the
                  size of this network, compared with F.unfold and a weighted sum, with a 3x3
                  convolution, and with the machine's limits (roofline); alone, and with a busy core
  [resolutions]   the fast track at 1/2, 3/4, 1 and 3/2 of the width and height, and a fitted line
  [steady]        fast_busy alone, --frames in a row: how many masks come later than the next frame;
                  only if --only names it
  [freshness]     the engine with its defaults at --rate: results of Sh per second, and their age in
                  frames when they arrive
  [cameras]       1 to 6 cameras, each with an engine, segmented one after another
  [end_to_end]    the live node with its default settings, a camera in a process of its own and a
                  subscriber in this one, at 480x360, 1280x720 and 1920x1080: what the way in and
                  out adds to the engine's time; needs ROS 2
and always:
  multiply_adds   of the parts of the network, and the share of the fast track
  graphs          CUDA graphs captured, and parts that could not be; on a GPU

written to --json, times in ms:
  full, ddrnet23_slim, full_paced, ddrnet23_slim_paced, single_frame_paced, fast_idle, fast_busy
                      each p50_ms, p95_ms, p99_ms, max_ms, control_p50_ms, control_p99_ms, threads,
                      late, excused; at the first --rate
  rates               the same at each --rate; steady the same of fast_busy alone
  ratio_busy_p99      fast_busy p99 / full p50
  refinements_per_s   in fast_busy; "refinements" has the rest
  propagation         ms; vs_unfold and vs_conv3x3: speed relative to these; roofline_fraction:
                      share of the machine's limit; beside_busy_core: the same with a busy core
  freshness           per_s, age_frames, oldest_frames, compute_ms
  end_to_end          for each size and rate: engine; published, from the start of the image
                      callback to the mask published, and received, from the image's stamp to the
                      mask in a subscriber's callback, both without the engine's time; and total,
                      received with it
  bars                all ratios; stages, resolutions, cameras, limits, memory, multiply_adds,
                      graphs, facts

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
