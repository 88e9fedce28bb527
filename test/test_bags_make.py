"""``lowlat-seg bag make``: what is written can be read back, by anyone's reader of bags."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the library rosbags")

from lowlat_seg_ros.images import to_rgb
from lowlat_seg_ros.lab.data.sequence import DataError
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.messages import IMAGE, stamp_ns
from lowlat_seg_ros.tools import cli
from lowlat_seg_ros.tools.bag.command import Topics
from lowlat_seg_ros.tools.bag.make import START_NS
from lowlat_seg_ros.tools.bag.remedy import NEWEST
from lowlat_seg_ros.tools.bag.storage import (
    CLOCK,
    BagMessages,
    BagReader,
    BagWriter,
    Raw,
    known_types,
    to_ids,
)
from lowlat_seg_ros.tools.pictures import VideoWriter

SIZE = (48, 80)


def make(*words: object) -> int:
    return cli.main(["bag", "make", *map(str, words)])


def drive_bag(out: Path, *words: object) -> int:
    return make("--size", "48x80", "--frames", 4, "--out", out, *words)


def read(path: Path, topic: str) -> list[tuple[Raw, object]]:
    with BagReader(path) as bag:
        return [(raw, bag.decode(raw)) for raw in bag.raw([topic])]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.splitlines()
    return [line for line in error if "frame/s" not in line][-1]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process may grow beyond ``room`` bytes (setrlimit(2), RLIMIT_FSIZE)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_disk_that_fills_up_ends_in_one_sentence_and_leaves_no_broken_bag(
    storage: str, tmp_path: Path
) -> None:
    def record() -> None:
        with full_disk(100_000), BagWriter(tmp_path / "bag", storage) as bag:
            for number in range(100):
                header = bag.messages.header(number, "camera")
                noise = np.random.default_rng(number).integers(0, 256, (48, 80, 3), np.uint8)
                bag.write("/image", bag.messages.image(header, noise, "rgb8"), number)

    with pytest.raises(DataError, match=r"cannot be written .*; free space on its disk"):
        record()
    assert not (tmp_path / "bag").exists()


def test_a_record_that_claims_to_be_endless_is_a_damaged_bag(tmp_path: Path) -> None:
    """Each record of an mcap in turn: a byte of kind, eight of length, and as many of content."""
    with BagWriter(tmp_path / "bag", "mcap") as bag:
        header = bag.messages.header(0, "camera")
        image = bag.messages.image(header, np.zeros((2, 3, 3), np.uint8), "rgb8")
        bag.write("/image", image, 0)
    whole = next((tmp_path / "bag").glob("*.mcap")).read_bytes()
    place, refused, damaged = 8, 0, tmp_path / "damaged.mcap"
    while place < len(whole) - 8:  # the magic bytes are at either end
        length = int.from_bytes(whole[place + 1 : place + 9], "little")
        endless = (2**62).to_bytes(8, "little")
        damaged.write_bytes(whole[: place + 1] + endless + whole[place + 9 :])
        try:
            with BagReader(damaged) as reader:
                list(reader.raw())
        except DataError:
            refused += 1
        place += 9 + length
    assert refused > 3


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_the_bag_holds_the_drive(storage: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bag"
    assert drive_bag(out, "--seed", 3, "--rate", 8, "--storage", storage) == 0
    drive = RenderedDrive(seed=3, frames=4, rate_hz=8, size=SIZE)
    with BagReader(out) as bag:
        assert bag.topics == {Topics.image: IMAGE, Topics.label: IMAGE, "/clock": CLOCK}
        assert bag.facts["classes"] == list(CAMVID.names)
    for topic, read_as in ((Topics.image, to_rgb), (Topics.label, to_ids)):
        found = read(out, topic)
        assert len(found) == 4
        for index, (raw, message) in enumerate(found):
            frame = drive[index]
            expected = frame.image if topic == Topics.image else frame.label
            np.testing.assert_array_equal(read_as(message), expected)
            assert raw.time_ns == stamp_ns(message.header.stamp) == frame.stamp_ns + START_NS
    clocks = [stamp_ns(message.clock) for _, message in read(out, "/clock")]
    assert clocks == [drive[index].stamp_ns + START_NS for index in range(4)]


def test_one_file_of_the_bag_is_a_bag_as_well(tmp_path: Path) -> None:
    drive_bag(tmp_path / "bag")
    (file,) = (tmp_path / "bag").glob("*.mcap")
    assert len(read(file, Topics.image)) == 4


def test_a_video_is_images_at_its_own_times_or_at_a_given_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, SIZE, 10.0) as video:
        for level in (40, 120, 200):
            video.write(np.full((*SIZE, 3), level, np.uint8))
    for name, words, step_ns in (("a", [], 100_000_000), ("b", ["--rate", 20], 50_000_000)):
        assert make("--video", path, "--out", tmp_path / name, *words) == 0
        found = read(tmp_path / name, Topics.image)
        assert [raw.time_ns - START_NS for raw, _ in found] == [0, step_ns, 2 * step_ns]
        levels = [to_rgb(message).mean() for _, message in found]
        np.testing.assert_allclose(levels, (40, 120, 200), atol=3)
    with BagReader(tmp_path / "a") as bag:
        assert Topics.label not in bag.topics
    assert make("--video", path, "--out", tmp_path / "c", "--size", "24x40", "--frames", 2) == 0
    assert [to_rgb(m).shape for _, m in read(tmp_path / "c", Topics.image)] == [
        (24, 40, 3),
        (24, 40, 3),
    ]


def test_a_bag_holds_one_drive_which_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        cli.main(["render", "--size", "48x80", "--frames", "3", "--seed", str(seed),
                  "--out", str(tmp_path / "data")])  # fmt: skip
    common = ["--dataset", "folder", "--root", tmp_path / "data", "--rate", 15]
    assert make(*common, "--drive", "rendered_2", "--out", tmp_path / "bag") == 0
    drive = RenderedDrive(seed=2, frames=3, size=SIZE)
    for index, (_, message) in enumerate(read(tmp_path / "bag", Topics.image)):
        np.testing.assert_array_equal(to_rgb(message), drive[index].image)
    assert make(*common, "--drive", "x", "--out", tmp_path / "other") == 2
    assert "no drive 'x'; it has 'rendered_1', 'rendered_2'" in error_line(capsys)


def test_what_is_no_video_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    assert make("--video", tmp_path / "x.mp4", "--out", tmp_path / "bag") == 2
    assert "x.mp4 cannot be read as a video" in error_line(capsys)
    assert make("--video", tmp_path / "none.mp4", "--out", tmp_path / "bag") == 2
    assert "none.mp4 cannot be read as a video" in error_line(capsys)


def test_a_bag_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drive_bag(tmp_path / "bag") == 0
    assert drive_bag(tmp_path / "bag") == 2
    assert "bag is there already" in error_line(capsys)
    assert len(read(tmp_path / "bag", Topics.image)) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_damaged_bag_is_a_data_error(storage: str, damage: str, tmp_path: Path) -> None:
    drive_bag(tmp_path / "bag", "--storage", storage)
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"x" * 99}[damage])
    remedy = "mcap recover" if storage == "mcap" else "sqlite3 .* .recover"
    remedy = "is empty, as where the recorder was killed" if damage == "empty" else remedy
    with pytest.raises(DataError, match=f"cannot be read as a rosbag2 bag .*{remedy}.*reindex"):
        read(tmp_path / "bag", Topics.image)


#: What happens to bags on their way, and the remedy.
MISHAPS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "no metadata": (
        lambda file, meta: meta.unlink(),
        r"metadata\.yaml is missing: write it anew with 'ros2 bag reindex .*bag'",
    ),
    "damaged metadata": (
        lambda file, meta: meta.write_text("rosbag2_bagfile_information: {"),
        r"metadata\.yaml is damaged: write it anew with 'ros2 bag reindex .*bag'",
    ),
    "newer metadata": (
        lambda file, meta: meta.write_text(
            re.sub(r"version: \d+", f"version: {NEWEST + 1}", meta.read_text(), count=1)
        ),
        "of a newer ROS 2: .*pip install --upgrade rosbags",
    ),
    "git lfs": (
        lambda file, meta: file.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "'git lfs pull'",
    ),
    "renamed": (
        lambda file, meta: file.rename(file.with_stem("mine")),
        r"names bag\.\w+, which is not there: .*'ros2 bag reindex .*bag'",
    ),
}


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_the_remedy_of_a_bag_is_for_what_became_of_it(
    storage: str, mishap: str, tmp_path: Path
) -> None:
    drive_bag(tmp_path / "bag", "--storage", storage)
    (file,) = (path for path in (tmp_path / "bag").iterdir() if path.suffix != ".yaml")
    spoil, wanted = MISHAPS[mishap]
    spoil(file, tmp_path / "bag" / "metadata.yaml")
    with pytest.raises(DataError, match=wanted) as caught:
        read(tmp_path / "bag", Topics.image)
    assert "recover" not in str(caught.value)  # there is nothing to recover


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_folder_s_name_in_its_metadata_is_no_part_of_the_path(
    storage: str, tmp_path: Path
) -> None:
    """As older recorders of compressed bags write it (rosbag2 557, 794); and it was renamed."""
    drive_bag(tmp_path / "bag", "--storage", storage)
    bag = (tmp_path / "bag").rename(tmp_path / "renamed")
    meta = bag / "metadata.yaml"
    meta.write_text(re.sub(r"- (bag\.\w+)", r"- bag/\1", meta.read_text()))
    assert len(read(bag, Topics.image)) == 4


@pytest.mark.parametrize("mode", ["FILE", "MESSAGE"])
@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
def test_a_compressed_bag_is_read_and_a_compressed_file_is_to_be_unpacked(
    storage: str, mode: str, tmp_path: Path
) -> None:
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    types = known_types()
    header = BagMessages(types).make("std_msgs/msg/Header", stamp=BagMessages(types).time(5))
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin[storage])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/x", header.__msgtype__, typestore=types)
        writer.write(connection, 1, types.serialize_cdr(header, header.__msgtype__))
    ((_, found),) = read(tmp_path / "bag", "/x")
    assert stamp_ns(found.stamp) == 5  # type: ignore[attr-defined]
    for file in (tmp_path / "bag").glob("*.zstd"):
        with pytest.raises(DataError, match=f"it is compressed: unpack it with 'zstd -d {file}'"):
            read(file, "/x")


def test_what_raises_while_writing_leaves_no_bag(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / "new" / "bag", "mcap"):
        raise ZeroDivisionError
    assert not (tmp_path / "new" / "bag").exists()


def test_without_the_library_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['rosbags'] = None  # as where it is not installed\n"
        "from lowlat_seg_ros.tools.cli import main\n"
        "sys.exit(main(['bag', 'run', 'x', '--out', 'y']))"
    )
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install rosbags" in done.stderr
    assert done.stderr.count("\n") == 1
