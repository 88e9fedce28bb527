"""``lowlat-seg benchmark``: what the engine costs, against what it replaces, in one run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowlat_seg_ros.arguments import HIGH_SCALE, changed, size
from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, PRECISIONS, ConfigError, EngineConfig
from lowlat_seg_ros.ros.start import RosError, isolate, require_ros

EXAMPLES = """\
examples:
  lowlat-seg benchmark --json benchmark.json            all of it; minutes on two CPU cores
  lowlat-seg benchmark --json benchmark.json --out DIR  and a page with tables and charts
  lowlat-seg benchmark --config paper_resnet101 --resolution 1024x2048 --device cuda --rate 30
  lowlat-seg benchmark --checkpoint FILE --only sides   another network, frame in to mask out alone
  lowlat-seg benchmark --only end_to_end --rate 5,15,30 --frames 100   the way in and out alone
  lowlat-seg benchmark --only sides --rate 5,15,30 --out DIR   all methods at three rates
  lowlat-seg benchmark --only steady --rate 30 --frames 54000  half an hour of frames
  lowlat-seg benchmark --quick                          a few frames, to see whether it works

measured, warm, in one process in which the methods take turns in blocks, so that drifts hit all of
them; [in brackets the part for --only, what has none is always there]:
  [sides]
  full            the full network on every frame, back to back, on all cores (or on all but one,
                  where that is faster because other work displaces threads); the network is the
                  engine's own, with the same optimisations
  ddrnet23_slim   DDRNet-23-slim on every frame in the same way, with random weights
  ..._paced       the same at --rate; single_frame_paced is Sl and AdaptNet alone on every frame
  control         a fixed convolution after each frame: how restless the machine itself was
  fast_idle       the engine at --rate without key frames: its slow track has nothing to do
  fast_busy       the engine at --rate with the slow track saturated: every frame is a key frame,
                  as in a scene that changes fast, so that mostly a job waits when one is done;
                  where Sh is faster than the camera it refines the last one again meanwhile
  refinements     jobs of the slow track per second: in fast_busy, and alone without any frame; the
                  first as a share of what the time without a frame in the foreground allows
  stages          of full and of the fast track, slow track idle; on a GPU by its own clock
  memory          of the networks, of the process, of each further camera
  [propagation]   Eq. (1) at 256 channels, 45x60, or 128x256 in bf16 on a GPU (and at the size of
                  this network), against F.unfold with a weighted sum and a 3x3 convolution, alone
                  and beside a busy core; and against the limits in memory and multiply-adds
  [resolutions]   the fast track at 1/2, 3/4, 1 and 3/2 of the width and height, with a line fitted
  [steady]        fast_busy alone, --frames in a row: how many masks are out later than the next
                  frame is due; only where --only asks for it
  [freshness]     the engine at --rate as it is by default: exact results of Sh a second, and their
                  age in frames when they arrive
  [cameras]       1 to 6 of them, each with its engine, segmented one after another
  [end_to_end]    the live node with its default settings, a camera in a process of its own and a
                  subscriber in this one, at 480x360, 1280x720 and 1920x1080: what the way in and
                  out adds to the engine; where ROS 2 is
  -
  multiply_adds   of the network's parts, counted, and the share of the fast track
  graphs          CUDA graphs captured, and parts that could not be; on a GPU

written to --json, times in ms, without what --only leaves out:
  full, ddrnet23_slim, full_paced, ddrnet23_slim_paced, single_frame_paced, fast_idle, fast_busy
                      each p50_ms, p95_ms, p99_ms, max_ms, control_p50_ms, control_p99_ms, threads,
                      late, excused; at the first --rate
  rates               the same at each --rate; steady the same of fast_busy alone
  ratio_busy_p99      fast_busy p99 / full p50
  refinements_per_s   in fast_busy; "refinements" has the rest
  propagation         ms; vs_unfold and vs_conv3x3: how many times as fast; roofline_fraction: share
                      of what the machine's limits allow; beside_busy_core
  freshness           per_s, age_frames, oldest_frames, compute_ms
  end_to_end          for each size and rate: engine; published, from the begin of the image's
                      callback to the mask published, and received, from the image's stamp to the
                      mask in a subscriber's callback, both less the engine's time; and total,
                      received with it
  bars                all ratios; stages, resolutions, cameras, limits, memory, multiply_adds,
                      graphs, facts

written to --out: benchmark.md with all tables, figures/latency.png, figures/scaling.png

Times depend on what else the machine does: close other programs. The report says how many cores
other processes kept busy. Latency does not depend on weights or on what is seen: weights are those
of --checkpoint, the package's own where it has some for --config, else random, and the frames are a
rendered drive.
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
    add("--checkpoint", type=Path, metavar="FILE", help="its network, instead of --config")
    add("--high-scale", type=float, metavar="S", help=HIGH_SCALE)
    add("--only", metavar="PART[,PART]",
        help=f"measure these parts alone (default {','.join(PARTS)})")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--resolution", type=size, metavar="HxW",
        help="of the frames, in pixels (default 360x480)")
    add("--rate", default="5", metavar="HZ[,HZ]",
        help="of the camera, for the fast track and what is paced (default %(default)s); [sides] "
        "and [end_to_end] are measured at each of them, the rest at the first")
    add("--frames", type=int, default=200, metavar="N",
        help="of each method, size and number of cameras (default %(default)s)")
    add("--quick", action="store_true", help=f"{QUICK} frames of each, whatever --frames says")
    add("--precision", choices=PRECISIONS, default=EngineConfig.precision,
        help="of the inner convolutions of all networks (default %(default)s)")
    add("--priority", choices=("normal", "realtime"), default=EngineConfig.foreground_priority,
        help="of the fast track's frames (default %(default)s)")
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
