"""``lowlat-seg benchmark``: what the engine costs, against what it replaces, in one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowlat_seg_ros.arguments import HIGH_SCALE, changed, size
from lowlat_seg_ros.config import DEFAULT_NETWORK, NETWORKS, PRECISIONS, ConfigError, EngineConfig

EXAMPLES = """\
examples:
  lowlat-seg benchmark --json benchmark.json            all of it; minutes on two CPU cores
  lowlat-seg benchmark --json benchmark.json --out DIR  and a page with tables and charts
  lowlat-seg benchmark --config paper_resnet101 --resolution 1024x2048 --device cuda --rate 30
  lowlat-seg benchmark --checkpoint FILE --only sides   another network, frame in to mask out alone
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
  [freshness]     the engine at --rate as it is by default: exact results of Sh a second, and their
                  age in frames when they arrive
  [cameras]       1 to 6 of them, each with its engine, segmented one after another
  -
  multiply_adds   of the network's parts, counted, and the share of the fast track
  graphs          CUDA graphs captured, and parts that could not be; on a GPU

written to --json, times in ms, without what --only leaves out:
  full, ddrnet23_slim, full_paced, ddrnet23_slim_paced, single_frame_paced, fast_idle, fast_busy
                      each p50_ms, p95_ms, p99_ms, max_ms, control_p50_ms, control_p99_ms, threads
  ratio_busy_p99      fast_busy p99 / full p50
  refinements_per_s   in fast_busy; "refinements" has the rest
  propagation         ms; vs_unfold and vs_conv3x3: how many times as fast; roofline_fraction: share
                      of what the machine's limits allow; beside_busy_core
  freshness           per_s, age_frames, oldest_frames, compute_ms
  bars                all ratios; stages, resolutions, cameras, limits, memory, multiply_adds,
                      graphs, facts

written to --out: benchmark.md with all tables, figures/latency.png, figures/scaling.png

Times depend on what else the machine does: close other programs. The report says how many cores
other processes kept busy. Latency does not depend on weights or on what is seen: weights are those
of --checkpoint, the package's own where it has some for --config, else random, and the frames are a
rendered drive.
"""

#: What can be measured by itself.
PARTS = ("sides", "freshness", "propagation", "resolutions", "cameras")

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
    add("--only", default=",".join(PARTS), metavar="PART[,PART]",
        help="measure these parts alone (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--resolution", type=size, metavar="HxW",
        help="of the frames, in pixels (default 360x480)")
    add("--rate", type=float, default=5.0, metavar="HZ",
        help="of the camera, for the fast track and what is paced (default %(default)s)")
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
    if not set(args.only.split(",")) <= set(PARTS):
        raise ConfigError(f"--only is {args.only!r}; choose of {', '.join(PARTS)}")
    if args.frames < 2:
        raise ConfigError(f"--frames is {args.frames}; measure at least 2, better 200")
    if not 0.0 < args.rate <= 1000.0:
        raise ConfigError(f"--rate is {args.rate}; it must lie in (0, 1000] Hz")
    if args.resolution is not None and min(args.resolution) < 16:
        height, width = args.resolution
        raise ConfigError(
            f"--resolution is {height}x{width}; frames have at least 16 pixels a side"
        )
    # Imported late: torch is slow to load, and --help needs none of this.
    from rich.console import Console

    from lowlat_seg_ros.lab.benchmark import measure, report
    from lowlat_seg_ros.lab.evaluation.report import write_json

    # The options that shape the figures, without the places of files on this machine.
    words = changed(argparse.Namespace(**{**vars(args), "json": None, "out": None}), configure)
    frames = QUICK if args.quick else args.frames
    done = measure.everything(args, frames, " ".join(["lowlat-seg benchmark", *words]))
    console = Console()
    report.print_report(console, done)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, done.as_json())
    if args.out is not None:
        console.print(f"Written: {report.write_page(args.out, done)}", soft_wrap=True)
    return 0
