"""A slow track that can be told never to come to rest."""

from __future__ import annotations

import threading

from lowlat_seg_ros.config import EngineConfig
from lowlat_seg_ros.engine.counters import LiveCounters
from lowlat_seg_ros.engine.key_frame import KeyFrame, Pause
from lowlat_seg_ros.engine.slow_track import Refine, ThreadedSlowTrack
from lowlat_seg_ros.frames import Outcome


class EndlessSlowTrack(ThreadedSlowTrack):
    """The engine's own thread, which does a job again while ``endless`` is set and none waits.

    So it is busy however fast Sh is and however seldom the camera brings a key frame. Counted and
    gated as any job.
    """

    def __init__(
        self, endless: threading.Event, refine: Refine, counters: LiveCounters, config: EngineConfig
    ) -> None:
        def again(key: KeyFrame, pause: Pause) -> Outcome:
            outcome = refine(key, pause)
            # A key frame that comes at this very instant is superseded: the load is the same.
            if endless.is_set() and not self.state().waiting:
                self.submit(key)
            return outcome

        super().__init__(again, counters, config)
