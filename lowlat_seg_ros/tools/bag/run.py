"""``lowlat-seg bag run``: one bag, or many, one after the other or on a Ray cluster.

Every bag is segmented by :func:`~.offline.segment_bag` alone, wherever that runs, so masks in
virtual time are the same. All machines see bags and results under the same paths. Of many, a bag is
written into a folder of its own and moved into its place when it is whole, so a worker that is lost
leaves nothing that its successor would stumble over.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.frames import FrameError
from lowlat_seg_ros.lab.arguments import settings_from
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.report import Table, terminal_table, write_json
from lowlat_seg_ros.network.checkpoint import CheckpointError
from lowlat_seg_ros.tools.bag.offline import Segmented, VirtualTime, segment_bag

#: CPU cores for each bag on a cluster, where ``--foreground-threads`` does not say.
CORES = 2

#: How often a bag whose worker was lost is tried again.
RETRIES = 3

#: Folders of bags that are not whole yet.
PARTIAL = ".partial_"

#: Columns of the table: a heading, and the number of a bag that stands below it.
COLUMNS: dict[str, Callable[[Segmented], int]] = {
    "images": lambda done: done.ledger["received"] + done.ledger["superseded"],
    "masks": lambda done: done.ledger["published"],
    "superseded": lambda done: done.ledger["superseded"],
    "rejected": lambda done: done.ledger["rejected"],
    "failed": lambda done: done.ledger["failed"],
    "key frames": lambda done: done.counters["key_frames"],
    "resets": lambda done: done.counters["resets"],
}


@dataclass(frozen=True, eq=False)
class Job:
    """One bag and the place of its masks."""

    args: argparse.Namespace
    bag: Path
    out: Path


#: What became of a bag: figures, or the problem that a user can fix or must report.
Result = Segmented | str


def run(args: argparse.Namespace) -> int:
    """Segment and write; the exit status, 1 if no image could be segmented."""
    settings_from(args, EngineConfig)  # what is wrong is said at once
    _check(args)
    if len(args.bags) > 1 or args.ray is not None:
        return _run_many(args)
    done = segment_bag(args, args.bags[0], args.out)
    for complaint, count in sorted(done.complaints.items()):
        print(f"No mask for {count} images: {complaint}")
    counts = ", ".join(f"{name} {n}" for name, n in done.ledger.items() if name != "in_flight")
    print(f"Images: {counts}\nWritten to {args.out}")
    return 0 if done.ledger["published"] else 1


def _check(args: argparse.Namespace) -> None:
    if args.delay_frames < 0:
        raise ConfigError(f"--delay-frames is {args.delay_frames}; it must be 0 or more")
    if args.time == "virtual":
        VirtualTime(args.latency_ms)  # ConfigError for a time that cannot be
    if args.time == "virtual" and args.max_latency_ms > 0:
        raise ConfigError(
            f"--max-latency-ms is {args.max_latency_ms}, but in virtual time masks must not depend "
            "on this machine's speed; leave it at 0, or give --time real"
        )
    if args.time == "real" and args.latency_ms > 0:
        raise ConfigError(
            f"--latency-ms is {args.latency_ms}, but real time takes what it takes; leave it out, "
            "or give --time virtual"
        )


def _run_many(args: argparse.Namespace) -> int:
    """Segment all bags of ``args``, print the table and write summary.json; the exit status."""
    jobs = _jobs(args)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[Path, Result] = {}
    here = ((job, _segment(job)) for job in jobs)
    finished = here if args.ray is None else _on_a_cluster(jobs, args.ray)
    try:
        with tqdm(total=len(jobs), unit="bag", disable=None) as bar:
            for job, result in finished:
                results[job.out] = result
                bar.update()
    finally:
        for left in args.out.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
    ordered = {job: results[job.out] for job in jobs}
    done = [result for result in ordered.values() if isinstance(result, Segmented)]
    total = {heading: sum(map(number, done)) for heading, number in COLUMNS.items()}
    bags = {job.out.name: _as_json(job, result) for job, result in ordered.items()}
    write_json(args.out / "summary.json", {"bags": bags, "total": total})
    _show(ordered, total)
    print(f"Written to {args.out}")
    if len(done) < len(jobs):
        return 2
    return 0 if all(result.ledger["published"] for result in done) else 1


def _jobs(args: argparse.Namespace) -> list[Job]:
    """Each bag once, with a place for its masks that is not there yet."""
    if args.ray is not None and Path(args.ray).exists():
        raise ConfigError(
            f"--ray is {args.ray}, which is a bag rather than an address; write --ray last"
        )
    jobs = []
    args = copy.copy(args)
    # Workers run elsewhere, in other folders.
    args.checkpoint = args.checkpoint and args.checkpoint.absolute()
    if args.ray is not None:
        args.foreground_threads = args.foreground_threads or CORES
    for bag, name in zip(args.bags, _names(args.bags), strict=True):
        out = args.out.absolute() / name
        if out.exists():
            raise DataError(f"{out} is there already; remove it or choose another --out")
        jobs.append(Job(args, bag.absolute(), out))
    return jobs


def _names(bags: Sequence[Path]) -> list[str]:
    """What the masks of each bag are called: as the bag, with its folders where names repeat."""
    paths = [bag.resolve().with_suffix("") if bag.is_file() else bag.resolve() for bag in bags]
    if twice := [str(path) for path, count in Counter(paths).items() if count > 1]:
        raise DataError(f"{twice[0]} is given more than once; give each bag once")
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    return ["_".join(path.relative_to(common).parts) for path in paths]


def _segment(job: Job) -> Result:
    """One bag, in this process; what is wrong with it leaves the others alone."""
    folder = Path(tempfile.mkdtemp(dir=job.out.parent, prefix=f"{PARTIAL}{os.getpid()}_"))
    try:
        done = segment_bag(job.args, job.bag, folder / job.out.name)
        # Of a worker that was lost when it had moved the bag and not yet said so.
        shutil.rmtree(job.out, ignore_errors=True)
        (folder / job.out.name).rename(job.out)
    except (ConfigError, DataError, FrameError, CheckpointError) as error:
        return str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _on_a_cluster(jobs: list[Job], address: str) -> Iterator[tuple[Job, Result]]:
    """As they end; a bag whose worker is lost is tried again elsewhere, which Ray sees to."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--ray needs the library ray ({error}); pip install ray, or leave --ray out"
        ) from error
    try:
        quiet = {"include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--ray is {address}, where no cluster answers ({reason}); start one with 'ray start "
            "--head', or write --ray alone for this machine's cores"
        ) from error
    try:
        args = jobs[0].args
        gpus = 1 if args.device.startswith("cuda") else 0
        cores = min(args.foreground_threads, int(ray.cluster_resources().get("CPU", 1)))
        segment: Any = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(_segment)
        waiting = {segment.remote(job): job for job in jobs}
        while waiting:
            (reference, *_), _ = ray.wait([*waiting])
            job = waiting.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).split())
                yield job, f"lost with its worker {RETRIES + 1} times ({reason})"
    finally:
        ray.shutdown()


def _as_json(job: Job, result: Result) -> dict[str, Any]:
    if isinstance(result, str):
        return {"bag": str(job.bag), "problem": result}
    return {"bag": str(job.bag), "problem": "", **vars(result)}


def _show(results: dict[Job, Result], total: dict[str, int]) -> None:
    rows = []
    for job, result in results.items():
        cells = ["-"] * len(COLUMNS)
        if isinstance(result, Segmented):
            cells = [str(number(result)) for number in COLUMNS.values()]
        rows.append((job.out.name, *cells))
    table = Table(("bag", *COLUMNS), {"": rows, "all": [("all", *map(str, total.values()))]})
    Console().print(terminal_table(table, ""))
    for job, result in results.items():
        if isinstance(result, str):
            print(f"{job.out.name}: {result}")
            continue
        for complaint, count in sorted(result.complaints.items()):
            print(f"{job.out.name}: no mask for {count} images: {complaint}")
