"""The metrics against matrices worked out by hand, and their intervals by a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from lowlat_seg_ros.lab.metrics import (
    BLOCK,
    Confusion,
    Consistency,
    deviation,
    draws_of,
    interval,
    mious,
)

LABEL = np.array([[0, 0, 0, 1], [1, 1, 2, 255]], np.uint8)
MASK = np.array([[0, 0, 1, 1], [1, 255, 0, 2]], np.uint8)
# Worked out by hand, rows truth 0, 1, 2; columns predicted 0, 1, 2, nothing.
MATRIX = [[2, 1, 0, 0], [0, 2, 0, 1], [1, 0, 0, 0]]


def confusion(*pairs: tuple[np.ndarray, np.ndarray], classes: int = 3) -> Confusion:
    result = Confusion(classes)
    for label, mask in pairs:
        result.update(label, mask)
    return result


@pytest.mark.parametrize("kind", ["numpy", "read-only", "torch"])
def test_matrix_by_hand(kind, recwarn):
    label, mask = LABEL, np.frombuffer(MASK.tobytes(), np.uint8).reshape(MASK.shape)
    if kind == "torch":
        label, mask = torch.from_numpy(LABEL), torch.from_numpy(MASK)
    elif kind == "numpy":
        mask = MASK
    assert confusion((label, mask)).matrix.tolist() == MATRIX
    assert not recwarn.list


def test_scores_by_hand():
    result = confusion((LABEL, MASK))
    # IoU: 0: 2 / (3 + 3 - 2); 1: 2 / (3 + 3 - 2); 2: 0 / 1. The pixel of class 1 predicted as
    # nothing is a miss, and the mask's 2 on an ignored pixel is no false positive.
    np.testing.assert_allclose(result.iou, [2 / 4, 2 / 4, 0])
    np.testing.assert_allclose(result.recall, [2 / 3, 2 / 3, 0])
    assert result.miou == pytest.approx(1 / 3)
    assert result.class_accuracy == pytest.approx(4 / 9)
    assert result.pixel_accuracy == pytest.approx(4 / 7)


def test_pooled_over_frames_not_averaged():
    few, many = np.zeros((1, 1), np.uint8), np.zeros((3, 3), np.uint8)
    result = confusion((few, few + 1), (many, many))
    assert result.pixel_accuracy == pytest.approx(0.9)


def test_class_that_never_occurs_is_left_out_of_the_means():
    result = confusion((LABEL, MASK), classes=5)
    assert np.isnan(result.iou[3:]).all()
    assert result.miou == pytest.approx(1 / 3)
    assert result.class_accuracy == pytest.approx(4 / 9)


def test_class_only_predicted_costs_iou_not_class_accuracy():
    label = np.zeros((1, 2), np.uint8)
    result = confusion((label, np.array([[0, 1]])), classes=2)
    assert result.iou.tolist() == [0.5, 0.0]
    assert result.class_accuracy == 0.5


def test_nothing_labelled_gives_nan():
    result = confusion((np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8)))
    assert np.isnan([result.miou, result.class_accuracy, result.pixel_accuracy]).all()


@pytest.mark.parametrize(
    ("label", "mask", "message"),
    [
        ([[3]], [[0]], "label has the id 3"),
        ([[0]], [[3]], "mask has the id 3"),
        ([[0]], [[-1]], "mask has the id -1"),
        ([[0]], [[0, 0]], "one shape"),
    ],
)
def test_impossible_ids_and_shapes_are_refused(label, mask, message):
    result = Confusion(3)
    with pytest.raises(ValueError, match=message):
        result.update(np.array(label), np.array(mask))
    assert result.matrix.sum() == 0


ids = st_numpy.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 255]))


@given(label=ids, mask=ids)
def test_every_labelled_pixel_is_counted_once(label, mask):
    result = confusion((label, mask))
    assert result.matrix.sum() == (label != 255).sum()
    assert np.trace(result.matrix) == ((label == mask) & (label != 255)).sum()


def consistency(labels, masks, length):
    result = Consistency(length)
    for label, mask in zip(labels, masks, strict=True):
        result.update(np.array([label]), np.array([mask]))
    return result


def test_consistency_by_hand():
    #             constant, right | constant, wrong once | label moves | ignored once
    labels = [[0, 1, 0, 2], [0, 1, 1, 255], [0, 1, 1, 2]]
    masks = [[0, 1, 0, 2], [0, 0, 1, 2], [0, 1, 1, 2]]
    whole = consistency(labels, masks, length=3)
    assert (whole.consistent_pixels, whole.constant_pixels) == (1, 2)
    # Windows of two: frames 1-2 hold the first two pixels, frames 2-3 the third besides; the
    # second is wrong in both windows.
    pairs = consistency(labels, masks, length=2)
    assert (pairs.consistent_pixels, pairs.constant_pixels) == (3, 5)
    assert pairs.value == pytest.approx(3 / 5)


def test_frozen_mask_scores_only_where_it_is_right():
    assert consistency([[0, 1]] * 4, [[0, 0]] * 4, length=2).value == 0.5


def test_windows_do_not_reach_across_drives():
    result = Consistency(2)
    for _ in range(2):
        result.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
        result.reset()
    assert result.constant_pixels == 0
    assert np.isnan(result.value)


@given(data=st_numpy.arrays(np.uint8, (2, 6, 3, 3), elements=st.sampled_from([0, 1, 255])))
def test_consistency_equals_its_definition(data):
    labels, masks = data
    constant = steady = 0
    for start in range(len(labels) - 2):
        window, predicted = labels[start : start + 3], masks[start : start + 3]
        kept = (window == window[0]).all(axis=0) & (window[0] != 255)
        constant += kept.sum()
        steady += (kept & (predicted == window).all(axis=0)).sum()
    result = Consistency(3)
    for label, mask in zip(labels, masks, strict=True):
        result.update(label, mask)
    assert (result.constant_pixels, result.consistent_pixels) == (constant, steady)


def test_deviation_is_the_share_of_pixels_that_differ():
    assert deviation(np.array([[0, 1, 2, 2]]), np.array([[0, 1, 0, 1]])) == 0.5
    assert deviation(torch.tensor([[3]]), torch.tensor([[3]])) == 0.0


def matrix(right: int, wrong: int) -> np.ndarray:
    """Two classes alike, each with so many pixels right and wrong."""
    return np.array([[right, wrong, 0], [wrong, right, 0]])


def test_blocks_are_drawn_whole_and_as_many_as_there_are() -> None:
    draws = draws_of(50)
    assert (draws.sum(axis=1) == 50).all()
    blocks = draws.reshape(-1, 50 // BLOCK, BLOCK)
    assert (blocks == blocks[..., :1]).all()
    assert (draws != draws[0]).any()
    assert (draws_of(3).sum(axis=1) == 3).all()


def test_frames_that_are_alike_leave_no_doubt() -> None:
    values = mious([matrix(90, 10)] * 20)
    assert np.allclose(values, 90 / 110)
    assert interval(values) == (values[0], values[0])


def test_a_paired_difference_is_surer_than_either() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(5, 60, 60)
    worse = mious([matrix(100 - h, h) for h in hard])
    better = mious([matrix(104 - h, h - 4) for h in hard])
    low, high = interval(better - worse)
    assert 0 < low < high
    assert high - low < 0.5 * np.subtract(*interval(worse)[::-1])
