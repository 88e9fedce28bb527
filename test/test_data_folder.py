"""A user's own folders."""

from __future__ import annotations

import json
import logging
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.folder import ImageFolder, read_table
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence, read_label

TABLE = {
    "name": "yard",
    "classes": [
        {"name": "ground", "colour": [10, 20, 30]},
        {"name": "pallet", "color": [40, 50, 60]},  # either spelling
    ],
}


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """Two drives of two frames; one label holds ids, the others colours."""
    for drive in ("monday", "tuesday"):
        for number in range(2):
            for kind in ("images", "labels"):
                (tmp_path / kind / drive).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(tmp_path / f"images/{drive}/{number}.jpg"), np.zeros((4, 6, 3), np.uint8)
            )
            colours = np.full((4, 6, 3), (60, 50, 40), np.uint8)  # BGR of the pallet
            colours[0] = 0
            cv2.imwrite(str(tmp_path / f"labels/{drive}/{number}.png"), colours)
    ids = np.array([[0, 1, 255, 0, 1, 1]] * 4, np.uint8)
    cv2.imwrite(str(tmp_path / "labels/monday/0.png"), ids)
    (tmp_path / "classes.json").write_text(json.dumps(TABLE))
    return tmp_path


def test_folder_is_read_by_drive(yard: Path) -> None:
    frames = ImageFolder(yard, rate_hz=10.0)
    assert [frames[i].name for i in range(4)] == ["monday/0", "monday/1", "tuesday/0", "tuesday/1"]
    assert [frames[i].stamp_ns for i in range(4)] == [0, 100_000_000, 0, 100_000_000]
    assert frames.drive(2) == "tuesday"
    assert frames.table.names == ("ground", "pallet")
    assert isinstance(frames, Sequence)


def test_labels_may_be_ids_or_colours(yard: Path) -> None:
    frames = ImageFolder(yard)
    assert frames[0].label[0].tolist() == [0, 1, 255, 0, 1, 1]
    assert (frames[1].label[1:] == 1).all()
    assert (frames[1].label[0] == 255).all()


def test_missing_label_and_wrong_id_are_named(yard: Path) -> None:
    cv2.imwrite(str(yard / "labels/monday/0.png"), np.full((4, 6), 2, np.uint8))
    with pytest.raises(DataError, match=r"has the id 2; the class table 'yard' has 0 to 1"):
        ImageFolder(yard)[0]
    (yard / "labels/tuesday/1.png").unlink()
    with pytest.raises(DataError, match=r"tuesday/1.png is missing"):
        ImageFolder(yard)


def test_missing_folders_and_tables_are_named(yard: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty/images is missing"):
        ImageFolder(tmp_path / "empty")
    (yard / "classes.json").unlink()
    with pytest.raises(DataError, match=r"classes.yaml is missing"):
        ImageFolder(yard)


@pytest.mark.parametrize("text", ["classes: [{name: a}]", "- 1", "{", "classes: 3", ""])
def test_wrong_tables_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"classes.yaml cannot be used"):
        read_table(path)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("name: road, color: [0, 0, 142]", "two classes have the colour (0, 0, 142), so one would"),
        ("name: car, color: [1, 2, 3]", "two classes have the name car, so one would be lost"),
        (
            "id: 5, name: road, color: [1, 2, 3]",
            "road has the id 5, but ids are places in the list",
        ),
        ("name: yes, color: [1, 2, 3]", "entry 0 has the name True, no text: put it in quotes"),
        ("name: road, color: [0.5, 0.2, 0.5]", "road has the colour [0.5, 0.2, 0.5], which is no"),
        (
            "name: road, color: '#804080'",
            "road has the colour '#804080', which is no list of whole",
        ),
        ("name: road, color: [1, 2, 3, 255]", "road has the colour [1, 2, 3, 255], which has not"),
    ],
)
def test_tables_by_which_classes_would_be_lost_are_refused(
    tmp_path: Path, first: str, words: str
) -> None:
    path = tmp_path / "classes.yaml"
    car = "- {id: 1, name: car, color: [0, 0, 142]}"
    path.write_text(f"classes:\n- {{{first}}}\n{car}\n")
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    path.write_text(f"classes:\n- {{name: road, color: [1, 2, 3]}}\n{car}\n")
    assert read_table(path).names == ("road", "car")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1.PNG", None),
        ("1.jpg", "and there is 1.jpg; save it as PNG, as JPEG and others would change ids"),
        ("1_mask.png", "and there is 1_mask.png; rename it to 1.png"),
        ("10.png", "tuesday/1.png is missing; frame tuesday/1 needs it"),
    ],
)
def test_a_label_by_another_name_is_found_or_named(
    yard: Path, name: str, words: str | None
) -> None:
    label = yard / "labels/tuesday/1.png"
    label.rename(label.with_name(name))
    if words is None:
        assert len(ImageFolder(yard)) == 4
        return
    with pytest.raises(DataError, match=re.escape(words)):
        ImageFolder(yard)


def test_two_images_of_one_name_are_refused(yard: Path) -> None:
    image = yard / "images/tuesday/1.jpg"
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="several images tuesday/1 that differ in their ending"):
        ImageFolder(yard)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_are_refused_and_palettes_of_few_read(
    yard: Path, bits: int
) -> None:
    """Such as Pillow's mode 1: readers make 255, which is ignored, of the class 1."""
    path = yard / "labels/tuesday/0.png"
    ids = np.array([[0, 1, 1, 0, 1, 1]] * 4, np.uint8)
    write_png(path, ids, bits, colour_type=0)
    with pytest.raises(DataError, match=f"grey of {bits} bits.*save it with 8 bits a pixel"):
        ImageFolder(yard)[2]
    write_png(path, ids, bits, colour_type=3)
    assert np.array_equal(ImageFolder(yard)[2].label, ids)


def write_palette_png(path: Path, indices: np.ndarray) -> None:
    write_png(path, indices, bits=8, colour_type=3)


def write_png(path: Path, values: np.ndarray, bits: int, colour_type: int) -> None:
    """A PNG of colour type 0 (grey), or 3, a palette, as annotation tools write labels: index i
    has the colour (i, i, 0)."""
    height, width = values.shape
    each = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(each, axis=1))
    palette = b"".join(bytes((i, i, 0)) for i in range(2**bits))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    second = (b"PLTE", palette) if colour_type == 3 else (b"tEXt", b"by\0hand")
    chunks = ((b"IHDR", header), second, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_palette_labels_are_their_indices(yard: Path) -> None:
    ids = np.array([[0, 1, 255, 0, 1, 1]] * 4, np.uint8)
    path = yard / "labels/tuesday/0.png"
    write_palette_png(path, ids)
    assert np.array_equal(read_label(path), ids)
    assert np.array_equal(ImageFolder(yard)[2].label, ids)
    write_palette_png(path, ids + 2)
    with pytest.raises(DataError, match="has the id 2"):
        ImageFolder(yard)[2]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_label(path)


def test_labels_with_transparency_are_read_by_their_colours(yard: Path) -> None:
    label = np.full((4, 6, 4), (60, 50, 40, 255), np.uint8)  # BGRA of the pallet
    label[0] = (0, 0, 0, 0)
    cv2.imwrite(str(yard / "labels/monday/0.png"), label)
    assert ImageFolder(yard)[0].label[:, 0].tolist() == [255, 1, 1, 1]


@pytest.mark.parametrize(("channels", "value"), [(3, 1), (4, 1), (3, 0)])
def test_colours_of_no_class_are_refused(yard: Path, channels: int, value: int) -> None:
    """Such as ids saved as RGB or RGBA, which would be ignored pixels throughout."""
    label = np.full((4, 6, channels), value, np.uint8)
    cv2.imwrite(str(yard / "labels/monday/0.png"), label)
    words = rf"has the colour \({value}, {value}, {value}\), which no class of 'yard' has"
    with pytest.raises(DataError, match=words):
        ImageFolder(yard)[0]


def test_hidden_files_are_no_images_and_others_are_counted(
    yard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (yard / "images/monday/._0.jpg").write_bytes(b"Mac OS X")
    (yard / "labels/monday/._0.png").write_bytes(b"Mac OS X")
    (yard / "images/.trash").mkdir()
    (yard / "images/.trash/5.jpg").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(yard)) == 4
    assert "4 files found, 4 used, 0 left out" in caplog.text
    caplog.clear()
    (yard / "images/monday/notes.txt").write_text("sunny")
    assert len(ImageFolder(yard)) == 4
    assert "5 files found, 4 used, 1 left out" in caplog.text  # a warning


def test_a_label_without_image_is_refused(yard: Path) -> None:
    (yard / "images/monday/1.jpg").unlink()
    words = r"labels/monday/1.png belongs to no image.* 4 files found, 3 used, 1 left out"
    with pytest.raises(DataError, match=words):
        ImageFolder(yard)
