"""``lowlat-seg segment``, and the library as README shows it, on rendered pictures and videos."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import lowlat_seg_ros
from lowlat_seg_ros import Engine, Frame
from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.lab.data.synthetic import RenderedDrive
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.tools import cli, pictures
from lowlat_seg_ros.tools.pictures import VideoWriter

ROOT, FRAMES, SIZE = Path(lowlat_seg_ros.__file__).parents[1], 5, (48, 80)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    drive = RenderedDrive(seed=1, frames=FRAMES, rate_hz=10, size=SIZE)
    return [drive[index].image for index in range(FRAMES)]


@pytest.fixture
def folder(images: list[np.ndarray], tmp_path: Path) -> Path:
    """Pictures whose order is that of their numbers: 8, 9, 10, 11, 12."""
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(images):
        write(tmp_path / "pictures" / f"{8 + index}.png", image)
    return tmp_path / "pictures"


@pytest.fixture
def video(images: list[np.ndarray], tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "drive.mp4", SIZE, 10.0) as writer:
        for image in images:
            writer.write(image)
    return tmp_path / "drive.mp4"


@pytest.fixture
def segment(weights: Path, tmp_path: Path) -> Callable[..., dict]:
    """Runs the command and returns its summary; the height is that of the pictures."""

    def run(path: Path, *words: object) -> dict:
        common = ["--checkpoint", weights, "--device", "cpu", "--inference-height", 48]
        given = ["segment", path, "--out", tmp_path / "out", *common, *words]
        assert cli.main([str(word) for word in given]) == 0
        return json.loads((tmp_path / "out" / "summary.json").read_text())

    return run


def write(path: Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def masks(tmp_path: Path) -> dict[str, np.ndarray]:
    files = sorted((tmp_path / "out" / "masks").iterdir())
    return {file.stem: cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files}


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_picture_gets_the_mask_of_the_engine(
    segment: Callable[..., dict], folder: Path, images: list, weights: Path, tmp_path: Path
):
    summary = segment(folder / "8.png")
    with Engine.from_checkpoint(weights, EngineConfig(), "cpu") as engine:
        mask = engine.process(Frame(images[0], 0)).mask
    np.testing.assert_array_equal(masks(tmp_path)["8"], mask)
    assert cv2.imread(str(tmp_path / "out" / "overlays" / "8.jpg")).shape == (*SIZE, 3)
    assert (summary["frames"], summary["kinds"]) == (1, {"full": 1})
    shares = {item["name"]: item["share"] for item in summary["classes"]}
    expected = {name: (mask == index).mean() for index, name in enumerate(CAMVID.names)}
    assert shares == pytest.approx(expected, abs=1e-6)
    assert not (tmp_path / "out" / "overlay.mp4").exists()


def test_a_video_is_segmented_in_order_with_an_overlay_video(
    segment: Callable[..., dict], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = segment(video)
    assert summary["kinds"] == {"full": 1, "propagated": FRAMES - 1}
    assert list(masks(tmp_path)) == [f"frame_{index:06d}" for index in range(FRAMES)]
    overlays = decoded(tmp_path / "out" / "overlay.mp4")
    assert [picture.shape for picture in overlays] == [(*SIZE, 3)] * FRAMES
    printed = capsys.readouterr().out
    assert f"Frames: {FRAMES} (full 1, propagated {FRAMES - 1})" in printed
    assert "Road" in printed


def test_a_folder_is_a_sequence_in_the_order_of_its_numbers(
    segment: Callable[..., dict], folder: Path, images: list, tmp_path: Path
):
    assert segment(folder)["kinds"] == {"full": 1, "propagated": FRAMES - 1}
    # With nothing of the classes' colours, the overlay video is the input.
    segment(folder, "--alpha", 0)
    for shown, image in zip(decoded(tmp_path / "out" / "overlay.mp4"), images, strict=True):
        others = [np.abs(shown.astype(int) - other).mean() for other in images]
        assert np.abs(shown.astype(int) - image).mean() == min(others)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == FRAMES


def test_stills_are_each_a_first_frame(segment: Callable[..., dict], folder: Path, tmp_path: Path):
    assert segment(folder, "--stills")["kinds"] == {"full": FRAMES}
    alone = masks(tmp_path)
    segment(folder / "10.png")
    np.testing.assert_array_equal(masks(tmp_path)["10"], alone["10"])
    assert not (tmp_path / "out" / "overlay.mp4").exists()


def test_pictures_of_different_sizes_are_stills(
    segment: Callable[..., dict], folder: Path, images: list, tmp_path: Path
):
    write(folder / "13.png", images[0][:, :40])
    assert segment(folder)["kinds"] == {"full": FRAMES + 1}
    assert masks(tmp_path)["13"].shape == (48, 40)


def test_fewer_frames_and_masks_alone(segment: Callable[..., dict], video: Path, tmp_path: Path):
    segment(video, "--every", 2, "--max-frames", 2, "--mask-only")
    assert list(masks(tmp_path)) == ["frame_000000", "frame_000002"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["masks", "summary.json"]


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_video_is_turned_upright(degrees: int, images: list, tmp_path: Path):
    path, lying = tmp_path / "phone.mp4", np.rot90(images[0], -degrees // 90)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *lying.shape[:2], "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this version of av writes no rotation")
        stream.set_display_rotation(degrees)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(lying), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pictures.Video(path) as video:
        ((shown, stamp_ns),) = video.frames()
        assert (shown.shape, stamp_ns) == ((*SIZE, 3), 0)
        assert np.abs(shown.astype(int) - images[0]).mean() < 15
    with pictures.Video(path) as video:
        ((small, _),) = video.frames(size=(24, 40))
        assert small.shape == (24, 40, 3)


def test_a_camera_is_read_until_it_ends(monkeypatch: pytest.MonkeyPatch, images: list):
    class Camera:
        def __init__(self, path: str) -> None:
            self.path, self.left, self.released = path, list(images), False

        def isOpened(self) -> bool:
            return True

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, self.left.pop(0)[..., ::-1]) if self.left else (False, None)

        def get(self, what: int) -> float:
            return 25.0

        def release(self) -> None:
            opened.append(self.path)

    opened: list[str] = []
    monkeypatch.setattr(pictures.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Path, "exists", lambda path: str(path).startswith("/dev/"))
    with ExitStack() as stack:
        source = pictures.open_source(Path("3"), None, False, stack)
        assert (source.rate_hz, source.endless) == (25.0, True)
        for picture, image in zip(source.pictures, images, strict=True):
            np.testing.assert_array_equal(picture.image, image)
    assert opened == ["/dev/video3"]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("none.png", [], "there is no"),
        ("empty", [], "has no pictures"),
        ("text.png", [], "cannot be read as a picture"),
        ("text.mp4", [], "cannot be read as a video"),
        ("texts", [], "no picture that can be read"),
        ("drives", [], "one by one, such as drives/monday"),
        ("phone.HEIC", [], "convert it to JPEG"),
        ("rtsp://camera/stream", [], "record it first, as with 'ffmpeg"),
        ("/dev/video99", [], "camera /dev/video99 cannot be opened"),
        ("9.png", ["--out", "text.png/out"], "cannot be written"),
    ],
)
def test_what_is_wrong_ends_in_one_line(
    name: str, words: list[str], message: str, folder: Path, weights: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    monkeypatch.chdir(folder)
    for path in ("empty", "texts", "drives/monday"):
        Path(path).mkdir(parents=True)
    for path in ("text.png", "text.mp4", "texts/text.png", "phone.HEIC"):
        Path(path).write_text("neither picture nor video")
    common = ["--out", "out", "--checkpoint", str(weights), "--device", "cpu"]
    assert cli.main(["segment", name, *common, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_a_folder_s_unreadable_pictures_are_named(
    segment: Callable[..., dict], folder: Path, capsys: pytest.CaptureFixture[str]
):
    """A phone's photos beside its JPEGs, too; but not what macOS hides."""
    for name in ("9.png", "IMG_1.HEIC", "._8.png"):
        (folder / name).write_text("no picture")
    assert segment(folder)["frames"] == FRAMES - 1
    assert "cannot be read as pictures: IMG_1.HEIC, 9.png\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("provenance", "size", "expected"),
    [
        ({"stages": [{"options": {"size": [96, 128]}}]}, (48, 80), 96),
        ({"stages": [{"options": {"size": [96, 128]}}]}, (80, 40), 192),
        ({"stages": [{"options": {}}]}, (48, 80), 360),
        ({}, (48, 80), 360),
    ],
)
def test_the_network_runs_at_the_size_it_was_trained_at(
    provenance: dict, size: tuple[int, int], expected: int, tiny, images: list, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    import torch

    from lowlat_seg_ros.config import NETWORKS
    from lowlat_seg_ros.network import checkpoint

    header = checkpoint.Header(NETWORKS["tiny"], CAMVID.names, CAMVID.colours, 0.3, provenance)
    checkpoint.save(tmp_path / "x.safetensors", tiny, header, torch.float32)
    write(tmp_path / "x.png", cv2.resize(images[0], size[::-1]))
    words = ["--checkpoint", tmp_path / "x.safetensors", "--device", "cpu", "--out", tmp_path]
    assert cli.main(["segment", str(tmp_path / "x.png"), *map(str, words)]) == 0
    assert f"runs at a height of {expected} px" in capsys.readouterr().out


def test_readme_s_example_runs_as_written(
    folder: Path, video: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (code,) = (block for block in blocks if "from lowlat_seg_ros import Engine" in block)
    (folder / "8.png").rename(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert cv2.imread("mask.png", cv2.IMREAD_UNCHANGED).shape == SIZE
    kinds = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["full", *["propagated"] * (FRAMES - 1)]


def test_the_library_loads_what_is_slow_when_it_is_used():
    code = (
        "import sys, lowlat_seg_ros\n"
        "assert 'torch' not in sys.modules\n"
        "from lowlat_seg_ros import *\n"
        "print(Engine.__module__, Frame.__module__, Segmentation.__module__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["lowlat_seg_ros.engine.engine", *["lowlat_seg_ros.frames"] * 2]
    with pytest.raises(ImportError, match="Motor"):
        from lowlat_seg_ros import Motor  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = lowlat_seg_ros.Motor
