"""Random input for all that reads what others send: ``make fuzz MINUTES=4``.

Each target is a function of bytes that raises what the product is to raise for bad input, and
nothing else. atheris leads them through the code by its coverage where it is installed (extra
``fuzz``); without, seeds are mutated blindly. Besides, the property tests run on new examples. The
status is 1 if an input crashed, hung, or took too much memory; it is then in ``--out``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

#: No single input may take more processor time, or so much longer on a busy machine; and no target
#: more memory than it had plus so much.
INPUT_S, STUCK_S, MEMORY_MB = 20, 300, 1500

Target = Callable[[bytes], None]


def raw_images() -> tuple[Target, list[bytes]]:
    """``sensor_msgs/Image`` of any encoding, size, step, byte order and data."""
    from lowlat_seg_ros.images import ImageError, to_rgb
    from lowlat_seg_ros.images.raw import ENCODINGS

    names = [*ENCODINGS, "", "rgb9", "16UC1", "32FC3", "bayer_x8", "\0"]

    def target(data: bytes) -> None:
        head = struct.unpack_from("<BHHhB", data.ljust(8, b"\0"))
        name, height, width, more, big = head
        body = data[8:]
        if name & 1:  # else hardly any data would have the right length
            body = bytes(body[:1] * min((width + more) * height, 1 << 16))
        message = SimpleNamespace(
            encoding=names[(name >> 1) % len(names)], height=height % 300, width=width % 300,
            step=max(width % 300 + more % 5000, 0), is_bigendian=big & 1, data=body,
        )  # fmt: skip
        with suppress(ImageError):
            rgb = to_rgb(message)
            assert rgb.dtype == np.uint8
            assert rgb.shape == (message.height, message.width, 3)

    seeds = [
        struct.pack("<BHHhB", 2 * index + 1, 4, 6, step, 0) + b"x"
        for index in range(len(names))
        for step in (0, 6, 12, 18)
    ]
    return target, seeds


def compressed_images() -> tuple[Target, list[bytes]]:
    """``sensor_msgs/CompressedImage`` that begins as a JPEG or PNG and is damaged anywhere."""
    from lowlat_seg_ros.images import ImageError, to_rgb

    formats = [
        "",
        "jpeg",
        "rgb8; jpeg compressed bgr8",
        "bayer_rggb8; png compressed",
        "16UC1; png",
    ]

    def target(data: bytes) -> None:
        message = SimpleNamespace(format=formats[(data or b"\0")[0] % 5], data=data[1:])
        with suppress(ImageError):
            rgb = to_rgb(message)
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3

    colours = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    pictures = [colours, colours[..., 0], colours.astype(np.uint16) * 256]
    files = [cv2.imencode(".png", picture)[1] for picture in pictures]
    files += [cv2.imencode(".jpg", picture)[1] for picture in pictures[:2]]
    files.append(cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])
    return target, [bytes([n]) + bytes(file) for n, file in enumerate(files)]


def checkpoint_headers() -> tuple[Target, list[bytes]]:
    """A safetensors file that is damaged anywhere, most of it the header's JSON."""
    from lowlat_seg_ros.config import NETWORKS
    from lowlat_seg_ros.network.checkpoint import FORMAT, CheckpointError, Header, read_header

    file = Path(tempfile.mkdtemp()) / "x.safetensors"
    colours = tuple((n, n, n) for n in range(11))
    header = Header(NETWORKS["tiny"], tuple("abcdefghijk"), colours, 0.5, {"stages": [{}]})
    fields = {k: json.dumps(v) for k, v in dataclasses.asdict(header).items()}
    texts = [json.dumps({"format": FORMAT} | fields).encode()]
    texts += [json.dumps({"format": FORMAT} | fields | {k: "{}"}).encode() for k in fields]

    def target(data: bytes) -> None:
        whole, text = data[:1], data[1:]
        if whole == b"f":  # text is a whole file
            content = text
        else:
            head = (
                b'{"__metadata__":'
                + text
                + b',"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
            )
            content = struct.pack("<Q", len(head)) + head + b"\0"
        file.write_bytes(content)
        with suppress(CheckpointError):
            read = read_header(file)
            assert 0 <= read.threshold <= 1
            assert read.trained_height == int(read.trained_height)

    seeds = [b"m" + text for text in texts]
    target(seeds[0])
    return target, [*seeds, b"f" + file.read_bytes()]


def parameters() -> tuple[Target, list[bytes]]:
    """A file of parameters, of which the node reads for whom it is before rcl does."""
    from lowlat_seg_ros.config import ConfigError
    from lowlat_seg_ros.ros.start import cannot_initialise, foreign_files, nodes_in

    file = Path(tempfile.mkdtemp()) / "params.yaml"
    shipped = [path.read_bytes() for path in (ROOT / "config").glob("*.yaml")]

    def target(data: bytes) -> None:
        file.write_bytes(data)
        with suppress(ConfigError):
            assert nodes_in("--params-file", str(file))
            foreign_files([str(file)], "/a/segmentation_node")
        assert isinstance(cannot_initialise(RuntimeError(data.decode(errors="replace"))), str)

    small = [
        b"/**:\n  ros__parameters: {device: cpu}\n",
        b"a/b: {ros__parameters: }",
        b"? [x]\n: &a *a",
    ]
    return target, [*small, *(text[:600] for text in shipped)]


def bags() -> tuple[Target, list[bytes]]:
    """A bag of two images whose file or metadata is damaged anywhere."""
    from lowlat_seg_ros.lab.data.sequence import DataError
    from lowlat_seg_ros.tools.bag.storage import BagReader, BagWriter

    folder = Path(tempfile.mkdtemp())
    with BagWriter(folder / "seed", "mcap") as writer:
        for n in range(2):
            header = writer.messages.header(n * 10**8, "camera")
            image = writer.messages.image(header, np.full((2, 3, 3), n, np.uint8), "rgb8")
            writer.write("/image", image, n * 10**8)
    file, meta = folder / "x.mcap", folder / "bag" / "metadata.yaml"
    meta.parent.mkdir()
    seed = next((folder / "seed").glob("*.mcap"))
    (meta.parent / seed.name).write_bytes(seed.read_bytes())

    def target(data: bytes) -> None:
        path = file if data[:1] == b"f" else meta
        path.write_bytes(data[1:])
        with suppress(DataError), BagReader(file if path is file else meta.parent) as bag:
            for raw in bag.raw():
                bag.decode(raw)

    return target, [
        b"f" + seed.read_bytes(),
        b"m" + (folder / "seed" / "metadata.yaml").read_bytes(),
    ]


TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    make.__name__: make
    for make in (raw_images, compressed_images, checkpoint_headers, parameters, bags)
}


class Watch:
    """Counts inputs, writes each before it runs, and lets none hang."""

    def __init__(self, target: Target, folder: Path, name: str) -> None:
        self._target, self._name, self._folder = target, name, folder
        self._newest = os.open(folder / f"{name}.newest", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        self.count, self._began, self._base_mb = 0, time.monotonic(), peak_mb()
        self.slowest_s = self._due = 0.0
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, self._hangs)

    def __call__(self, data: bytes) -> None:
        os.pwrite(self._newest, struct.pack("<I", len(data)) + data, 0)
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, INPUT_S)
        signal.alarm(STUCK_S)
        self._target(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        self.count, took = self.count + 1, time.monotonic() - began
        self.slowest_s = max(self.slowest_s, took)
        if time.monotonic() > self._due:
            self._due = time.monotonic() + 0.5
            self.report()
            grown = peak_mb() - self._base_mb
            assert grown < MEMORY_MB, f"memory grew by {grown:.0f} MB"

    def report(self) -> None:
        facts = {
            "inputs": self.count, "seconds": time.monotonic() - self._began,
            "slowest_ms": self.slowest_s * 1e3, "grown_mb": peak_mb() - self._base_mb,
        }  # fmt: skip
        (self._folder / f"{self._name}.json").write_text(json.dumps(facts))

    def _hangs(self, *_: object) -> None:
        raise AssertionError(f"an input takes more than {INPUT_S} s of processor time, or hangs")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mutated(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One of ``seeds`` with a few bytes changed, left out, put in, or taken from another one."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        place = dice.randrange(len(data) + 1)
        length = dice.choice((0, 1, 1, 2, 4, 9))
        match dice.randrange(4):
            case 0:
                data[place : place + length] = dice.randbytes(length)
            case 1:
                data[place : place + length] = dice.choice((b"", b"\0", b"\xff" * 4, b"-1", b"1e9"))
            case 2:
                other = dice.choice(seeds)
                start = dice.randrange(len(other) + 1)
                data[place:place] = other[start : start + 4 * length]
            case _:
                if place < len(data):
                    data[place] ^= 1 << dice.randrange(8)
    return bytes(data)


def fuzz(name: str, seconds: float, folder: Path, seed: int) -> None:
    """Run one target in this process; raises what an input raised."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is not None:
        with atheris.instrument_imports(include=["lowlat_seg_ros", "yaml", "rosbags"]):
            target, seeds = TARGETS[name]()
    else:
        target, seeds = TARGETS[name]()
    watch = Watch(target, folder, name)
    end = time.monotonic() + seconds
    for data in seeds:
        watch(data)
    if atheris is None:
        dice = random.Random(seed)
        while time.monotonic() < end:
            watch(mutated(dice, seeds))
        watch.report()
        return
    corpus = folder / f"{name}.corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(data)
    options = [f"-max_total_time={max(round(seconds), 1)}", f"-seed={seed or 1}", "-max_len=4096"]
    options += [
        f"-artifact_prefix={folder}/{name}.",
        f"-rss_limit_mb={MEMORY_MB + 1500}",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], watch)
    atheris.Fuzz()  # ends the process


def property_tests(seconds: float, folder: Path, seed: int) -> int:
    """Run the property tests on new examples, in an order of its own, for as long as there is."""
    files = [
        str(path) for path in (ROOT / "test").glob("test_*.py") if "hypothesis" in path.read_text()
    ]
    machine = str(ROOT / "test" / "test_engine_machine.py")
    files.remove(machine)
    random.Random(seed).shuffle(files)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--hypothesis-profile=fuzz"]
    command += ["-p", "no:cacheprovider", "--hypothesis-show-statistics", "-rN", "--timeout=0"]
    with (folder / "property_tests.log").open("w") as log:
        running = subprocess.Popen([*command, machine, *files], cwd=ROOT, stdout=log, stderr=log)
        try:
            status = running.wait(seconds)
        except subprocess.TimeoutExpired:  # there is no end to random examples
            running.send_signal(signal.SIGINT)
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
            status = 0
    return 0 if status in (0, 5) else status


def run_all(minutes: float, folder: Path, seed: int) -> int:
    """All targets, two at a time, as long as it takes; the status."""
    shares = dict.fromkeys(TARGETS, 1.0) | {"property_tests": 1.5}
    each_s = 2 * (60 * minutes - 25) / sum(shares.values()) * 0.85  # the rest is for imports

    def work(name: str) -> tuple[str, int]:
        seconds = each_s * shares[name]
        if name == "property_tests":
            return name, property_tests(seconds, folder, seed)
        command = [sys.executable, __file__, "--target", name, "--seconds", str(seconds)]
        command += ["--out", str(folder), "--seed", str(seed)]
        with (folder / f"{name}.log").open("w") as log:
            return name, subprocess.run(command, stdout=log, stderr=log, check=False).returncode

    with ThreadPoolExecutor(2) as pool:
        results = dict(pool.map(work, sorted(shares, key=lambda name: -shares[name])))
    total = 0
    print(f"{'target':20}{'inputs':>10}{'per s':>8}{'slowest ms':>12}{'grown MB':>10}  status")
    for name, status in results.items():
        file = folder / f"{name}.json"
        facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        count, rate = facts.get("inputs", 0), facts.get("inputs", 0) / facts.get("seconds", 1)
        slowest, grown = facts.get("slowest_ms", 0), facts.get("grown_mb", 0)
        total += count
        said = "ok" if status == 0 else f"FAILED ({status}): see {folder / name}.log"
        if name == "property_tests":
            passed = re.search(r"(\d+) passed", (folder / f"{name}.log").read_text())
            said += f", {passed[1] if passed else 'no'} tests"
        print(f"{name:20}{count:10}{rate:8.0f}{slowest:12.0f}{grown:10.0f}  {said}")
    print(f"{total} inputs, and the property tests' examples")
    return 1 if any(results.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**31))
    parser.add_argument("--out", type=Path, default=Path("fuzz_output"))
    parser.add_argument("--target", choices=TARGETS, help="this one alone, in this process")
    parser.add_argument("--seconds", type=float, default=30.0, help="with --target")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out.resolve()
    if args.target:
        fuzz(args.target, args.seconds, folder, args.seed)
        return 0
    print(f"seed {args.seed}; logs and failing inputs in {folder}", flush=True)
    return run_all(args.minutes, folder, args.seed)


if __name__ == "__main__":
    sys.exit(main())
