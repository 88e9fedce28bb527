"""What the engine asks of a slow track, and one job of it (rules 3, 5, 6)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from lowlat_seg_ros.engine.cache import KeyFrame
from lowlat_seg_ros.engine.ledger import Job, Ledger
from lowlat_seg_ros.engine.refine import Cancelled, Pause
from lowlat_seg_ros.frames import Outcome

logger = logging.getLogger(__name__)

#: Runs the job of one key frame and says where it ended, as :class:`refine.Refiner` does.
Refine = Callable[[KeyFrame, Pause], Outcome]


@dataclass(frozen=True)
class SlowTrackState:
    """What the slow track is doing, for diagnostics.

    ``running_ms`` is the age of the job that runs now, 0 when idle; where cameras share the slow
    track it may be another one's. ``last_ms`` is the time of the newest job that ran to its end,
    ``last_error`` the message of the newest job if it failed.
    """

    running: bool = False
    waiting: bool = False  # a key frame is queued behind the running job
    running_ms: float = 0.0
    last_ms: float = 0.0
    last_error: str = ""
    alive: bool = True


class SlowTrack(Protocol):
    """What the engine asks of a slow track; :mod:`virtual` has the deterministic one."""

    def frame(self, index: int, stamp_ns: int) -> AbstractContextManager[None]:
        """Entered while a frame is in the foreground."""

    def admits(self) -> bool:
        """Whether a frame that the selector chose may become the key frame now: not while another
        camera's turn comes first."""

    def offers(self) -> bool:
        """Whether nothing runs or waits and it is this camera's turn to fill the time.

        Asked by each frame that would; cameras take turns in the order in which they asked.
        """

    def submit(self, key: KeyFrame) -> None:
        """Hand over a key frame; it replaces one that still waits, which is counted."""

    def cancel(self) -> None:
        """Drop what waits: a reset made it stale."""

    def starved(self) -> bool:
        """Whether what runs gets less than its share, so that the foreground must leave cores."""

    def set_min_share(self, share: float) -> None:
        """Change ``EngineConfig.slow_track_min_share``."""

    def state(self) -> SlowTrackState:
        """A snapshot for diagnostics."""

    def close(self, timeout_s: float) -> bool:
        """Stop; False if a running job did not let itself be stopped in time."""


def run_job(refine: Refine, job: Job, pause: Pause, ledger: Ledger) -> str:
    """Run one job and book its end; returns the error's message, empty if it did not fail."""
    job, message = ledger.begin(job), ""
    try:
        outcome = refine(job.key, pause)
    except Cancelled:
        outcome = Outcome.STALE
    except Exception as error:
        # Rule 6: whatever Sh raises, masks go on with the provisional features.
        outcome = Outcome.FAILED
        message = f"Sh failed on frame {job.key.index}: {type(error).__name__}: {error}"
        logger.warning("%s", message)
        ledger.failure(message)
    ledger.settle(job, outcome, message)
    return message
