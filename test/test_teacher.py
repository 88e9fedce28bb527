"""Learning from a network of the user's own: an exported program and what its classes are here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.lab.data.augment import Augment
from lowlat_seg_ros.lab.training.losses import Teacher, taught_loss
from lowlat_seg_ros.lab.training.sources import Mixture
from lowlat_seg_ros.lab.training.stills import BaseStage
from lowlat_seg_ros.labels import CAMVID
from lowlat_seg_ros.network.segmenter import Segmenter


class Colours(nn.Module):
    """A class for each colour channel: the brightest one's."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 50 * nn.functional.avg_pool2d(image, 4)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:class:`Colours`, exported for batches and images of any size."""
    path, dim = tmp_path_factory.mktemp("teacher") / "teacher.pt2", torch.export.Dim
    sizes = {0: dim("batch"), 2: 4 * dim("rows"), 3: 4 * dim("columns")}
    example = (torch.rand(2, 3, 16, 24),)
    torch.export.save(torch.export.export(Colours(), example, dynamic_shapes=(sizes,)), path)
    return path


def load(program: Path, tmp_path: Path, classes: str) -> Teacher:
    path = tmp_path / "classes.yaml"
    path.write_text(classes)
    return Teacher(program, path, CAMVID, torch.device("cpu"))


def test_classes_are_translated_and_those_without_a_counterpart_left_out(
    program: Path, tmp_path: Path
) -> None:
    teacher = load(program, tmp_path, "[road, Sky, null]")
    image = torch.zeros(3, 3, 8, 12)
    image[0, 0], image[1, 1] = 1.0, 1.0
    image[2, 2], image[2, 1] = 1.0, 0.5  # mostly what we have no class for
    answer = teacher.logits(image)
    assert answer.shape == (3, 11, 2, 3)
    found = answer.argmax(dim=1)[:, 0, 0].tolist()
    assert [CAMVID.names[number] for number in found] == ["Road", "Sky", "Sky"]
    assert answer.isfinite().all()


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("[Road, Cow, null]", "names 'Cow'"),
        ("Road: 1", "must be a list"),
        ("[null, null, null]", "must be a list"),
        ("[Road, Sky]", "names 2 classes"),
    ],
)
def test_a_wrong_list_is_refused(program: Path, tmp_path: Path, classes: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(program, tmp_path, classes).logits(torch.rand(1, 3, 8, 8))


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Path(__file__), tmp_path, "[Road, Sky, Car]")


def test_a_step_towards_the_teacher(tiny_ddr: Segmenter, program: Path, tmp_path: Path) -> None:
    """What is learned from it is one more part of the loss, and reaches what is trained."""
    images = torch.randint(0, 256, (4, 3, 48, 64), dtype=torch.uint8)
    stills = TensorDataset(images, torch.full((4, 48, 64), 3, dtype=torch.uint8))
    losses = []
    for teacher in (None, load(program, tmp_path, "[Road, Sky, Car]")):
        stage = BaseStage(tiny_ddr, Mixture((stills,), (1.0,)), stills, Augment((32, 32)), teacher)
        losses.append(stage.loss(2, torch.Generator().manual_seed(5)))
    (without, _), (with_it, parts) = losses
    assert parts["teacher"] > 0
    assert with_it.item() == pytest.approx(without.item() + parts["teacher"], rel=1e-5)
    with_it.backward()
    assert tiny_ddr.low_classifier.weight.grad is not None


def test_the_divergence_is_none_from_oneself() -> None:
    logits = torch.randn(2, 11, 6, 8)
    assert taught_loss(logits, logits).item() == pytest.approx(0.0, abs=1e-6)
    assert taught_loss(logits, -logits).item() > 1
