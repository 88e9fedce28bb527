"""A network of the user's own that ours learn from besides the labels."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from lowlat_seg_ros.config import ConfigError
from lowlat_seg_ros.labels import ClassTable

#: Least probability of a class, so that its logarithm is finite.
LEAST = 1e-4


class Teacher:
    """``program`` from RGB in [0, 1] (N, 3, H, W) to logits (N, its classes, h, w).

    ``columns``: for each of its classes the id of ours, or None for one that ours do not have,
    which is left out of its probabilities.
    """

    def __init__(
        self, program: nn.Module, columns: list[int | None], num_classes: int, device: torch.device
    ) -> None:
        self._program = program
        self._table = torch.zeros(len(columns), num_classes, device=device)
        for theirs, ours in enumerate(columns):
            if ours is not None:
                self._table[theirs, ours] = 1.0

    @classmethod
    def load(cls, path: Path, classes: Path, table: ClassTable, device: torch.device) -> Teacher:
        """An exported program (``torch.export.save``) and the YAML list that names its classes.

        Raises ``ConfigError`` naming the file, the rule and the fix.
        """
        try:
            names = yaml.safe_load(classes.read_text())
            program = torch.export.load(path).module().to(device)
        except Exception as error:
            # torch.export raises whatever is inside of it.
            raise ConfigError(
                f"--teacher {path} with --teacher-classes {classes} cannot be read ({error}); give "
                "a file of torch.export.save and a YAML list"
            ) from error
        known = {name.lower(): number for number, name in enumerate(table.names)}
        if not isinstance(names, list) or not any(names):
            raise ConfigError(
                f"--teacher-classes {classes} must be a list with a name or null for each class"
            )
        unknown = [name for name in names if name is not None and str(name).lower() not in known]
        if unknown:
            raise ConfigError(
                f"--teacher-classes {classes} names {unknown[0]!r}; known: {', '.join(table.names)}"
            )
        columns = [None if name is None else known[str(name).lower()] for name in names]
        return cls(program, columns, len(table.names), device)

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """What it says of RGB images in [0, 1] (N, 3, H, W): log probabilities of our classes.

        (N, classes, h, w) float32. Raises ``ConfigError`` if it has other classes than were named.
        """
        answer = self._program(image).float()
        if answer.ndim != 4 or answer.shape[1] != len(self._table):
            raise ConfigError(
                f"the teacher answers {tuple(answer.shape)} and --teacher-classes names "
                f"{len(self._table)} classes; it must answer (N, classes, h, w)"
            )
        ours = torch.einsum("nchw,cd->ndhw", answer.softmax(dim=1), self._table)
        ours = ours / ours.sum(dim=1, keepdim=True).clamp(min=LEAST)
        return ours.clamp(min=LEAST).log()
