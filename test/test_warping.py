"""Answers carried more finely than a cell: by optical flow, to a part of a point."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowlat_seg_ros.config import ConfigError, EngineConfig, NetworkConfig
from lowlat_seg_ros.engine.engine import Engine
from lowlat_seg_ros.frames import Frame
from lowlat_seg_ros.lab.baselines.learned import METHODS
from lowlat_seg_ros.network import warping
from lowlat_seg_ros.network.gate import evidence_of
from lowlat_seg_ros.network.segmenter import Segmenter


def arranged(cells: torch.Tensor) -> torch.Tensor:
    return F.pixel_shuffle(cells, 2)


def uniform_flow(x: float, y: float, height: int, width: int) -> torch.Tensor:
    flow = torch.empty(1, 2, height, width)
    flow[:, 0], flow[:, 1] = x, y
    return flow


@pytest.mark.parametrize("compiled", [True, False])
def test_half_a_cell_is_a_whole_point(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Eq. (1) cannot do: it would smear each point over two."""
    if compiled:
        pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")
        assert warping.compiled(3, 2) is not None
    else:
        monkeypatch.setattr(warping, "compiled", lambda *_: None)
    before = torch.randn(1, 3, 16, 20).contiguous(memory_format=torch.channels_last)
    # What is there now was three points to the right and one above.
    with torch.inference_mode():
        moved = arranged(warping.warp(before, uniform_flow(3, -1, 16, 20), points=2))
    torch.testing.assert_close(moved[:, :, 1:, :-3], before[:, :, :-1, 3:])
    # Beyond the border the edge repeats.
    torch.testing.assert_close(moved[:, :, 1:, -1], before[:, :, :-1, -1])


@pytest.mark.parametrize(("classes", "points"), [(11, 2), (3, 4), (5, 1)])
@torch.inference_mode()
def test_both_ways_give_the_same(
    classes: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")
    dense = torch.channels_last
    answers = torch.randn(1, classes, 12 * points, 15 * points).contiguous(memory_format=dense)
    flow = 5 * torch.randn(1, 2, 12 * points, 15 * points)
    fast = warping.warp(answers, flow, points)
    monkeypatch.setattr(warping, "compiled", lambda *_: None)
    torch.testing.assert_close(fast, warping.warp(answers, flow, points), rtol=1e-4, atol=1e-4)
    assert fast.is_contiguous(memory_format=dense)


def textured(height: int, width: int) -> np.ndarray:
    """Noise of several scales, as a street has: flow needs something to hold on to at each."""
    rng, scene = np.random.default_rng(0), np.zeros((height, width, 3), np.float32)
    for step in (8, 16, 32):
        noise = rng.uniform(0, 85, (height // step, width // step, 3)).astype(np.float32)
        scene += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return scene.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("points", [1, 2])
def test_flow_finds_what_has_moved_in_answers(points: int) -> None:
    scene = textured(256, 384)
    then, now = scene[8:200, 16:336], scene[0:192, 28:348]  # moved 8 px down, 12 px to the left
    lumas = [warping.luma_of(np.ascontiguousarray(x)) for x in (then, now)]
    assert lumas[0].shape == (96, 160)
    found = warping.motion(*lumas, points)
    height, width = 192 * points // 8, 320 * points // 8
    assert found.flow.shape == (1, 2, height, width)
    assert found.residual.shape == (1, points**2, 24, 40)
    inner = found.flow[0, :, 4:-4, 4:-4].flatten(1).median(dim=1).values
    expected = torch.tensor([12.0, -8.0]) * points / 8
    torch.testing.assert_close(inner, expected, atol=0.15, rtol=0)


def test_the_residual_is_small_where_flow_explains_the_image_and_large_where_not() -> None:
    scene = textured(256, 384)
    then, now = scene[8:200, 16:336].copy(), scene[0:192, 28:348].copy()
    now[80:112, 160:192] = 255 - now[80:112, 160:192]  # something else came into view
    found = warping.motion(warping.luma_of(then), warping.luma_of(now), 2)
    residual = F.pixel_shuffle(found.residual, 2)[0, 0]
    assert residual[20:28, 40:48].mean() > 3 * residual[4:16, 8:32].mean()
    assert 0 <= residual.min() <= residual.max() <= 1


@torch.inference_mode()
def test_answers_of_one_frame_are_warped_once_however_many_key_frames_follow(
    gated: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each warping blurs, so provisional key frames hand on what Sh answered, not what moved."""
    pairs = []
    real = warping.motion
    monkeypatch.setattr(
        warping, "motion", lambda then, now, points: pairs.append(then) or real(then, now, points)
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 64, 96, 3), np.uint8)
    config = EngineConfig(key_frame_policy="deviation", deviation_threshold=0.0)
    engine = Engine.deterministic(gated, config, threshold=0.0, delay_frames=3)
    for number, image in enumerate(images):
        engine.process(Frame(image, number * 10**8))
    assert engine.counters.key_frames > 2
    # Frames 1 to 3 are carried from frame 0; from frame 4 on from frame 1, the first that was
    # refined, though there were key frames in between.
    lumas = [warping.luma_of(image) for image in images]
    came_from = [next(n for n, luma in enumerate(lumas) if luma is then or (luma == then).all())
                 for then in pairs]  # fmt: skip
    assert came_from[:3] == [0, 0, 0]
    assert came_from[-1] >= 1


@torch.inference_mode()
def test_fused_masks_correct_what_was_moved(gated: Segmenter) -> None:
    """The answers given are those that the gate weighs."""
    low = gated.lower(torch.randn(1, 3, 64, 96))
    high = torch.randn(1, gated.config.high_channels, 8, 12)
    cells = gated.carried_cells(high)
    reduced = gated.predictor.reduce(low)
    known = evidence_of(reduced, reduced, torch.tensor([0.1]), torch.zeros(1, 4, 8, 12))
    answers = gated.high_classifier.cells(high)
    other = gated.classify_fused(cells, low, known, answers.roll(2, 3))
    assert not torch.allclose(other, gated.classify_fused(cells, low, known, answers))


@torch.inference_mode()
def test_where_nothing_moves_answers_stay_what_they_are(gated: Segmenter) -> None:
    high = torch.randn(1, gated.config.high_channels, 8, 12)
    still = gated.warp(gated.answers(high), torch.zeros(1, 2, 16, 24))
    torch.testing.assert_close(still, gated.high_classifier.cells(high))


def test_it_needs_what_it_is_a_part_of_and_excludes_other_carriers(gated: Segmenter) -> None:
    with pytest.raises(ConfigError, match=r"fine_carry is True .* without residual_fusion"):
        NetworkConfig(fine_carry=True)
    with pytest.raises(ConfigError, match="with fine_carry, whose gate replaces it"):
        NetworkConfig(fine_carry=True, residual_fusion=True, ensemble=0.5)
    with pytest.raises(ConfigError, match="carries its answers besides F_h"):
        METHODS["dff"](gated)


def test_flow_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"answers are \(8, 12\) and flow is \(4, 6\)"):
        warping.warp(torch.zeros(1, 3, 8, 12), torch.zeros(1, 2, 4, 6), 2)


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (64, 8), (16, 16)])
def test_images_of_a_few_pixels_have_a_flow(size: tuple[int, int]) -> None:
    """OpenCV refuses them, so a camera that sends 1x1 got one mask and no second one."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    luma = warping.luma_of(pixels)
    still = warping.motion(luma, luma, 2)
    assert still.flow.shape == (1, 2, size[0] // 4, size[1] // 4)
    assert still.flow.abs().max() < 0.5
    assert still.residual.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert still.residual.max() < 0.5
