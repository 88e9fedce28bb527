"""Image to network input, logits to mask: sizes, borders and alignment."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from lowlat_seg_ros.engine.postprocess import confidence_of, mask_of
from lowlat_seg_ros.engine.preprocess import MAX_PIXELS, plan
from lowlat_seg_ros.engine.runner import Runner
from lowlat_seg_ros.frames import FrameError
from lowlat_seg_ros.network.segmenter import Segmenter
from lowlat_seg_ros.network.trunk import IMAGENET


def ramp_logits(padded: tuple[int, int], edge: float, axis: int) -> torch.Tensor:
    """Two classes; class 1 wins beyond ``edge``, in pixels of the network's input."""
    cells = torch.arange(padded[axis] // 8) * 8 + 3.5  # pixel centres of the cells
    line = (cells - edge).view((-1, 1) if axis == 0 else (1, -1))
    plane = line.expand(padded[0] // 8, padded[1] // 8)
    return torch.stack([torch.zeros_like(plane), plane])[None]


@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    inference=st.sampled_from([0, 48, 100]),
    axis=st.sampled_from([0, 1]),
    where=st.floats(0.3, 0.7),
)
def test_mask_is_aligned(height: int, width: int, inference: int, axis: int, where: float) -> None:
    """A straight edge in the logits lies at the very pixel where geometry puts it."""
    geometry = plan((height, width), inference)
    edge = where * geometry.scaled[axis] - 0.5  # pixel coordinate at the network's size
    # Beyond the centres of the outermost cells there is nothing to interpolate.
    assume(3.5 < edge < geometry.padded[axis] - 4.5)
    mask = mask_of(ramp_logits(geometry.padded, edge, axis), geometry)
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    size = geometry.image[axis]
    on_input = where * size - 0.5
    pixels = np.arange(size)
    sure = abs(pixels - on_input) > 1e-2  # float32 coordinates
    line = mask if axis == 1 else mask.T
    assert (line[:, sure] == (pixels > on_input)[sure]).all()


@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    inference=st.sampled_from([48, 100]),
    scale=st.sampled_from([1.0, 3 / 4, 1 / 2]),
    axis=st.sampled_from([0, 1]),
    where=st.floats(0.3, 0.7),
)
def test_mask_at_the_networks_size_is_aligned_too(
    height: int, width: int, inference: int, scale: float, axis: int, where: float
) -> None:
    """Its size does not change while load is shed, so that a CameraInfo fits it."""
    geometry = plan((height, width), inference, scale, mask_at_network_size=True)
    assert geometry.mask == plan((height, width), inference).scaled
    edge = where * geometry.scaled[axis] - 0.5
    assume(3.5 < edge < geometry.padded[axis] - 4.5)
    mask = mask_of(ramp_logits(geometry.padded, edge, axis), geometry)
    assert mask.shape == geometry.mask
    size = geometry.mask[axis]
    on_mask, pixels = where * size - 0.5, np.arange(size)
    sure = abs(pixels - on_mask) > 1e-2  # float32 coordinates
    line = mask if axis == 1 else mask.T
    assert (line[:, sure] == (pixels > on_mask)[sure]).all()


def test_unpadded_mask_is_plain_bilinear_interpolation() -> None:
    logits = torch.randn(1, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits, (48, 64), mode="bilinear").argmax(1)[0].numpy()
    assert (mask_of(logits, plan((48, 64), 0)) == expected).all()


@given(height=st.integers(1, 90), width=st.integers(1, 90), inference=st.sampled_from([0, 48]))
def test_confidence_of_one_answer_everywhere_is_its_softmax(
    height: int, width: int, inference: int
) -> None:
    geometry = plan((height, width), inference)
    cells = [side // 4 for side in geometry.padded]  # as a network with sub-pixel classifiers
    logits = torch.tensor([0.0, 2.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, *cells)
    confidence = confidence_of(logits, geometry)
    assert (confidence.shape, confidence.dtype) == ((height, width), np.uint8)
    assert (confidence == round(255 * np.exp(2) / (1 + np.exp(2) + np.exp(-1)))).all()


def test_confidence_is_interpolated_between_the_cells_of_the_network() -> None:
    logits = 3 * torch.randn(1, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    best = torch.softmax(logits.double(), 1).amax(1, keepdim=True)
    expected = 255 * F.interpolate(best, (48, 64), mode="bilinear")[0, 0].numpy()
    confidence = confidence_of(logits, plan((48, 64), 0))
    assert np.abs(confidence - expected).max() <= 0.5 + 1e-3
    assert np.ptp(confidence) > 100


def test_certain_and_undecided_networks_reach_the_ends_of_the_scale() -> None:
    geometry = plan((16, 16), 0)
    certain = torch.tensor([1000.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert (confidence_of(certain, geometry) == 255).all()
    assert (confidence_of(torch.zeros(1, 255, 2, 2), geometry) == 1).all()


def test_padding_repeats_the_edge(tiny: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    geometry = plan((13, 21), 0)
    assert geometry.padded == (16, 24)
    tensor = Runner(tiny).image(image, geometry)[0]
    expected = np.pad(image, ((0, 3), (0, 3), (0, 0)), mode="edge").astype(np.float32) / 255
    expected = (expected - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    assert tensor.shape == (1, 3, 16, 24)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tensor[0].permute(1, 2, 0).contiguous().numpy(), expected)


@pytest.mark.parametrize("inference_height", [0, 16])
def test_any_memory_layout(tiny: Segmenter, inference_height: int) -> None:
    """Mirrored, strided and read-only images are as good as their copies."""
    whole = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    geometry = plan((20, 20), inference_height)
    view = whole[::2, ::-3, ::-1]
    view.flags.writeable = False
    expected = Runner(tiny).image(view.copy(), geometry)[0]
    assert torch.equal(Runner(tiny).image(view, geometry)[0], expected)


def test_aspect_is_kept() -> None:
    geometry = plan((720, 1280), 360)
    assert geometry.scaled == geometry.padded == (360, 640)
    assert plan((375, 500), 100).scaled == (100, 133)
    assert plan((1000, 1), 16).scaled == (16, 1)


def test_shrinking_averages_areas(tiny: Segmenter) -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checker[..., None], 3, 2).astype(np.uint8)
    tensor = Runner(tiny).image(image, plan((64, 64), 16))[0]
    grey = (torch.full((3,), 128 / 255) - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    torch.testing.assert_close(tensor, grey.view(1, 3, 1, 1).expand(1, 3, 16, 16))


def test_network_runs_at_the_height_it_was_trained_on() -> None:
    size = functools.partial(plan, inference_height=-1, trained_height=360)
    assert size((1080, 1920)).scaled == (360, 640)
    assert size((240, 320)).scaled == (360, 480)
    # A camera on its side sees objects as large as an upright one.
    assert size((1920, 1080)).scaled == (640, 360)
    assert plan((1080, 1920), -1).scaled == (1080, 1920)  # the checkpoint does not say
    assert plan((1080, 1920), 0, trained_height=360).scaled == (1080, 1920)


@pytest.mark.parametrize(("size", "inference_height"), [((1, 100_000), 720), ((8000, 8000), 0)])
def test_absurd_sizes_are_refused(size: tuple[int, int], inference_height: int) -> None:
    with pytest.raises(FrameError, match=f"over {MAX_PIXELS} pixels; set a smaller"):
        plan(size, inference_height)


@given(
    height=st.integers(8, 120),
    width=st.integers(8, 120),
    inference=st.sampled_from([0, 24, 60]),
    upsampling=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)
def test_the_fast_arg_max_is_that_of_interpolated_logits(
    height: int, width: int, inference: int, upsampling: int, seed: int
) -> None:
    """No pixel has a class whose logit, in double precision, is below the highest."""
    geometry = plan((height, width), inference)
    cells = [side // 8 * upsampling for side in geometry.padded]
    logits = torch.randn(1, 7, *cells, generator=torch.Generator().manual_seed(seed))
    stride = 8 / upsampling
    scales = [stride * m / s for m, s in zip(geometry.mask, geometry.scaled, strict=True)]
    full = torch.ops.aten.upsample_bilinear2d(logits.double(), geometry.mask, False, *scales)[0]
    mask = mask_of(logits, geometry)
    chosen = full.gather(0, torch.from_numpy(mask).long()[None])[0]
    # No share of sure pixels is asked for: beyond the centres of the outermost cells logits are
    # constant, so that one near tie there decides hundreds of pixels of a small image.
    assert (full.amax(dim=0) - chosen).max() < 1e-4
    assert mask.flags.c_contiguous


def test_equal_logits_give_the_first_class() -> None:
    assert (mask_of(torch.ones(1, 4, 2, 2), plan((16, 16), 0)) == 0).all()
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert (mask_of(logits, plan((16, 16), 0)) == 1).all()


def test_a_normalised_image_is_bit_for_bit_that_of_training(tiny: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = tiny.normalise(pixels.float() / 255)
    assert torch.equal(Runner(tiny).image(image, plan((16, 24), 0))[0], expected)
