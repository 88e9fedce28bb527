"""Low-latency video semantic segmentation for ROS 2.

Implements Li, Shi, Lin, "Low-Latency Video Semantic Segmentation", CVPR 2018. The library is three
names, which need no ROS installation: ``from lowlat_seg_ros import Engine, Frame, Segmentation``.
"""

from __future__ import annotations

import os
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowlat_seg_ros.engine.engine import Engine
    from lowlat_seg_ros.frames import Frame, Segmentation

__all__ = ["Engine", "Frame", "Segmentation"]

__version__ = "0.1.0"

# How long PyTorch's OpenMP threads wait for each other spinning. Long enough for the gaps within a
# frame: a thread that falls asleep in one wakes late where the core has slept since the last frame.
# Short enough to leave the core to who delivers the mask, above whom frames may have priority.
# The engine sees to it that no thread pool waits for a core (docs/latency.md has figures). OpenMP
# reads it when PyTorch is loaded, so it is set here.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# The generated messages (lowlat_seg_ros.msg) are installed beside the package by colcon; this
# lets a source checkout and an installed copy be seen as one package.
__path__ = pkgutil.extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    """Import one of the three names when it is first used: PyTorch takes seconds to load."""
    if name == "Engine":
        from lowlat_seg_ros.engine.engine import Engine

        return Engine
    if name in __all__:
        from lowlat_seg_ros import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
