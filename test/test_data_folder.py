"""A user's own folders."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.folder import ImageFolder, read_table
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence

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
    with pytest.raises(DataError, match=r"nothing.yaml is missing"):
        ImageFolder(yard, classes=yard / "nothing.yaml")


@pytest.mark.parametrize("text", ["classes: [{name: a}]", "- 1", "{", "classes: 3", ""])
def test_wrong_tables_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"classes.yaml cannot be used"):
        read_table(path)
