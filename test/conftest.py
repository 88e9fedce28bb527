"""Settings of every test run: seeds, threads, the ROS domain, and small networks."""

from __future__ import annotations

import functools
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from lowlat_seg_ros.config import NETWORKS
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network import checkpoint
from lowlat_seg_ros.network.checkpoint import Header
from lowlat_seg_ros.network.segmenter import Segmenter

# Property tests: the same examples on every run, new and more ones with `make fuzz`. No check looks
# at a clock, for a busy machine makes any example slow. Tests whose examples are expensive ask for
# a share of max_examples.
_property_tests = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("fixed", _property_tests, derandomize=True, max_examples=60)
settings.register_profile("fuzz", _property_tests, max_examples=600, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For pytest-xdist: a file's tests share fixtures, and live nodes would hold each other up.

    A scheduler, as ``--dist loadgroup`` of pytest-xdist 3.8 has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneProcessForLiveNodes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "test/ros" if file.startswith("test/ros/") else file

    return OneProcessForLiveNodes(config, log)


@pytest.fixture(scope="session", autouse=True)
def ros_domain() -> Iterator[None]:
    """Give this run a ROS domain of its own, so that runs side by side do not hear each other.

    The domain stays reserved among the runs on this machine until the run ends. Processes that
    tests start inherit it. Nothing to do where there is no ROS.
    """
    with ExitStack() as stack:
        try:
            from domain_coordinator import domain_id
        except ImportError:
            yield
            return
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("ROS_DOMAIN_ID", str(stack.enter_context(domain_id())))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What tests start heeds SIGINT, also where a shell runs this in the background, without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def rendered_once() -> Iterator[None]:
    """For tests that train, see :func:`render_once`."""
    with render_once():
        yield


@contextmanager
def render_once() -> Iterator[None]:
    """Each training renders the same few dozen frames; within this context they are made once."""
    from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
    from lowlat_seg_ros.lab.training import sources

    class Drive(RenderedDrive):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.frames: dict[int, Any] = {}

        def __getitem__(self, index: int) -> Any:
            if index not in self.frames:
                self.frames[index] = super().__getitem__(index)
            return self.frames[index]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "RenderedDrive", functools.cache(Drive))
        yield


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Every test starts with the same seeds and one thread, whichever tests ran before it.

    Networks of the tests are too small for several threads, which cost most beside a busy core; an
    engine leaves the thread that it ran in with the number of threads that its frames had.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@functools.cache
def lively_weights(name: str) -> dict[str, torch.Tensor]:
    """Random weights, brought to life: a fresh network gives one class nearly everywhere."""
    torch.manual_seed(0)
    segmenter = Segmenter(NETWORKS[name])
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for _ in range(30):  # BatchNorm takes in the statistics of every part
            low = segmenter.lower(images)
            reduced = segmenter.predictor.reduce(low)
            weights = segmenter.predictor(segmenter.predictor.remember(reduced.roll(1, 0)), reduced)
            high = segmenter.higher(segmenter.source(images, low))
            adapted = segmenter.adapt(low)
            carried = segmenter.propagate(segmenter.carried_cells(high), weights)
            mixed = reduced if segmenter.is_coarse else adapted
            features = {
                segmenter.high_classifier: high,
                segmenter.low_classifier: adapted,
                segmenter.classifier: segmenter.fusion(carried, mixed),
            }
            segmenter.selector(segmenter.selector.reduce(low).roll(1, 0), low.new_zeros(()))
        for head, inputs in features.items():
            torch.nn.init.normal_(head.weight)
            torch.nn.init.zeros_(head.bias)
            answers = torch.nn.Conv2d.forward(head, inputs)  # before they are put in their places
            head.bias -= answers.mean(dim=(0, 2, 3))
    return segmenter.state_dict()


def lively(name: str) -> Segmenter:
    """A small named network with all parts; its masks show many classes."""
    segmenter = Segmenter(NETWORKS[name])
    segmenter.load_state_dict(lively_weights(name))
    return segmenter.eval()


@pytest.fixture
def tiny() -> Segmenter:
    """The smallest network."""
    return lively("tiny")


@pytest.fixture
def tiny_ddr() -> Segmenter:
    """The smallest network whose Sl is an encoder of its own."""
    return lively("tiny_ddr")


@pytest.fixture(params=["tiny_gated", "tiny_coarse"])
def gated(request: pytest.FixtureRequest) -> Segmenter:
    """The smallest networks with a gate; Eq. (1) moves cells at 1/8 or 1/16."""
    return lively(request.param)


@pytest.fixture(params=["tiny", "tiny_ddr"])
def network(request: pytest.FixtureRequest) -> Segmenter:
    """Each arrangement of Sl and Sh."""
    return lively(request.param)


@pytest.fixture(scope="session")
def shared_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ``tiny``, with CamVid's classes, to be read only."""
    path: Path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    header = Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.3, {"licence": "none"})
    checkpoint.save(path, lively("tiny"), header, torch.float32)
    return path


@pytest.fixture
def weights(shared_weights: Path, tmp_path: Path) -> Path:
    """A copy of it in the test's own folder."""
    return Path(shutil.copy(shared_weights, tmp_path))


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    """Random but fixed images: ``make_frame(index, size, stamp_ms, frame_id, encoding)``, 10 Hz."""

    def make(
        index: int,
        size: tuple[int, int] = (48, 64),
        stamp_ms: float | None = None,
        frame_id: str = "camera",
        encoding: str = "",
    ) -> Frame:
        image = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        stamp_ns = round((100 * index if stamp_ms is None else stamp_ms) * 1e6)
        return Frame(image, stamp_ns, frame_id, encoding)

    return make
