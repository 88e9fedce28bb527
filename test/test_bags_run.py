"""``lowlat-seg bag run``: the offline replay does what the engine does, and accounts for all."""

from __future__ import annotations

import dataclasses
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("rosbags", reason="bags need the library rosbags")

from lowlat_seg_ros.config import ConfigError, EngineConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import (
    Counters,
    Deadline,
    Frame,
    Ledger,
    MaskKind,
    NodeTiming,
    Provenance,
    ResetReason,
    Segmentation,
    Selection,
    StageTiming,
)
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.messages import IMAGE, record_of, segmentation, stamp_ns
from lowlat_seg_ros.network import inference
from lowlat_seg_ros.tools import cli
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.make import FRAME_ID, START_NS
from lowlat_seg_ros.tools.bag.offline import VirtualTime, newest
from lowlat_seg_ros.tools.bag.storage import (
    BagMessages,
    BagReader,
    BagWriter,
    Raw,
    known_types,
    to_ids,
)

pytestmark = pytest.mark.slow

FRAMES = 7


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bag: Path = tmp_path_factory.mktemp("bags") / "drive"
    words = ["--size", "48x80", "--frames", str(FRAMES), "--rate", "10"]
    assert cli.main(["bag", "make", *words, "--out", str(bag)]) == 0
    return bag


@pytest.fixture
def offline(drive: Path, weights: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*words: object, bag: Path = drive, out: str = "out") -> int:
        common = ["--checkpoint", weights, "--device", "cpu", "--foreground-threads", 1]
        given = [bag, "--out", tmp_path / out, *common, *words]
        return cli.main(["bag", "run", *map(str, given)])

    return run


def read(path: Path, topic: str) -> list[tuple[Raw, Any]]:
    with BagReader(path) as bag:
        return [(raw, bag.decode(raw)) for raw in bag.raw([topic])]


def frames() -> list[Frame]:
    shots = RenderedDrive(seed=1, frames=FRAMES, rate_hz=10, size=(48, 80))
    return [Frame(shot.image, shot.stamp_ns + START_NS, FRAME_ID) for shot in map(
        shots.__getitem__, range(FRAMES))]  # fmt: skip


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.splitlines()
    return [line for line in error if "frame/s" not in line][-1]


def without_times(result: Segmentation) -> Segmentation:
    """What does not depend on how fast this machine is."""
    return dataclasses.replace(
        result, timing=StageTiming(), deadline=Deadline(), mask=np.zeros(()), confidence=None,
        counters=Counters(),  # the bag has them in another message
    )  # fmt: skip


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_masks_and_reports_are_those_of_the_engine(
    storage: str, offline: Callable[..., int], weights: Path, tmp_path: Path
) -> None:
    words = ["--delay-frames", 2, "--max-key-interval", 3, "--deviation-threshold", 1]
    assert offline("--storage", storage, *words) == 0
    config = EngineConfig(foreground_threads=1, max_key_interval=3, deviation_threshold=1.0)
    network, header = inference.load(weights, torch.device("cpu"))
    engine = Engine.deterministic(network, config, threshold=header.threshold, delay_frames=2)
    expected = [engine.process(frame, confidence=True) for frame in frames()]
    assert engine.counters.refined > 0
    masks, reports = read(tmp_path / "out", Topics.mask), read(tmp_path / "out", Topics.report)
    surest = read(tmp_path / "out", Topics.confidence)
    assert [len(masks), len(reports), len(surest)] == [FRAMES] * 3
    counted = read(tmp_path / "out", Topics.statistics)[-1][1]
    assert record_of(Counters, counted.counters) == engine.counters
    for result, (raw, mask), (_, report), (_, sure) in zip(
        expected, masks, reports, surest, strict=True
    ):
        np.testing.assert_array_equal(to_ids(mask), result.mask)
        np.testing.assert_array_equal(to_ids(sure), result.confidence)
        assert raw.time_ns == stamp_ns(mask.header.stamp) == result.stamp_ns
        assert plain(mask.header) == plain(report.header) == plain(sure.header)
        assert mask.header.frame_id == FRAME_ID
        found = without_times(segmentation(report, np.zeros(())))
        assert rounded(found) == rounded(without_times(result))
        assert report.timing.latency_ms > 0
        assert (report.wait_ms, report.age_ms) == (0, 0)


def rounded(result: Segmentation) -> Segmentation:
    """Fields of messages are float32."""
    chosen = result.selection
    if chosen is not None:
        chosen = Selection(
            float(np.float32(chosen.deviation)), float(np.float32(chosen.threshold)), chosen.is_key
        )
    expected = -1.0 if math.isnan(result.expected_accuracy) else result.expected_accuracy
    # Arrays have no truth, and a message has no look at the image.
    return dataclasses.replace(
        result,
        selection=chosen,
        mask=None,
        look=None,
        expected_accuracy=float(np.float32(expected)),
    )


@pytest.mark.parametrize("latency_ms", [0, 120, 250])
def test_every_image_is_accounted_for(
    latency_ms: int, offline: Callable[..., int], tmp_path: Path
) -> None:
    assert offline("--latency-ms", latency_ms) == 0
    reports = read(tmp_path / "out", Topics.report)
    with BagReader(tmp_path / "out") as bag:
        ledger = Ledger(**bag.facts["ledger"])
    assert ledger.received == ledger.published == len(reports)
    assert ledger.received + ledger.superseded == FRAMES
    counted = read(tmp_path / "out", Topics.statistics)
    assert record_of(Ledger, counted[-1][1].ledger) == ledger
    segmented = [(stamp_ns(r.header.stamp) - START_NS) // 100_000_000 for _, r in reports]
    # At 10 Hz: the newest image that has come is taken when the one before is done.
    assert segmented == {0: [*range(7)], 120: [0, 1, 2, 3, 4, 6], 250: [0, 2, 5, 6]}[latency_ms]
    for raw, report in reports:
        assert report.age_ms == pytest.approx(latency_ms + report.wait_ms)
        assert raw.time_ns == stamp_ns(report.header.stamp) + report.age_ms * 1e6


def test_in_real_time_too_and_the_bag_is_copied(
    offline: Callable[..., int], drive: Path, tmp_path: Path
) -> None:
    assert offline("--time", "real") == 0
    with BagReader(tmp_path / "out") as bag:
        ledger = Ledger(**bag.facts["ledger"])
        assert bag.facts["time"] == {"kind": "real"}
        assert bag.facts["classes"] == list(CAMVID.names)
        copied = [(r.topic, r.kind, r.time_ns, r.data) for r in bag.raw() if "node" not in r.topic]
    assert ledger.received + ledger.superseded == FRAMES
    assert ledger.received == ledger.published == len(read(tmp_path / "out", Topics.mask))
    with BagReader(drive) as bag:
        own = [(r.topic, r.kind, r.time_ns, r.data) for r in bag.raw()]
    assert sorted(copied) == sorted(own)
    stamps = {stamp_ns(message.header.stamp) for _, message in read(drive, Topics.image)}
    for raw, message in read(tmp_path / "out", Topics.mask):
        assert stamp_ns(message.header.stamp) in stamps
        assert raw.time_ns > stamp_ns(message.header.stamp)


def test_images_that_cannot_be_read_are_counted_and_the_rest_goes_on(
    offline: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        for index, frame in enumerate(frames()):
            encoding = "32FC1" if index in (0, 3) else "rgb8"
            header = bag.messages.header(frame.stamp_ns, "front")
            bag.write("/front", bag.messages.image(header, frame.image, encoding), frame.stamp_ns)
    assert offline("--image-topic", "/front", bag=tmp_path / "bag") == 0
    assert "No mask for 2 images: encoding is '32FC1'" in capsys.readouterr().out
    with BagReader(tmp_path / "out") as out:
        assert Ledger(**out.facts["ledger"]) == Ledger(FRAMES, FRAMES - 2, rejected=2)
    assert len(read(tmp_path / "out", Topics.mask)) == FRAMES - 2


OTHER = "/odometry"


@pytest.fixture
def humble(drive: Path, tmp_path: Path) -> Path:
    """An sqlite3 bag as ROS 2 Humble writes it, without definitions, with two more topics.

    One of them is of a type that only its owner knows.
    """
    from rosbags.typesys import get_types_from_msg

    path = tmp_path / "humble"
    with BagReader(drive) as source, BagWriter(path, "sqlite3") as bag:
        bag.messages.typestore.register(get_types_from_msg("int32 x", "secret_msgs/msg/Secret"))
        for raw in source.raw([Topics.image]):
            bag.copy(raw)
        bag.write("/secret", bag.messages.make("secret_msgs/msg/Secret"), START_NS)
        bag.write(OTHER, bag.messages.make("nav_msgs/msg/Odometry"), START_NS)
    with closing(sqlite3.connect(next(path.glob("*.db3")))) as file:
        file.execute("UPDATE schema SET schema_version = 3")
        file.execute("DROP TABLE message_definitions")
        file.commit()
    metadata = yaml.safe_load((path / "metadata.yaml").read_text())
    for topic in metadata["rosbag2_bagfile_information"]["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]
    (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    return path


NODE = {Topics.mask, Topics.report, Topics.statistics, Topics.confidence}


@pytest.mark.parametrize(
    ("words", "others"),
    [([], set()), (["--copy", OTHER], {OTHER}), (["--copy", "all"], {OTHER})],
)
def test_topics_that_are_copied_can_be_chosen(
    words: list[str], others: set[str], offline: Callable[..., int], humble: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert offline(*words, bag=humble) == 0
    with BagReader(tmp_path / "out") as out:
        assert out.topics.keys() == {Topics.image, *NODE, *others}
        assert out.counts[Topics.image] == FRAMES
        for raw in out.raw(others):
            assert out.decode(raw).header.frame_id == ""
    assert ("not defined: /secret" in capsys.readouterr().out) == ("all" in words)


def test_a_topic_that_cannot_be_copied_ends_in_one_line(
    offline: Callable[..., int], humble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for topic, message in (
        ("/secret", "secret_msgs/msg/Secret is defined neither"),
        ("/none", "no such topic"),
    ):
        capsys.readouterr()
        assert offline("--copy", topic, bag=humble) == 2
        assert f"--copy is {topic}" in (error := capsys.readouterr().err)
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_type_that_the_bag_defines_is_copied(
    offline: Callable[..., int], drive: Path, tmp_path: Path
) -> None:
    """In an mcap bag of Humble, with definitions but without their hashes."""
    from rosbags.typesys import get_types_from_msg

    with BagReader(drive) as source, BagWriter(tmp_path / "bag", "mcap") as bag:
        bag.messages.typestore.register(get_types_from_msg("int32 x", "secret_msgs/msg/Secret"))
        for raw in source.raw([Topics.image]):
            bag.copy(raw)
        bag.write("/secret", bag.messages.make("secret_msgs/msg/Secret", x=7), START_NS)
    text = (tmp_path / "bag" / "metadata.yaml").read_text()
    (tmp_path / "bag" / "metadata.yaml").write_text(re.sub(r"RIHS01_\w+", '""', text))
    assert offline("--copy", "/secret", bag=tmp_path / "bag") == 0
    ((_, message),) = read(tmp_path / "out", "/secret")
    assert message.x == 7


def test_another_encoding_starts_afresh_as_in_the_node(
    offline: Callable[..., int], tmp_path: Path
) -> None:
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        for index, frame in enumerate(frames()):
            encoding = "bgr8" if index >= 4 else "rgb8"
            header = bag.messages.header(frame.stamp_ns, "front")
            message = bag.messages.image(header, frame.image, encoding)
            bag.write(Topics.image, message, frame.stamp_ns)
    assert offline(bag=tmp_path / "bag") == 0
    reasons = [report.reset_reason for _, report in read(tmp_path / "out", Topics.report)]
    assert reasons == ["first_frame", "", "", "", "encoding_changed", "", ""]


def test_statistics_come_once_a_second_and_at_the_end(
    offline: Callable[..., int], tmp_path: Path
) -> None:
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        for tenths in (0, 4, 8, 12, 16, 18):
            now_ns = START_NS + tenths * 10**8
            header = bag.messages.header(now_ns, "front")
            bag.write(Topics.image, bag.messages.image(header, frames()[0].image, "rgb8"), now_ns)
    assert offline("--latency-ms", 10, bag=tmp_path / "bag") == 0
    counted = read(tmp_path / "out", Topics.statistics)
    assert [(raw.time_ns - START_NS) // 10**6 for raw, _ in counted] == [10, 1210, 1810]
    assert [stamp_ns(message.header.stamp) for _, message in counted] == [
        raw.time_ns for raw, _ in counted
    ]
    assert [message.ledger.published for _, message in counted] == [1, 4, 6]


def test_without_a_single_mask_the_status_says_so(
    offline: Callable[..., int], tmp_path: Path
) -> None:
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        message = bag.messages.make(IMAGE, encoding="rgb8")
        bag.write(Topics.image, message, 0)
    assert offline(bag=tmp_path / "bag") == 1


def test_a_topic_that_is_not_there_is_told_in_one_line(
    offline: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for topic in ("/front", "/clock"):
        capsys.readouterr()
        assert offline("--image-topic", topic) == 2
        error = capsys.readouterr().err
        assert f"no topic {topic} of type" in error
        (there,) = re.findall(r"; choose one: --image-topic (\S+)$", error.strip())
        assert there == Topics.image
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_told_in_one_line(
    offline: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("no bag")
    (tmp_path / "x.bag").write_text("no bag")
    (tmp_path / "x.mcap").write_text("no bag")
    (tmp_path / "folder").mkdir()
    for name in ("none", "x.txt", "x.mcap", "folder"):
        assert offline(bag=tmp_path / name) == 2
        assert f"{name} cannot be read as a rosbag2 bag" in error_line(capsys)
    assert offline(bag=tmp_path / "x.bag") == 2
    assert "rosbags-convert" in error_line(capsys)
    assert offline() == 0
    assert offline(bag=tmp_path / "out", out="again") == 2
    assert "has masks already" in error_line(capsys)


@pytest.mark.parametrize(
    ("latency_ms", "expected"),  # of each image that is taken: its time, the lost ones, now, done
    [
        (15, [(10, 0, 10, 25), (20, 0, 25, 40), (30, 0, 40, 55), (60, 0, 60, 75)]),
        (25, [(10, 0, 10, 35), (30, 1, 35, 60), (60, 0, 60, 85)]),
    ],
)
def test_only_the_newest_image_waits(latency_ms: int, expected: list[tuple[int, ...]]) -> None:
    pace = VirtualTime(latency_ms)
    images = (Raw("", "", ms * 10**6, b"", None) for ms in (10, 20, 30, 60))
    seen = [
        (raw.time_ns // 10**6, superseded, now_ns // 10**6, pace.mask_out() // 10**6)
        for raw, superseded, now_ns in newest(images, pace)
    ]
    assert seen == expected
    with pytest.raises(ConfigError, match="latency-ms is -1"):
        VirtualTime(-1)


def plain(message: Any) -> Any:
    """The fields of a message of either library, by name."""
    if hasattr(message, "get_fields_and_field_types"):
        names = list(message.get_fields_and_field_types())
    elif dataclasses.is_dataclass(message):
        # Constants are fields as well.
        every = [item.name for item in dataclasses.fields(message)]
        names = [name for name in every if name != "__msgtype__" and not name.isupper()]
    else:
        return message
    return {name: plain(getattr(message, name)) for name in names}


def test_a_report_is_the_node_s() -> None:
    """Field by field, the message that the node makes of the same records."""
    pytest.importorskip("lowlat_seg_ros.msg", reason="needs the built messages")
    from std_msgs.msg import Header as RosHeader

    from lowlat_seg_ros.ros.outputs import MESSAGES

    result = Segmentation(
        np.zeros((2, 2), np.uint8), 5_000_000_007, "cam",
        Provenance(MaskKind.DEGRADED, 4_000_000_001, 3, 1000.5, True, 9, ResetReason.GAP),
        StageTiming(*range(9)), Counters(*range(23), "Sh failed"),
        Selection(0.25, 0.125, True), Deadline(2, 7.5, True),
    )  # fmt: skip
    ledger = Ledger(10, 4, 3, 2, 1, 6)
    make = BagMessages(known_types())
    timing = NodeTiming(1, 2, 3, 4, 5)
    header = make.header(5_000_000_007, "cam")
    own = make.frame_report(header, result, timing)
    counted = make.statistics(header, result.counters, ledger)
    header = RosHeader(frame_id="cam", stamp=MESSAGES.time(5_000_000_007))
    assert plain(own) == plain(MESSAGES.frame_report(header, result, timing))
    assert plain(counted) == plain(MESSAGES.statistics(header, result.counters, ledger))
    assert without_times(segmentation(own, result.mask)) == without_times(result)
