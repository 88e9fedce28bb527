"""Cityscapes, on a small tree in its exact layout: one city in snippets, one at length."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lowlat_seg_ros.lab.data.cityscapes import Cityscapes
from lowlat_seg_ros.lab.data.sequence import DataError, Sequence

#: (city, sequence, annotated frame), as the data set names them.
FRAMES = (("aachen", 0, 19), ("frankfurt", 0, 294), ("frankfurt", 1, 1016))
SHAPE = (16, 34)
SNIPPETS = "leftImg8bit_sequence/val"


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def stem(city: str, sequence: int, frame: int) -> str:
    return f"{city}/{city}_{sequence:06d}_{frame:06d}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Snippets of frames as bright as their number in it, labelIds whose column x has the id x.

    The second frame also has trainIds, of the first 19.
    """
    ids = np.broadcast_to(np.arange(34, dtype=np.uint8), SHAPE)
    for city, sequence, annotated in FRAMES:
        for number in range(30):
            name = stem(city, sequence, annotated - 19 + number)
            image = np.full((*SHAPE, 3), number, np.uint8)
            write(tmp_path / f"{SNIPPETS}/{name}_leftImg8bit.png", image)
        name = stem(city, sequence, annotated)
        write(tmp_path / f"gtFine/val/{name}_gtFine_labelIds.png", ids)
    train_ids = np.where(ids < 19, ids, 255).astype(np.uint8)
    write(tmp_path / f"gtFine/val/{stem(*FRAMES[1])}_gtFine_labelTrainIds.png", train_ids)
    return tmp_path


def test_snippets_up_to_their_annotated_frame(tree: Path) -> None:
    frames = Cityscapes(tree, "val")
    assert isinstance(frames, Sequence)
    drives = [frames.drive(i) for i in range(len(frames))]
    assert drives == [stem(*place).split("/")[1] for place in FRAMES for _ in range(20)]
    assert [int(frames[i].image[0, 0, 0]) for i in range(20, 40)] == list(range(20))
    assert [i for i in range(60) if (frames[i].label != 255).any()] == [19, 39, 59]
    assert frames[39].name == "frankfurt_000000_000294"
    assert frames[1].stamp_ns - frames[0].stamp_ns == pytest.approx(1e9 / 17, abs=1)


def test_label_ids_are_mapped_where_no_train_ids_were_made(tree: Path) -> None:
    """A frame's labels of one kind hide nothing of other frames."""
    frames = Cityscapes(tree, "val")
    assert frames[39].label[0].tolist() == [*range(19), *[255] * 15]
    for index in (19, 59):
        label = frames[index].label[0]
        # helpers/labels.py: 7 road, 8 sidewalk, 11 building, 23 sky, 26 car, 31 train, 33 bicycle.
        for label_id, train_id in ((7, 0), (8, 1), (11, 2), (23, 10), (26, 13), (31, 16), (33, 18)):
            assert label[label_id] == train_id
        # 0 unlabeled, 9 parking, 14 guard rail, 29 caravan, 30 trailer are not evaluated.
        assert {int(label[i]) for i in (0, 9, 14, 29, 30)} == {255}
        assert sorted(set(label.tolist())) == [*range(19), 255]


def test_size_resizes_both(tree: Path) -> None:
    frame = Cityscapes(tree, "val", size=(8, 17))[19]
    assert (frame.image.shape, frame.label.shape) == ((8, 17, 3), (8, 17))


def test_missing_things_are_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*gtFine/train is missing"):
        Cityscapes(tree, "train")
    with pytest.raises(DataError, match="no split 'demo'"):
        Cityscapes(tree, "demo")
    name = "frankfurt_000000_000280_leftImg8bit.png"
    (tree / SNIPPETS / "frankfurt" / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        Cityscapes(tree, "val")


def test_a_wrong_train_id_is_named(tree: Path) -> None:
    path = tree / "gtFine/val" / f"{stem(*FRAMES[0])}_gtFine_labelTrainIds.png"
    write(path, np.full(SHAPE, 19, np.uint8))
    with pytest.raises(DataError, match="has the id 19"):
        Cityscapes(tree, "val")[19]


def test_an_id_that_cityscapes_has_not_is_named(tree: Path) -> None:
    """It would be an ignored pixel; 255 is a license plate, whose id is -1."""
    path = tree / f"gtFine/val/{stem(*FRAMES[0])}_gtFine_labelIds.png"
    write(path, np.full(SHAPE, 255, np.uint8))
    assert (Cityscapes(tree, "val")[19].label == 255).all()
    write(path, np.full(SHAPE, 34, np.uint8))
    with pytest.raises(DataError, match="has the id 34; Cityscapes' labelIds are 0 to 33"):
        Cityscapes(tree, "val")[19]


def test_hidden_files_are_no_labels(tree: Path) -> None:
    hidden = tree / "gtFine/val/aachen/._aachen_000000_000019_gtFine_labelIds.png"
    hidden.write_bytes(b"Mac OS X")
    assert len(Cityscapes(tree, "val")) == 60
