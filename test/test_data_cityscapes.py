"""Cityscapes, on a small tree in its exact layout: one city in snippets, one at length."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.cityscapes import ANNOTATED, Cityscapes
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence

#: (city, sequence, annotated frame), as the data set names them.
FRAMES = (("aachen", 0, 19), ("aachen", 1, 19), ("frankfurt", 0, 294), ("frankfurt", 1, 1016))
SHAPE = (16, 34)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def stem(city: str, sequence: int, frame: int) -> str:
    return f"{city}/{city}_{sequence:06d}_{frame:06d}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images, labelIds whose column x has the id x, trainIds of the first 19, and one snippet."""
    ids = np.broadcast_to(np.arange(34, dtype=np.uint8), SHAPE)
    train_ids = np.where(ids < 19, ids, 255).astype(np.uint8)
    for place in FRAMES:
        name = stem(*place)
        write(
            tmp_path / f"leftImg8bit/val/{name}_leftImg8bit.png", np.full((*SHAPE, 3), 50, np.uint8)
        )
        write(tmp_path / f"gtFine/val/{name}_gtFine_labelIds.png", ids)
        write(tmp_path / f"gtFine/val/{name}_gtFine_labelTrainIds.png", train_ids)
    for frame in range(275, 305):
        name = stem("frankfurt", 0, frame)
        image = np.full((*SHAPE, 3), frame - 275, np.uint8)
        write(tmp_path / f"leftImg8bit_sequence/val/{name}_leftImg8bit.png", image)
    return tmp_path


def test_annotated_frames_in_order(tree: Path) -> None:
    frames = Cityscapes(tree, "val")
    names = [frames[i].name for i in range(len(frames))]
    assert names == [stem(*place).split("/")[1] for place in FRAMES]
    assert [frames.drive(i) for i in range(4)] == ["aachen", "aachen", "frankfurt", "frankfurt"]
    assert frames[0].label[0].tolist() == [*range(19), *[255] * 15]
    assert isinstance(frames, Sequence)


def test_label_ids_are_mapped_where_no_train_ids_were_made(tree: Path) -> None:
    for path in tree.glob("gtFine/val/*/*TrainIds.png"):
        path.unlink()
    label = Cityscapes(tree, "val")[2].label[0]
    # helpers/labels.py: 7 road, 8 sidewalk, 11 building, 23 sky, 26 car, 31 train, 33 bicycle.
    for label_id, train_id in ((7, 0), (8, 1), (11, 2), (23, 10), (26, 13), (31, 16), (33, 18)):
        assert label[label_id] == train_id
    # 0 unlabeled, 9 parking, 14 guard rail, 29 caravan, 30 trailer are not evaluated.
    assert {int(label[i]) for i in (0, 9, 14, 29, 30)} == {255}
    assert sorted(set(label.tolist())) == [*range(19), 255]


def test_clip_of_a_long_recording_has_its_label_at_frame_20(tree: Path) -> None:
    clip = Cityscapes(tree, "val").clip(2)
    assert len(clip) == 30
    assert [int(clip[i].image[0, 0, 0]) for i in range(30)] == list(range(30))
    labelled = [i for i in range(30) if (clip[i].label != 255).any()]
    assert labelled == [ANNOTATED] == [19]
    assert clip[19].name == "frankfurt_000000_000294"
    assert clip[1].stamp_ns - clip[0].stamp_ns == pytest.approx(1e9 / 17, abs=1)
    assert isinstance(clip, Sequence)


def test_clip_names_its_missing_frame(tree: Path) -> None:
    name = "frankfurt_000000_000280_leftImg8bit.png"
    (tree / "leftImg8bit_sequence/val/frankfurt" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        Cityscapes(tree, "val").clip(2)


def test_annotated_frames_come_from_the_snippets_where_only_those_are_there(tree: Path) -> None:
    (tree / "leftImg8bit").rename(tree / "elsewhere")
    for city, sequence, frame in FRAMES[:2] + FRAMES[3:]:
        for path in (tree / "gtFine/val").glob(f"{stem(city, sequence, frame)}_*"):
            path.unlink()
    assert Cityscapes(tree, "val")[0].image[0, 0, 0] == 19


def test_size_resizes_both(tree: Path) -> None:
    frame = Cityscapes(tree, "val", size=(8, 17))[0]
    assert frame.image.shape == (8, 17, 3)
    assert frame.label.shape == (8, 17)


def test_missing_things_are_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*gtFine/train is missing"):
        Cityscapes(tree, "train")
    with pytest.raises(DataError, match="no split 'demo'"):
        Cityscapes(tree, "demo")
    (tree / "leftImg8bit/val/aachen/aachen_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"aachen_000001_000019_leftImg8bit.png is missing"):
        Cityscapes(tree, "val")


def test_a_wrong_train_id_is_named(tree: Path) -> None:
    path = tree / "gtFine/val" / f"{stem(*FRAMES[0])}_gtFine_labelTrainIds.png"
    write(path, np.full(SHAPE, 19, np.uint8))
    with pytest.raises(DataError, match="has the trainId 19"):
        Cityscapes(tree, "val")[0]


def test_frames_with_either_kind_of_label_are_used(tree: Path) -> None:
    """One labelTrainIds image among labelIds once hid all others."""
    for place in FRAMES[1:]:
        (tree / "gtFine/val" / f"{stem(*place)}_gtFine_labelTrainIds.png").unlink()
    frames = Cityscapes(tree, "val")
    assert [frames[i].name for i in range(len(frames))] == [
        stem(*place).split("/")[1] for place in FRAMES
    ]
    assert frames[0].label[0, 18] == 18  # from trainIds
    assert frames[1].label[0, 33] == 18  # mapped from labelIds


def test_an_image_without_label_is_refused(tree: Path) -> None:
    for path in tree.glob(f"gtFine/val/{stem(*FRAMES[1])}_*"):
        path.unlink()
    words = r"aachen_000001_000019_leftImg8bit.png has no .* 4 files found, 3 used, 1 left out"
    with pytest.raises(DataError, match=words):
        Cityscapes(tree, "val")


def test_hidden_files_are_no_labels(tree: Path) -> None:
    hidden = tree / "gtFine/val/aachen/._aachen_000000_000019_gtFine_labelIds.png"
    hidden.write_bytes(b"Mac OS X")
    (tree / "leftImg8bit/val/aachen/._aachen_000000_000019_leftImg8bit.png").write_bytes(b"")
    assert len(Cityscapes(tree, "val")) == 4
