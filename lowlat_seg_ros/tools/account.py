"""What became of the images that were played to the node, or to its offline replay."""

from __future__ import annotations

from dataclasses import dataclass

from lowlat_seg_ros.frames import Ledger, Segmentation


@dataclass(frozen=True, eq=False)
class Answer:
    """The result for frame ``index`` of a clip."""

    index: int
    segmentation: Segmentation
    published_ms: float  # from the frame's stamp until its mask was published
    received_ms: float  # and until it was in the consumer's hands


@dataclass(frozen=True)
class Account:
    """What became of every frame of a clip: ``played`` is the sum of all the others."""

    played: int
    masks: int  # in the consumer's hands
    superseded: int  # overwritten by a newer one while the node was busy
    rejected: int  # impossible
    failed: int  # raised

    @classmethod
    def of(cls, played: int, masks: int, ledger: Ledger) -> Account:
        """``masks`` that came for ``played`` images, and the losses of the node's ``ledger``."""
        return cls(played, masks, ledger.superseded, ledger.rejected, ledger.failed)

    @property
    def unaccounted(self) -> int:
        """Frames that nobody accounts for; 0 unless something was lost (or counted twice: < 0)."""
        return self.played - self.masks - self.superseded - self.rejected - self.failed

    def __str__(self) -> str:
        return (
            f"{self.played} images = {self.masks} masks + {self.superseded} superseded + "
            f"{self.rejected} rejected + {self.failed} failed + {self.unaccounted} unaccounted"
        )
