"""``lowlat-seg benchmark``: what it writes, and that it measures what it says."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowlat_seg_ros import cli
from lowlat_seg_ros.config import NETWORKS, EngineConfig
from lowlat_seg_ros.engine.device import cores
from lowlat_seg_ros.engine.engine import Engine, Publish
from lowlat_seg_ros.frames import Frame, Segmentation
from lowlat_seg_ros.lab.baselines.full import FullEngine
from lowlat_seg_ros.lab.benchmark.arithmetic import count
from lowlat_seg_ros.lab.benchmark.camera import Camera
from lowlat_seg_ros.lab.benchmark.contest import fastest
from lowlat_seg_ros.lab.benchmark.kernel import PAPER, Shape, propagate, propagate_by_unfold
from lowlat_seg_ros.lab.benchmark.limits import Limits
from lowlat_seg_ros.lab.benchmark.saturation import EndlessSlowTrack
from lowlat_seg_ros.lab.benchmark.scaling import fit
from lowlat_seg_ros.lab.benchmark.sides import IDLE, SATURATED, FastTrack, Saturated, Side, drain
from lowlat_seg_ros.lab.benchmark.timing import WARM_UP, Latency, alternating, busy_core
from lowlat_seg_ros.network.segmenter import Segmenter

pytestmark = pytest.mark.slow

SIDES = ("full", "ddrnet23_slim", "fast_idle", "fast_busy")
ALL_CORES = os.sched_getaffinity(0)
PERCENTILES = ("min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Networks so small take longer on two threads, above all beside a busy core."""
    os.sched_setaffinity(0, {min(ALL_CORES)})
    yield
    os.sched_setaffinity(0, ALL_CORES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes: ``new/figures.json`` and the page in ``page``."""
    folder = tmp_path_factory.mktemp("benchmark")
    options = ["--config", "tiny", "--device", "cpu", "--resolution", "48x64", "--rate", "50"]
    written = ["--json", str(folder / "new" / "figures.json"), "--out", str(folder / "page")]
    assert cli.main(["benchmark", "--quick", *options, *written]) == 0
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "new" / "figures.json").read_text())
    return content


@pytest.fixture
def camera() -> Camera:
    random = np.random.default_rng(0)
    return Camera([random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)])


@pytest.fixture
def endless() -> threading.Event:
    return threading.Event()


@pytest.fixture
def engine(tiny: Segmenter, endless: threading.Event) -> Iterator[Engine]:
    track = partial(EndlessSlowTrack, endless)
    with Engine(tiny, IDLE, threshold=1.0, slow_track=track) as engine:
        yield engine


def rises(latency: dict[str, float]) -> bool:
    values = [latency[name] for name in PERCENTILES]
    return values[0] > 0 and values == sorted(values)


def test_each_side_has_all_frames_and_its_threads(figures: dict[str, Any]) -> None:
    frames = figures["facts"]["frames"]
    for name in SIDES:
        side = figures[name]
        assert rises(side), name
        assert (side["count"], side["threads"]) == (frames, 1)
        assert side["other_cores"] is None or side["other_cores"] >= 0
        assert side["rate_hz"] > 0


def test_ratios_are_those_of_the_figures(figures: dict[str, Any]) -> None:
    bars, worst = figures["bars"], figures["fast_busy"]["p99_ms"]
    close = partial(pytest.approx, rel=1e-3, abs=1e-5)  # as the file has six decimals
    assert figures["ratio_busy_p99"] == close(worst / figures["full"]["p50_ms"])
    assert bars["fast_busy_p99_over_full_p50"] == figures["ratio_busy_p99"]
    assert bars["fast_busy_p99_over_fast_idle_p50"] == close(worst / figures["fast_idle"]["p50_ms"])
    ddrnet = figures["ddrnet23_slim"]["p50_ms"]
    assert bars["fast_busy_p99_over_ddrnet_p50"] == close(worst / ddrnet)
    assert None not in bars.values()


def test_refinements_add_up(figures: dict[str, Any]) -> None:
    work = figures["refinements"]
    assert figures["refinements_per_s"] == work["busy_per_s"] > 0
    assert rises(work["job"])
    assert 0 < work["idle_time_share"] < 1
    allowed = work["idle_per_s"] * work["idle_time_share"]
    assert work["allowed_per_s"] == pytest.approx(allowed, rel=1e-3)
    share = work["busy_per_s"] / work["allowed_per_s"]
    assert work["share_of_allowed"] == pytest.approx(share, rel=1e-3)
    assert work["saturated_share"] == 1


def test_stages_are_those_that_each_side_runs(figures: dict[str, Any]) -> None:
    both = {"preprocess_ms", "lower_ms", "fusion_ms", "postprocess_ms"}
    fast = both | {"predictor_ms", "propagation_ms", "selector_ms"}
    stages = figures["stages"]
    assert {side: set(stages[side]) for side in stages} == {
        "full": both | {"higher_ms"},
        "fast": fast,
    }
    assert all(rises(latency) for side in stages.values() for latency in side.values())


def test_propagation_is_measured_against_rivals_and_limits(figures: dict[str, Any]) -> None:
    sizes = {"propagation": PAPER, "propagation_here": Shape(8, 6, 8, 9)}
    for name, shape in sizes.items():
        kernel = figures[name]
        assert kernel["shape"] == vars(shape)
        assert kernel["largest_difference"] < 1e-4
        for times in (kernel, kernel["beside_busy_core"]):
            for rival in ("unfold", "conv3x3"):
                ratio = times[f"{rival}_ms"] / times["ms"]
                assert times[f"vs_{rival}"] == pytest.approx(ratio, rel=1e-2)
        limits = Limits(**figures["limits"])
        least = limits.least_ms(shape.bytes_moved, shape.multiply_adds)
        assert kernel["roofline_ms"] == pytest.approx(least, abs=2e-6)
        fraction = kernel["roofline_ms"] / kernel["ms"]
        assert kernel["roofline_fraction"] == pytest.approx(fraction, abs=1e-4)


def test_freshness_counts_what_arrives(figures: dict[str, Any]) -> None:
    found = figures["freshness"]
    assert (found["rate_hz"], found["frames"]) == (50.0, figures["facts"]["frames"])
    assert found["per_s"] > 0
    assert 1 <= found["age_frames"] <= found["oldest_frames"]
    assert found["compute_ms"] > 0


def test_cost_is_given_over_sizes_and_cameras(figures: dict[str, Any]) -> None:
    frames = figures["facts"]["frames"]
    sizes = figures["resolutions"]["sizes"]
    assert [(s["height"], s["width"]) for s in sizes] == [(24, 32), (32, 48), (48, 64), (72, 96)]
    assert all(rises(s["latency"]) and s["latency"]["count"] == frames for s in sizes)
    rigs = figures["cameras"]
    assert [rig["cameras"] for rig in rigs] == [1, 2, 3, 4, 5, 6]
    for rig in rigs:
        assert rises(rig["latency"])
        assert rig["latency"]["count"] == math.ceil(frames / rig["cameras"])


def test_memory_and_facts_are_given(figures: dict[str, Any], tmp_path: Path) -> None:
    memory, facts = figures["memory"], figures["facts"]
    assert memory["peak_mb"] >= memory["before_mb"] > memory["ddrnet_weights_mb"] > 0
    assert memory["weights_mb"] > 0
    assert memory["gpu_peak_mb"] == 0
    assert facts["machine"]["torch"] == torch.__version__
    assert (facts["size"], facts["weights"], facts["device"]) == ([48, 64], "random", "cpu")
    command = "lowlat-seg benchmark --config tiny --device cpu --resolution 48x64 --rate 50.0"
    assert facts["command"] == f"{command} --quick"


def test_multiply_adds_are_those_of_the_network(figures: dict[str, Any]) -> None:
    counted = vars(count(NETWORKS["tiny"], (48, 64)))
    assert figures["multiply_adds"] == pytest.approx(counted, abs=1e-6)
    assert figures["graphs"] == {"captured": 0, "failed": 0}


def test_the_page_has_tables_and_its_charts(folder: Path, figures: dict[str, Any]) -> None:
    page = (folder / "page" / "benchmark.md").read_text()
    for name in (*SIDES, *figures["bars"], *figures["memory"], "64x48", "beside_busy_core"):
        assert f"| `{name}` |" in page
    assert figures["facts"]["command"] in page
    assert str(folder) not in page
    links = re.findall(r"!\[.*\]\((.*)\)", page)
    assert links == ["figures/latency.png", "figures/scaling.png"]
    for link in links:
        assert (folder / "page" / link).read_bytes().startswith(b"\x89PNG")


def test_parts_that_are_not_wanted_are_not_there(tmp_path: Path, weights: Path) -> None:
    """Of a network that is given by its checkpoint."""
    json_file = tmp_path / "figures.json"
    options = ["--quick", "--device", "cpu", "--resolution", "48x64", "--only", "resolutions"]
    written = ["--json", str(json_file), "--out", str(tmp_path)]
    assert cli.main(["benchmark", "--checkpoint", str(weights), *options, *written]) == 0
    figures = json.loads(json_file.read_text())
    assert set(figures) == {"facts", "resolutions", "multiply_adds", "graphs", "bars"}
    assert set(figures["bars"]) == {"linear_deviation"}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert figures["facts"]["weights"] == f"tiny.safetensors, SHA-256 {digest}"
    assert (figures["facts"]["config"], str(tmp_path) in json_file.read_text()) == ("tiny", False)
    page = (tmp_path / "benchmark.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        "Ratios",
        "Fast track over the resolution, ms",
        "Multiply-adds of a frame",
        "CUDA graphs",
    ]
    assert "fast_busy" not in page


def test_a_block_leaves_no_threads_to_the_next_side(tiny: Segmenter, camera: Camera) -> None:
    seen: list[threading.Thread] = []

    class Method(FullEngine):
        def process(self, frame: Frame, publish: Publish | None = None) -> Segmentation:
            seen.append(threading.current_thread())
            return super().process(frame, publish)

    side = Side("full", Method(tiny), threads=1)
    side.block(camera, 1, lambda step: None)
    assert threading.current_thread() not in seen
    assert not any(thread.is_alive() for thread in seen)


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_unfold_computes_the_same(kernel: int) -> None:
    generator = torch.Generator().manual_seed(kernel)
    features = torch.randn(2, 5, 7, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, kernel**2, 7, 6, generator=generator, dtype=torch.float64).softmax(1)
    expected: Tensor = propagate(features, weights)
    torch.testing.assert_close(propagate_by_unfold(features, weights), expected)


def test_idle_means_that_sh_gets_no_job(engine: Engine, camera: Camera) -> None:
    side = FastTrack("fast_idle", engine, IDLE, threads=1)
    told: list[int] = []
    side.block(camera, 5, told.append)
    side.block(camera, 2, told.append)
    assert (len(side.timings), sum(told)) == (7, 7)
    assert engine.counters.submitted == 0
    assert engine.counters.resets == 0
    assert all(timing.higher_ms == 0 for timing in side.timings)


def test_saturated_means_that_every_frame_is_a_key_frame_and_finds_sh_busy(
    engine: Engine, endless: threading.Event, camera: Camera
) -> None:
    side = Saturated("fast_busy", engine, endless, threads=1, rate_hz=200.0)
    side.block(camera, 5, lambda step: None)
    counters = engine.counters
    assert counters.key_frames == counters.frames
    assert side.busy_share == 1
    assert (counters.pending, counters.failed) == (0, 0)
    assert not engine.slow_track().running
    assert 0 <= side.refinements <= counters.submitted


def test_an_endless_slow_track_does_the_last_job_again_until_it_is_told_not_to(
    engine: Engine, endless: threading.Event, camera: Camera
) -> None:
    engine.reconfigure(SATURATED)
    endless.set()
    for _ in range(2):  # the first one runs Sh in the foreground
        engine.process(camera.frame())
    while engine.counters.refined < 5:
        time.sleep(0.001)
    endless.clear()
    drain(engine)
    done = engine.counters
    assert done.key_frames == 2
    assert done.submitted == done.refined >= 5


def test_a_side_whose_sh_fails_is_no_measurement(
    tiny: Segmenter, endless: threading.Event, camera: Camera
) -> None:
    with torch.no_grad():
        for parameter in tiny.context.parameters():
            parameter.fill_(float("nan"))
    with Engine(tiny, IDLE, threshold=1.0) as engine:
        side = FastTrack("fast_idle", engine, IDLE, threads=1)
        with pytest.raises(RuntimeError, match=r"Sh failed, so times mean nothing: .*not finite"):
            side.block(camera, 1, lambda step: None)


def test_a_rival_gets_the_threads_that_serve_it_best(tiny: Segmenter, camera: Camera) -> None:
    asked: list[int] = []

    def make(config: EngineConfig) -> FullEngine:
        asked.append(config.foreground_threads)
        return FullEngine(tiny, config)

    os.sched_setaffinity(0, ALL_CORES)
    try:
        side = fastest("full", make, camera)
        assert asked == sorted({cores(), max(1, cores() - 1)}, reverse=True)
    finally:
        os.sched_setaffinity(0, {min(ALL_CORES)})
    assert side.threads in asked
    assert side.timings == []  # the trial does not count


def test_works_take_turns_and_the_first_turns_do_not_count() -> None:
    calls: list[str] = []
    works: dict[str, Callable[[], object]] = {
        name: partial(calls.append, name) for name in ("one", "two")
    }
    waits: list[int] = []
    taken = alternating(works, 3, lambda: waits.append(len(calls)))
    assert calls == ["one", "two"] * (WARM_UP + 3)
    assert {name: latency.count for name, latency in taken.items()} == {"one": 3, "two": 3}
    # Before and after each call.
    assert waits == [n + after for n in range(len(calls)) for after in (0, 1)]


def test_percentiles() -> None:
    latency = Latency.of([float(value) for value in range(101)])
    assert latency == Latency(101, 0.0, 50.0, 95.0, 99.0, 100.0)


def test_the_busy_core_is_given_back() -> None:
    with busy_core() as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_least_time_is_that_of_the_narrower_limit() -> None:
    limits = Limits(memory_gb_per_s=10.0, multiply_adds_g_per_s=40.0)
    assert limits.least_ms(bytes_moved=10**7, multiply_adds=10**6) == pytest.approx(1.0)
    assert limits.least_ms(bytes_moved=10**7, multiply_adds=8 * 10**7) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("network", "fast", "with_selector"),
    [("paper_resnet101", 0.230, 0.278), ("resnet101_fast", 0.158, 0.168)],
)
def test_multiply_adds_of_the_large_networks(
    network: str, fast: float, with_selector: float
) -> None:
    counted = count(NETWORKS[network], (1024, 2048))
    assert counted.fast_over_full == pytest.approx(fast, abs=1e-3)
    assert counted.fast_and_selector_over_full == pytest.approx(with_selector, abs=1e-3)
    assert counted.full_g == pytest.approx(2045, rel=0.01)


def test_the_gate_is_counted() -> None:
    """It alone tells both networks apart."""
    size = (48, 64)
    gated = count(NETWORKS["tiny_gated"], size)
    assert gated.fast_g > count(NETWORKS["tiny_ddr"], size).fast_g


def test_multiply_adds_grow_with_the_pixels_and_padding_counts() -> None:
    small, large, odd = (count(NETWORKS["tiny"], size) for size in ((64, 96), (128, 96), (121, 89)))
    assert large.lower_g == odd.lower_g == pytest.approx(2 * small.lower_g)
    assert small.fast_g < small.full_g


def test_line_through_costs() -> None:
    amounts = [0.25, 0.5, 1.0, 2.0]
    base, slope, deviation = fit(amounts, [3 + 7 * x for x in amounts])
    assert (base, slope) == pytest.approx((3.0, 7.0))
    assert deviation == pytest.approx(0.0, abs=1e-9)
    assert fit(amounts, [1 + 10 * x * x for x in amounts])[2] > 0.15


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--frames", "1"], "--frames is 1"),
        (
            ["--only", "sides,speed"],
            "--only is 'sides,speed'; choose of sides, freshness, propagation",
        ),
        (["--checkpoint", "/none.safetensors"], "/none.safetensors is not a readable"),
        (["--rate", "0"], "--rate is 0.0"),
        (["--rate", "nan"], "--rate is nan"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--resolution", "8x80"], "--resolution is 8x80"),
    ],
)
def test_wrong_options_end_in_one_line(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["benchmark", *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.strip().count("\n") == 0
