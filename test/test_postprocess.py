"""Upsampling and arg max: the numba kernel, and OpenCV class by class, which takes any size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowlat_seg_ros.engine import postprocess
from lowlat_seg_ros.engine.beside import Helper, Result
from lowlat_seg_ros.engine.postprocess import arg_max_at, class_by_class, compiled_upsampling
from lowlat_seg_ros.engine.runner import runners
from lowlat_seg_ros.network.segmenter import Segmenter

pytest.importorskip("numba", reason="numba is not installed; pip install '.[fast]' adds it")

#: (classes, h, w) and factor: one logit, row and column, a block of gaps and one more or less, odd
#: factors, as many classes as ids.
CASES = [
    ((1, 3, 5), 2),
    ((2, 1, 1), 8),
    ((19, 1, 7), 4),
    ((3, 6, 1), 3),
    ((11, 9, 63), 4),
    ((11, 5, 64), 2),
    ((4, 7, 31), 5),
    ((19, 11, 13), 8),
    ((256, 4, 6), 4),
    ((5, 8, 9), 1),
]


def random_logits(shape: tuple[int, int, int]) -> np.ndarray:
    """Normal, float32."""
    logits: np.ndarray = np.random.default_rng(shape[2]).standard_normal(shape, np.float32)
    return logits


@pytest.mark.parametrize(("shape", "factor"), CASES)
def test_is_the_arg_max_of_interpolated_logits(shape: tuple[int, int, int], factor: int) -> None:
    """Wherever rounding does not decide; in double precision."""
    logits = random_logits(shape)
    upsample = compiled_upsampling()
    assert upsample is not None
    ids = upsample(logits, factor)
    exact = torch.from_numpy(logits).double()[None]
    size = (factor * shape[1], factor * shape[2])
    full = F.interpolate(exact, size, mode="bilinear")[0]
    chosen = full.gather(0, torch.from_numpy(ids.astype(np.int64))[None])
    assert ids.shape == size
    assert (full.amax(dim=0) - chosen[0]).max() < 1e-5
    # With so few near ties, nothing else would do.
    assert (ids == full.argmax(dim=0).numpy()).mean() > 0.99
    assert (ids == class_by_class(logits, size)).mean() > 0.99


def test_any_memory_layout() -> None:
    """As a network gives logits, channels_last, and others."""
    logits = random_logits((11, 12, 20))
    expected = arg_max_at(logits, (48, 80))
    last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    strided = np.repeat(np.repeat(logits, 2, axis=2), 3, axis=1)[:, ::3, ::2]
    for same in (last, strided):
        np.testing.assert_array_equal(arg_max_at(same, (48, 80)), expected)
        np.testing.assert_array_equal(
            class_by_class(same, (48, 80)), class_by_class(logits, (48, 80))
        )


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_first_of_equals(factor: int) -> None:
    plane = random_logits((1, 6, 10))
    logits = np.concatenate([plane - 1, plane, plane, plane - 2, plane])
    assert (arg_max_at(logits, (6 * factor, 10 * factor)) == 1).all()


def test_what_is_no_number_is_never_the_largest() -> None:
    """And spoils no more than what is interpolated from it."""
    logits = random_logits((5, 12, 14))
    whole = arg_max_at(logits, (48, 56))
    logits[2, 5, 6] = np.nan
    logits[:, 9, 9] = np.nan
    ids = arg_max_at(logits, (48, 56))
    near, nowhere = (slice(18, 26), slice(22, 30)), (slice(34, 42), slice(34, 42))
    assert (ids[near] != 2).all()
    assert (ids[nowhere] == 0).all()
    ids[near], ids[nowhere] = whole[near], whole[nowhere]
    np.testing.assert_array_equal(ids, whole)


def test_takes_the_kernel_for_whole_factors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits((3, 6, 9))
    taken = []

    def marked(logits: np.ndarray, factor: int, helper: Helper | None) -> np.ndarray:
        taken.append(factor)
        return np.zeros((1, 1), np.uint8)

    monkeypatch.setattr(postprocess, "compiled_upsampling", lambda: marked)
    for size in [(24, 36), (12, 18), (6, 9), (32, 48), (24, 27), (3, 9), (24, 37)]:
        arg_max_at(logits, size)
    assert taken == [4, 2]


@pytest.mark.parametrize("shape", [(11, 90, 120), (11, 1, 9000), (3, 2, 4500)])
def test_a_helper_does_half_of_a_large_mask(shape: tuple[int, int, int]) -> None:
    logits = random_logits(shape)
    size = (8 * shape[1], 8 * shape[2])
    asked = []

    def helper(work: Callable[[], Result], /) -> Callable[[], Result]:
        asked.append(work)
        return work

    np.testing.assert_array_equal(arg_max_at(logits, size, helper), arg_max_at(logits, size))
    assert len(asked) == 1
    small = logits[:, : shape[1] // 2 + 1, : shape[2] // 2]  # not worth it
    arg_max_at(small, (8 * small.shape[1], 8 * small.shape[2]), helper)
    assert len(asked) == 1


def test_several_threads_at_once() -> None:
    """As those of several cameras may be."""
    cases = [random_logits((11, 30, 40 + n)) for n in range(4)]

    def run(logits: np.ndarray) -> np.ndarray:
        return arg_max_at(logits, (120, 4 * logits.shape[2]))

    alone = [run(logits) for logits in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, cases * 8))
    assert all(map(np.array_equal, together, alone * 8))


def test_compiles_before_the_first_frame(tiny: Segmenter) -> None:
    compiled_upsampling.cache_clear()
    runners(tiny)
    assert compiled_upsampling.cache_info().currsize == 1


def test_without_numba() -> None:
    """As if it were not installed: nothing is said, and OpenCV answers."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from lowlat_seg_ros.engine import postprocess\n"
        "assert postprocess.compiled_upsampling() is None\n"
        "logits = np.eye(2, dtype=np.float32).reshape(2, 1, 2)\n"
        "print(postprocess.arg_max_at(logits, (2, 4)).tolist())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[[0, 0, 1, 1], [0, 0, 1, 1]]"
    assert not ran.stderr


def test_what_does_not_compile_is_reported_and_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postprocess, "_upsample", lambda cells: None)  # too few arguments
    compiled_upsampling.cache_clear()
    logits = random_logits((3, 4, 5))
    try:
        for _ in range(2):
            ids = arg_max_at(logits, (16, 20))
            np.testing.assert_array_equal(ids, class_by_class(logits, (16, 20)))
    finally:
        compiled_upsampling.cache_clear()
    (record,) = caplog.records
    assert "masks will take longer" in record.getMessage()
