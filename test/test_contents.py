"""Images that show nothing: what is said of them, and that it does not flap."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2")

from lowlat_seg_ros.images.compressed import Packet, VideoDecoder
from lowlat_seg_ros.network.expected_accuracy import Looker
from lowlat_seg_ros.ros.plausibility import (
    END,
    FROZEN,
    FROZEN_VIDEO,
    OWN,
    Content,
    ContentMonitor,
    ContentState,
    examine_contents,
)

HEIGHT, WIDTH = 360, 480


def scene(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth random picture with the noise of a sensor."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(20, 236, (9, 12, 3), np.uint8)
    smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-3, 4, smooth.shape), 0, 255).astype(np.uint8)


def noise(low: int, high: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(low, high + 1, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def flat(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3)).copy()


def with_rows(rows: slice | np.ndarray, colour: int) -> np.ndarray:
    image = scene()
    image[rows] = colour
    return image


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_COLOR)


def fence(period: int) -> np.ndarray:
    """Bars from end to end, and the noise of a sensor."""
    bars = np.where(np.arange(WIDTH)[None, :, None] // (period // 2) % 2, 200, 40)
    sensor = np.random.default_rng(period).integers(-3, 4, (HEIGHT, WIDTH, 3))
    return (bars + sensor).astype(np.uint8)


def with_lamp(image: np.ndarray) -> np.ndarray:
    """A lamp, or the time of day in a corner, of 1 % of the pixels."""
    image[:36, :48] = 255
    return image


def content_of(image: np.ndarray, times: int = 12) -> Content | None:
    monitor, looker = ContentMonitor(), Looker()
    for stamp in range(times):
        monitor.image(image, looker.look(image, stamp))
    return monitor.state.content


@pytest.mark.parametrize(
    ("image", "content"),
    [
        (flat(0, 0, 0), Content.BLACK),
        (noise(0, 14), Content.BLACK),  # a lens cap, with the noise of a sensor
        (with_lamp(flat(2, 2, 2)), Content.BLACK),
        (flat(255, 255, 255), Content.WHITE),
        (noise(251, 255), Content.WHITE),
        (flat(0, 135, 0), Content.FLAT),  # what zeros in YUV look like
        (flat(0, 0, 255), Content.FLAT),
        (jpeg(flat(90, 120, 40)), Content.FLAT),
        (with_lamp(flat(128, 128, 128)), Content.FLAT),
        (noise(0, 255), Content.NOISE),
        (noise(100, 156), Content.NOISE),
        (np.repeat(noise(0, 255)[..., :1], 3, 2), Content.NOISE),  # grey
        (cv2.blur(noise(0, 255), (2, 2)), Content.NOISE),  # as demosaicing leaves it
        (jpeg(noise(0, 255)), Content.NOISE),
        (with_rows(slice(180, None), 128), Content.PARTIAL),
        (with_rows(slice(300, None), 0), Content.PARTIAL),  # the last sixth is missing
        (with_rows(slice(270, None), 255), Content.PARTIAL),  # the rest of the buffer is white
        (with_rows(slice(180), 0), Content.PARTIAL),
        (with_rows(slice(0, None, 2), 0), Content.PARTIAL),  # one of two fields
        (with_rows(slice(1, None, 2), 0), Content.PARTIAL),
        (np.ascontiguousarray(with_rows(slice(180), 0).transpose(1, 0, 2)), Content.PARTIAL),
        (jpeg(with_rows(slice(180, None), 128)), Content.PARTIAL),
    ],
)
def test_images_that_show_nothing(image: np.ndarray, content: Content) -> None:
    assert content_of(image) is content


@pytest.mark.parametrize(
    "image",
    [
        scene(),
        scene(1, 1080, 1920),
        scene(2, 48, 64),
        (scene(3) * 0.15).astype(np.uint8),  # by night
        np.clip(scene(4).astype(np.int16) + 120, 0, 255).astype(np.uint8),  # glaring light
        with_rows(slice(200), 255),  # a sky that is saturated
        with_rows(np.r_[0:46, 314:360], 0),  # letterboxed
        np.repeat(scene(5)[..., :1], 3, 2),  # a grey camera
        np.zeros((1, 2000, 3), np.uint8),  # too small to say
        *(fence(period) for period in (6, 8, 12, 16, 24)),
    ],
)
def test_images_that_show_something(image: np.ndarray) -> None:
    assert content_of(image) is None


@pytest.mark.skipif("CAMVID_ROOT" not in os.environ, reason="CAMVID_ROOT is not set")
def test_no_image_of_camvid_is_accused() -> None:
    paths = sorted(Path(os.environ["CAMVID_ROOT"]).glob("*/*.jpg"))[::20]
    assert paths
    assert {content_of(cv2.imread(str(path))) for path in paths} == {None}


def run(monitor: ContentMonitor, images: list[np.ndarray], times: int = 1) -> list[Content | None]:
    """What is said after each of the images, which come one after another so many times."""
    looker, said = Looker(), []
    for stamp in range(times):
        for image in images:
            monitor.image(image, looker.look(image, stamp))
            said.append(monitor.state.content)
    return said


def hood(rows: slice = slice(290, None), colour: int = 0) -> list[np.ndarray]:
    """What a camera sees beyond something of one colour that it always sees, its lower end."""
    images = [scene(seed) for seed in range(3)]
    for image in images:
        image[rows] = colour
    return images


def fisheye() -> list[np.ndarray]:
    """The circle of a lens in a wide image: half of the columns are black."""
    outside = np.hypot(*np.mgrid[-180:180, -240:240]) > 120
    return [np.where(outside[..., None], 0, scene(seed)).astype(np.uint8) for seed in range(3)]


@pytest.mark.parametrize("images", [hood(), hood(colour=90), fisheye()])
def test_what_the_camera_always_sees_is_not_accused_for_ever(images: list[np.ndarray]) -> None:
    """A hood, a mask or a lens's edge; nor is it when the images beyond it are cut short later."""
    monitor = ContentMonitor()
    said = run(monitor, images, times=OWN // 3)
    assert said[OWN // 2] is Content.PARTIAL
    assert run(monitor, images, times=10)[-1] is None
    assert monitor.state.own > END
    (value,) = {int(image[-1, 0, 0]) for image in images}
    cut = [image.copy() for image in images]
    for image in cut:
        image[200:] = value
    assert run(monitor, cut, times=5)[-1] is Content.PARTIAL
    assert run(monitor, images, times=5)[-1] is None


def test_transfers_that_end_here_and_there_are_said_as_long_as_they_do() -> None:
    cuts = [hood(slice(row, None), 128)[0] for row in (200, 270, 290, 250)]
    assert (
        run(ContentMonitor(), [*cuts, *hood(slice(0))[:1]], times=OWN // 4)[-1] is Content.PARTIAL
    )


def test_a_hood_that_is_black_by_night_alone() -> None:
    """It is said for a while, as a transfer that is cut short would be, and then no more."""
    monitor = ContentMonitor()
    assert set(run(monitor, hood(slice(0)), times=OWN // 3)) == {None}
    night = run(monitor, hood(), times=OWN // 2)
    assert (night[20], night[-1]) == (Content.PARTIAL, None)


def test_what_is_seen_once_is_not_said() -> None:
    assert content_of(flat(0, 0, 0), times=9) is None
    assert content_of(flat(0, 0, 0), times=10) is Content.BLACK


def test_a_lens_cap_at_night_does_not_flap() -> None:
    """Its noise is now below the limit of black, now above it."""
    monitor, looker, seen = ContentMonitor(), Looker(), []
    for stamp in range(120):
        image = noise(0, 12, stamp) if stamp < 15 or stamp % 2 else noise(0, 24, stamp)
        monitor.image(image, looker.look(image, stamp))
        seen.append(monitor.state.content)
    assert set(seen[15:]) == {Content.BLACK}
    for stamp in range(120, 140):  # and it is over when it is taken off
        monitor.image(scene(stamp), looker.look(scene(stamp), stamp))
    assert monitor.state.content is None


def frozen(images: list[np.ndarray], stamps: list[int]) -> list[str]:
    monitor, looker = ContentMonitor(), Looker()
    for image, stamp in zip(images, stamps, strict=True):
        monitor.image(image, looker.look(image, stamp))
    return [finding.text for finding in examine_contents(monitor.state)]


def test_the_same_pixels_under_new_stamps_are_frozen() -> None:
    (found,) = frozen([scene().copy() for _ in range(12)], list(range(12)))
    assert found.startswith("the same pixels for 12 frames under new stamps")
    assert frozen([scene()] * 9, list(range(9))) == []
    assert frozen([scene()] * 30, [7] * 30) == []  # the stamps stand still as well


def test_a_still_camera_has_the_noise_of_its_sensor() -> None:
    def with_noise(seed: int) -> np.ndarray:
        image, rng = scene(), np.random.default_rng(seed)
        rows, columns = rng.integers(0, HEIGHT, 50), rng.integers(0, WIDTH, 50)
        image[rows, columns] ^= 1  # too little for most of the pixels that are looked at
        return image

    assert frozen([with_noise(seed) for seed in range(30)], list(range(30))) == []


def test_a_scene_that_stands_still_in_a_video_is_not_frozen() -> None:
    """Its encoder leaves the noise out, so that many pictures are alike."""
    pytest.importorskip("av", reason="videos are decoded by PyAV")
    import av

    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.gop_size = Fraction(1, 15), 150
    encoder.options = {"tune": "zerolatency", "crf": "38", "preset": "veryfast"}
    decoder, monitor, looker = VideoDecoder(), ContentMonitor(), Looker()
    smooth = cv2.GaussianBlur(scene(), (0, 0), 5).astype(float)
    rng, most = np.random.default_rng(0), 0
    for stamp in range(60):
        noisy = np.clip(smooth + rng.normal(0, 1, smooth.shape), 0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(noisy, "rgb24")
        frame.pts = stamp
        for packet in encoder.encode(frame):
            image = decoder.decode(Packet(None, "h264", bytes(packet)))
            monitor.image(image, looker.look(image, stamp))
            most = max(most, monitor.state.unchanged)
            assert examine_contents(monitor.state, video=True) == []
    assert most > FROZEN
    stuck = ContentState(unchanged=FROZEN_VIDEO)
    assert "frozen" in examine_contents(stuck, video=True)[0].text


def test_one_cause_is_said_once() -> None:
    """A black image has the same pixels each time, too."""
    (found,) = frozen([flat(0, 0, 0)] * 20, list(range(20)))
    assert "images are black; look at lens cap" in found
