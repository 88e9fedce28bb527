"""Charts and videos are read back, and show what happened."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lowlat_seg_ros.frames import MaskKind, Provenance, Segmentation, Selection, StageTiming
from lowlat_seg_ros.labels import CAMVID, overlay
from lowlat_seg_ros.tools.account import Answer
from lowlat_seg_ros.tools.demo_figures import Storyboard, latency_chart
from lowlat_seg_ros.tools.pictures import VideoWriter

SIZE = (48, 64)
RED = (255, 0, 0)  # of the crosses that mark frames without a mask


def answer(index: int, is_key: bool = False) -> Answer:
    kind = MaskKind.PROPAGATED if index else MaskKind.FULL
    timing = StageTiming(lower_ms=20, propagation_ms=5, latency_ms=30)
    selection = Selection(0.3 if is_key else 0.1, 0.2, is_key) if index else None
    mask = np.full(SIZE, index % 11, np.uint8)
    source = Provenance(kind, 0, index, 100.0 * index, True, 0)
    result = Segmentation(mask, index, "camera", source, timing, selection=selection)
    return Answer(index, result, published_ms=35, received_ms=40)


def chart(path: Path, answers: list[Answer], played: int) -> np.ndarray:
    latency_chart(path, answers, played, "a drive")
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1]


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=-1).sum())


def test_chart_marks_frames_without_a_mask(tmp_path: Path):
    answers = [answer(index) for index in range(6)]
    assert count(chart(tmp_path / "all.png", answers, 6), RED) == 0
    assert count(chart(tmp_path / "gap.png", answers[:3] + answers[5:], 6), RED) > 0


def test_chart_marks_key_frames(tmp_path: Path):
    purple = (0xAA, 0x33, 0x77)
    few = [answer(index) for index in range(6)]
    many = [answer(index, is_key=index % 2 == 1) for index in range(6)]
    without, marked = (chart(tmp_path / "chart.png", answers, 6) for answers in (few, many))
    assert count(marked, purple) > count(without, purple) > 0


def test_chart_of_a_clip_whose_every_mask_is_full(tmp_path: Path):
    assert chart(tmp_path / "one.png", [answer(0)], 2).shape[2] == 3


def read(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return frames, float(stream.average_rate or 0)


def test_video_decodes_to_the_pictures_written(tmp_path: Path):
    pictures = [np.full((*SIZE, 3), (20 * n, 128, 255 - 20 * n), np.uint8) for n in range(9)]
    with VideoWriter(tmp_path / "v.mp4", SIZE, 7.5) as video:
        for picture in pictures:
            video.write(picture)
    frames, rate_hz = read(tmp_path / "v.mp4")
    assert rate_hz == 7.5
    assert [frame.shape for frame in frames] == [(*SIZE, 3)] * 9
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 4  # of 255: lossy, but the right one


def test_odd_sizes_are_extended_by_their_last_line(tmp_path: Path):
    with VideoWriter(tmp_path / "v.mp4", (33, 47), 5.0) as video:
        video.write(np.full((33, 47, 3), 200, np.uint8))
    (frame,), _ = read(tmp_path / "v.mp4")
    assert frame.shape == (34, 48, 3)
    assert np.abs(frame.astype(int) - 200).max() < 5


def test_picture_of_another_size_is_refused(tmp_path: Path):
    with (
        VideoWriter(tmp_path / "v.mp4", SIZE, 5.0) as video,
        pytest.raises(ValueError, match=r"\(1, 2, 3\)"),
    ):
        video.write(np.zeros((1, 2, 3), np.uint8))


@pytest.mark.parametrize("size", [(48, 64), (45, 61), (360, 480)])
def test_storyboard_shows_input_and_overlay_over_a_caption(size: tuple[int, int]):
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    board, given = Storyboard(2, size, CAMVID), answer(1, is_key=True)
    mask = cv2.resize(given.segmentation.mask, (width, height))
    result = Segmentation(**vars(given.segmentation) | {"mask": mask})
    shown = board.picture(1, image, Answer(1, result, 35, 40))
    assert shown.shape == (*board.size, 3)
    assert (shown[:height, :width] == image).all()
    assert (shown[:height, width:] == overlay(image, mask, CAMVID)).all()
    assert shown[height:].any()


def test_storyboard_of_a_frame_without_mask_invents_none():
    image = np.full((*SIZE, 3), 90, np.uint8)
    shown = Storyboard(2, SIZE, CAMVID).picture(1, image, None)
    assert (shown[: SIZE[0], SIZE[1] :] == 30).all()
