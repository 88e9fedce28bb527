"""Features and key frames at another size of the network's input."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from lowlat_seg_ros.engine.key_frame import HighLevel, KeyFrame, KeyFrameCache, Refiner, resampled
from lowlat_seg_ros.engine.preprocess import Geometry, plan, resample
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import Frame, Outcome, ResetReason
from lowlat_seg_ros.network.segmenter import Segmenter

FULL, HALF = plan((90, 130), 0), plan((90, 130), 0, 1 / 2)


def ramp(geometry: Geometry) -> torch.Tensor:
    """Features (1, 2, h, w) that say where their cells lie, as fractions of the image."""
    axes = [
        (torch.arange(padded // 8) * 8 + 4) / scaled
        for padded, scaled in zip(geometry.padded, geometry.scaled, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def key_of(geometry: Geometry, index: int = 0, **changes: object) -> KeyFrame:
    high = HighLevel(ramp(geometry), stamp_ns=0, index=index)
    key = KeyFrame(
        *[ramp(geometry)] * 4, high, geometry, stamp_ns=0, index=index, epoch=0, exact=True
    )
    return dataclasses.replace(key, **changes)  # type: ignore[arg-type]


def cells(geometry: Geometry) -> tuple[int, ...]:
    return tuple(side // 8 for side in geometry.padded)


def is_of_one_size(key: KeyFrame) -> bool:
    tensors = [key.source, key.reduced, key.remembered, key.selector_reduced]
    tensors += [] if key.high is None else [key.high.features]
    return all(tuple(t.shape[2:]) == cells(key.geometry) for t in tensors)


@pytest.mark.parametrize("scale", [1.0, 3 / 4, 1 / 2])
@pytest.mark.parametrize("image", [(1, 1), (9, 200), (90, 130)])
@pytest.mark.parametrize("inference_height", [0, 64])
def test_a_scale_shrinks_both_sides(
    scale: float, image: tuple[int, int], inference_height: int
) -> None:
    base, found = plan(image, inference_height), plan(image, inference_height, scale)
    assert found.image == image
    for side, of_base, padded in zip(found.scaled, base.scaled, found.padded, strict=True):
        assert side >= 1
        assert abs(side - of_base * scale) <= 0.5
        assert 0 <= padded - side < 8
        assert padded % 8 == 0
    assert scale != 1.0 or found == base


@pytest.mark.parametrize(("old", "new"), [(FULL, HALF), (HALF, FULL), (FULL, FULL)])
def test_what_lies_somewhere_stays_there(old: Geometry, new: Geometry) -> None:
    """Also where the padding is not in proportion: 90 rows are 96, 45 are 48."""
    found, expected = resample(ramp(old), old, new), ramp(new)
    assert found.shape == expected.shape
    # Beyond the centres of the outermost cells the edge is repeated.
    inside = (expected > ramp(old).amin((2, 3), keepdim=True)) & (
        expected < ramp(old).amax((2, 3), keepdim=True)
    )
    assert inside.float().mean() > 0.7
    assert (found - expected).abs()[inside].max() < 1e-5


def test_resampled_key_frame_is_provisional_and_of_its_epoch() -> None:
    key = key_of(FULL, index=3)
    found = resampled(key, HALF)
    assert is_of_one_size(found)
    assert (found.exact, found.resampled, found.geometry) == (False, True, HALF)
    assert (found.index, found.epoch, found.stamp_ns) == (3, 0, 0)
    assert resampled(key, FULL) is key
    assert resampled(key_of(FULL, high=None), HALF).high is None


def test_current_key_frame_takes_the_size_and_keeps_it() -> None:
    cache = KeyFrameCache()
    assert cache.at_size(HALF) == (None, 0, ResetReason.FIRST_FRAME)
    key = key_of(FULL)
    assert cache.replace(None, key)
    assert cache.at_size(FULL)[0] is key
    found = cache.at_size(HALF)[0]
    assert found is not None
    assert found.geometry == HALF
    assert cache.snapshot() == (found, 0)
    assert cache.at_size(HALF)[0] is found


@torch.inference_mode()
@pytest.mark.parametrize("policy", ["propagate", "as_is", "drop"])
def test_sh_of_the_very_key_frame_at_its_former_size(tiny: Segmenter, policy: str) -> None:
    """Its result is fitted to the size that the key frame has by now, and is not exact there."""
    image = torch.randint(0, 256, (90, 130, 3), dtype=torch.uint8).numpy()
    low = tiny.lower(Runner(tiny).image(Frame(image, 0).image, FULL)[0])
    reduced = tiny.predictor.reduce(low)
    remembered = tiny.predictor.remember(reduced)
    key = key_of(FULL, source=low, reduced=reduced, remembered=remembered, high=None, exact=False)
    cache = KeyFrameCache()
    assert cache.replace(None, key)
    cache.at_size(HALF)
    assert Refiner(Runner(tiny), cache, policy)(key, lambda: None) is Outcome.CARRIED
    current, _ = cache.snapshot()
    assert current is not None
    assert current.high is not None
    assert torch.equal(current.high.features, resample(tiny.higher(low), FULL, HALF))
    assert is_of_one_size(current)
    assert not current.exact


def test_no_record_mixes_sizes_while_both_tracks_write() -> None:
    """The foreground changes the size as fast as it can, beside a slow track that delivers."""
    cache, stop = KeyFrameCache(), threading.Event()
    assert cache.replace(None, key_of(FULL))
    delivered = 0

    def deliver() -> None:
        nonlocal delivered
        done = key_of(FULL)
        while not stop.is_set():
            current, _ = cache.snapshot()
            assert current is not None
            fitted = resampled(done, current.geometry)
            delivered += cache.replace(current, dataclasses.replace(current, high=fitted.high))

    slow = threading.Thread(target=deliver)
    slow.start()
    try:
        turns = 0
        while turns < 200 or not delivered:
            wanted = HALF if turns % 2 else FULL
            key = cache.at_size(wanted)[0]
            assert key is not None
            current, _ = cache.snapshot()
            assert current is not None
            assert key.geometry == current.geometry == wanted
            assert is_of_one_size(key)
            assert is_of_one_size(current)
            turns += 1
    finally:
        stop.set()
        slow.join()
    last, _ = cache.snapshot()
    assert last is not None
    assert is_of_one_size(last)
