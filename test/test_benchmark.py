"""``lowlat-seg benchmark``: what it writes, and that it measures what it says."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowlat_seg_ros.config import NETWORKS, EngineConfig
from lowlat_seg_ros.engine.cpu_threads import cores
from lowlat_seg_ros.frames import StageTiming
from lowlat_seg_ros.lab.baselines.stream import FullEngine
from lowlat_seg_ros.lab.benchmark import timing
from lowlat_seg_ros.lab.benchmark.costs import count, fit, weights_mb
from lowlat_seg_ros.lab.benchmark.kernel import (
    PAPER,
    TURN_S,
    Limits,
    Shape,
    busy_core,
    propagate_by_unfold,
    take_turns,
)
from lowlat_seg_ros.lab.benchmark.methods import MethodResult, Refinements, fastest
from lowlat_seg_ros.lab.benchmark.timing import WARM_UP, Camera, FastTrack, Run, play
from lowlat_seg_ros.network.propagation import spatially_variant_convolution
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.tools import cli

pytestmark = pytest.mark.slow

PACED = ("full_paced", "ddrnet23_slim_paced", "single_frame_paced", "fast_idle", "fast_busy")
SIDES = ("full", "ddrnet23_slim", *PACED)
ALL_CORES = os.sched_getaffinity(0)
PERCENTILES = {"min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"}


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
    options = ["--config", "tiny", "--device", "cpu", "--resolution", "48x64", "--rate", "50,25"]
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
def fast(tiny: Segmenter, camera: Camera) -> Iterator[FastTrack]:
    with FastTrack(tiny, camera, rate_hz=200.0) as fast:
        yield fast


def test_each_side_has_all_frames_and_its_threads(figures: dict[str, Any]) -> None:
    frames = figures["facts"]["frames"]
    for name in SIDES:
        side = figures[name]
        assert side.keys() >= PERCENTILES
        assert (side["count"], side["threads"]) == (frames, 1)
        # The camera brings 50 frames a second; a late first one makes the few of them look faster.
        assert side["rate_hz"] < (75 if name in PACED else math.inf)
        assert 0 < side["control_p50_ms"] <= side["control_p99_ms"]


def test_what_is_written_of_the_sides_is_in_its_place(figures: dict[str, Any]) -> None:
    bars, work = figures["bars"], figures["refinements"]
    assert figures["ratio_busy_p99"] == bars["fast_busy_p99_over_full_p50"]
    assert bars["refinements_share_of_allowed"] == work["share_of_allowed"]
    assert figures["refinements_per_s"] == work["busy_per_s"]
    assert work["job"].keys() >= PERCENTILES
    assert work["saturated_share"] == 1


def test_what_is_paced_is_measured_at_each_rate(figures: dict[str, Any], folder: Path) -> None:
    rates = figures["rates"]
    assert list(rates) == ["50", "25"]
    assert rates["50"] == {name: figures[name] for name in SIDES}
    assert rates["25"]["full"] == figures["full"]  # back to back, whatever the camera does
    for name in PACED:
        assert rates["25"][name]["rate_hz"] < 37.5
    page = (folder / "page" / "benchmark.md").read_text()
    assert "| method | 50 Hz | 25 Hz |" in page
    assert (folder / "page" / "figures" / "rates.png").stat().st_size > 0


def test_a_mask_is_late_unless_the_machine_was() -> None:
    """Of 10 frames at 20 Hz one is late, and one while the control took three times as long."""
    latencies = [10.0] * 8 + [60.0, 70.0]
    run: Run[StageTiming] = Run(
        [StageTiming(latency_ms=ms) for ms in latencies],
        spent_ms=latencies, window_s=0.5, control_ms=[1.0] * 9 + [3.0],
    )  # fmt: skip
    paced, back_to_back = (MethodResult.of(run, 1, rate_hz) for rate_hz in (20.0, 0.0))
    assert (paced.late, paced.excused) == pytest.approx((0.1, 0.1))
    assert (back_to_back.late, back_to_back.excused) == (0.0, 0.0)


def test_steady_is_the_busy_fast_track_alone(tmp_path: Path) -> None:
    written = tmp_path / "steady.json"
    options = ["--config", "tiny", "--device", "cpu", "--resolution", "48x64", "--rate", "50"]
    only = ["--only", "steady", "--frames", "8", "--json", str(written)]
    assert cli.main(["benchmark", *options, *only]) == 0
    figures = json.loads(written.read_text())
    assert figures["steady"]["count"] == 8
    assert "full" not in figures


def test_refinements_by_hand() -> None:
    """8 jobs in 2 s, of which frames took 1.5 s, where one job alone takes 100 ms."""
    run: Run[StageTiming] = Run([], spent_ms=[500.0, 1000.0], window_s=2.0)
    found = Refinements.of(8, [True, True, False, True], run, [90.0, 110.0])
    assert (found.busy_per_s, found.idle_per_s) == pytest.approx((4.0, 10.0))
    assert found.idle_time_share == pytest.approx(0.25)
    assert found.allowed_per_s == pytest.approx(2.5)
    assert found.share_of_allowed == pytest.approx(1.6)
    assert found.saturated_share == 0.75


def test_stages_are_those_that_each_side_runs(figures: dict[str, Any]) -> None:
    both = {"preprocess_ms", "lower_ms", "fusion_ms", "postprocess_ms"}
    fast = both | {"predictor_ms", "propagation_ms", "selector_ms"}
    stages = figures["stages"]
    assert {side: set(stages[side]) for side in stages} == {
        "full": both | {"higher_ms"},
        "fast": fast,
    }
    counts = {latency["count"] for side in stages.values() for latency in side.values()}
    assert counts == {figures["facts"]["frames"]}


def test_propagation_is_measured_at_both_sizes(figures: dict[str, Any]) -> None:
    for name, shape in {"propagation": PAPER, "propagation_here": Shape(8, 6, 8, 9)}.items():
        kernel = figures[name]
        assert kernel["shape"] == vars(shape)
        assert kernel["largest_difference"] < 1e-4
    large, small = (figures[name] for name in ("propagation", "propagation_here"))
    assert large["roofline_ms"] > 100 * small["roofline_ms"]
    alone = ("ms", "unfold_ms", "conv3x3_ms")
    ours, unfold, convolution = (large[name] for name in alone)
    assert large["vs_unfold"] == pytest.approx(unfold / ours, rel=1e-3)
    assert large["vs_conv3x3"] == pytest.approx(convolution / ours, rel=1e-3)
    assert figures["bars"]["propagation_vs_unfold"] == large["vs_unfold"]


def test_freshness_counts_what_arrives(figures: dict[str, Any]) -> None:
    found = figures["freshness"]
    assert (found["rate_hz"], found["frames"]) == (50.0, figures["facts"]["frames"])
    # A result for each frame at most; from the first frame to the last it is one period less.
    assert 0 < found["per_s"] * (found["frames"] - 1) / 50 <= found["frames"]
    assert 1 <= found["age_frames"] <= found["oldest_frames"]


def test_cost_is_given_over_sizes_and_cameras(figures: dict[str, Any]) -> None:
    frames = figures["facts"]["frames"]
    sizes = figures["resolutions"]["sizes"]
    assert [(s["height"], s["width"]) for s in sizes] == [(24, 32), (32, 48), (48, 64), (72, 96)]
    assert [s["latency"]["count"] for s in sizes] == [frames] * 4
    rigs = figures["cameras"]
    assert [rig["cameras"] for rig in rigs] == [1, 2, 3, 4, 5, 6]
    for rig in rigs:
        assert rig["latency"]["count"] == math.ceil(frames / rig["cameras"])


def test_weights_are_counted_in_bytes() -> None:
    assert weights_mb(torch.nn.Linear(10, 5)) == pytest.approx(4 * 55 / 1e6)


def test_memory_and_facts_are_given(figures: dict[str, Any]) -> None:
    memory, facts = figures["memory"], figures["facts"]
    assert memory["peak_mb"] >= memory["before_mb"] > memory["ddrnet_weights_mb"]
    assert memory["weights_mb"] < memory["ddrnet_weights_mb"]  # tiny is
    assert memory["gpu_peak_mb"] == 0
    assert facts["machine"]["torch"] == torch.__version__
    assert (facts["size"], facts["weights"], facts["device"]) == ([48, 64], "random", "cpu")
    command = "lowlat-seg benchmark --config tiny --device cpu --resolution 48x64 --rate 50,25"
    assert facts["command"] == f"{command} --quick"


def test_the_page_has_tables_and_its_charts(folder: Path, figures: dict[str, Any]) -> None:
    page = (folder / "page" / "benchmark.md").read_text()
    for name in (*SIDES, *figures["bars"], *figures["memory"], "64x48", "beside_busy_core"):
        assert f"| `{name}` |" in page
    assert figures["facts"]["command"] in page
    assert str(folder) not in page
    links = re.findall(r"!\[.*\]\((.*)\)", page)
    assert links == [f"figures/{name}.png" for name in ("latency", "rates", "scaling")]
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


def test_a_run_leaves_no_threads_to_the_next_one() -> None:
    seen: list[threading.Thread] = []
    play(lambda: seen.append(threading.current_thread()), 2)
    assert len(seen) == WARM_UP + 2
    assert threading.current_thread() not in seen
    assert not any(thread.is_alive() for thread in seen)


def test_a_run_counts_what_comes_after_warming_up() -> None:
    begun: list[int] = []
    numbers = iter(range(100))
    steps: list[int] = []
    run = play(
        partial(next, numbers), 4, progress=steps.append, begin=lambda: begun.append(1), warm_up=2
    )
    assert run.answers == [2, 3, 4, 5]
    assert (len(run.spent_ms), len(begun), sum(steps)) == (4, 1, 4)
    more = play(partial(next, numbers), 1, warm_up=0)
    run.add(more)
    assert run.answers == [2, 3, 4, 5, 6]


def test_a_late_frame_does_not_make_the_next_ones_early() -> None:
    """By an injected clock: one step of 25 ms at 100 Hz, the others take no time."""
    clock, began = Clock(), []

    def step() -> None:
        began.append(round(clock.now * 1e3))
        if len(began) == 2:
            clock.now += 0.025

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "time", clock)
        run = play(step, 4, rate_hz=100.0, warm_up=0)
    assert began == [0, 10, 35, 45]
    assert run.window_s == pytest.approx(0.055)  # up to the end of the last one's period
    assert run.spent_ms == pytest.approx([0, 25, 0, 0])


class Clock:
    """Stands for the module ``time``; only sleeping takes time."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_unfold_computes_the_same(kernel: int) -> None:
    generator = torch.Generator().manual_seed(kernel)
    features = torch.randn(2, 5, 7, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, kernel**2, 7, 6, generator=generator, dtype=torch.float64).softmax(1)
    expected: Tensor = spatially_variant_convolution(features, weights)
    torch.testing.assert_close(propagate_by_unfold(features, weights), expected)


def test_idle_means_that_sh_gets_no_job(fast: FastTrack) -> None:
    run = fast.idle(5)
    run.add(fast.idle(2))
    counters = fast.engine.counters
    assert (counters.submitted, counters.resets, counters.frames) == (0, 0, 2 * WARM_UP + 7)
    assert all(timing.higher_ms == 0 for timing in run.answers)


def test_saturated_means_that_every_frame_is_a_key_frame_and_finds_sh_busy(
    fast: FastTrack,
) -> None:
    fast.busy(5)
    counters = fast.engine.counters
    assert counters.key_frames == counters.frames == WARM_UP + 5
    assert fast.found_busy == [True] * 5
    assert (counters.pending, counters.failed) == (0, 0)
    assert not fast.engine.slow_track().running
    # Those of the warm-up do not count.
    assert 0 <= fast.jobs < counters.refined + counters.carried + counters.dropped_late


def test_a_saturated_slow_track_does_the_last_job_again(fast: FastTrack) -> None:
    """Until it is to be idle: then it comes to rest."""
    fast.rate_hz = 0.0
    frames = 0

    def slow_camera() -> StageTiming:
        nonlocal frames
        frames += 1
        answer, done = process(), jobs(fast)
        if frames > 1:  # the first one runs Sh in the foreground
            deadline = time.monotonic() + 60
            while jobs(fast) < done + 3:  # more than one key frame could give
                assert time.monotonic() < deadline
                time.sleep(0.001)
        return answer

    process = fast.process
    fast.process = slow_camera  # type: ignore[method-assign]
    fast.busy(1)
    assert jobs(fast) > fast.engine.counters.key_frames
    fast.process = process  # type: ignore[method-assign]
    before = jobs(fast)
    fast.idle(3)
    assert jobs(fast) == before


def jobs(fast: FastTrack) -> int:
    counters = fast.engine.counters
    return counters.refined + counters.carried + counters.dropped_late


def test_a_side_whose_sh_fails_is_no_measurement(tiny: Segmenter, camera: Camera) -> None:
    with torch.no_grad():
        for parameter in tiny.context.parameters():
            parameter.fill_(float("nan"))
    with (
        FastTrack(tiny, camera) as fast,
        pytest.raises(RuntimeError, match=r"Sh failed, so times mean nothing: .*not finite"),
    ):
        fast.idle(1)


def test_a_baseline_gets_what_serves_it_best(tiny: Segmenter, camera: Camera) -> None:
    asked: list[tuple[str, int]] = []

    def make(config: EngineConfig) -> FullEngine:
        asked.append((config.runtime, config.foreground_threads))
        return FullEngine(tiny, config)

    os.sched_setaffinity(0, ALL_CORES)
    try:
        method, threads = fastest(make, camera, ("auto", "pytorch"))
        counts = sorted({cores(), max(1, cores() - 1)}, reverse=True)
        assert asked == [(runtime, count) for runtime in ("auto", "pytorch") for count in counts]
    finally:
        os.sched_setaffinity(0, {min(ALL_CORES)})
    assert threads in counts
    assert method.counters.frames == WARM_UP + 5


def test_operators_take_turns_with_their_own_threads() -> None:
    calls: list[tuple[str, int]] = []

    def work(name: str) -> None:
        calls.append((name, torch.get_num_threads()))
        time.sleep(0.001)

    taken = take_turns(
        {"one": (partial(work, "one"), 1), "two": (partial(work, "two"), 2)}, 2 * TURN_S
    )
    assert set(calls) == {("one", 1), ("two", 2)}
    changes = [name for number, (name, _) in enumerate(calls) if name != calls[number - 1][0]]
    assert changes == ["one", "two"] * 2
    assert all(times and min(times) >= 1.0 for times in taken.values())


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
        (["--rate", "5,fast"], "--rate is '5,fast'; give numbers"),
        (["--config", "tiny", "--only", "end_to_end"], "no weights, which the node needs"),
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
