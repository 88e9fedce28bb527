"""Which weights these are: their SHA-256 against the one that is known."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lowlat_seg_ros.network.checkpoint import CheckpointError

#: A file with this ending beside a checkpoint holds its SHA-256, as ``sha256sum`` writes it.
SUFFIX = ".sha256"


def sha256(path: str | Path) -> str:
    """SHA-256 of the file at ``path``, 64 lower-case hex digits; ``CheckpointError`` if unreadable.

    Read whole: checkpoints are small beside the memory that their network takes.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} is not a readable file ({error}); check the path") from error


def known_sha256(path: str | Path) -> str:
    """What the file beside the checkpoint at ``path`` says, empty if there is none."""
    beside = Path(f"{path}{SUFFIX}")
    words = beside.read_text().split() if beside.is_file() else []
    return words[0].lower() if words else ""


def verify(path: str | Path, expected: str = "") -> str:
    """The SHA-256 of the checkpoint at ``path``, which must be ``expected`` or the known one.

    Raises ``CheckpointError`` naming both if it is another. Where neither is given, every file
    passes.
    """
    found, wanted = sha256(path), expected.strip().lower() or known_sha256(path)
    if wanted and found != wanted:
        source = "checkpoint_sha256" if expected.strip() else f"{path}{SUFFIX}"
        raise CheckpointError(
            f"{path} has SHA-256 {found}, but {source} says {wanted}; copy the file again, or "
            f"correct {source} if these are the weights that you want"
        )
    return found
