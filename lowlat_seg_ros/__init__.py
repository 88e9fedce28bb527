"""Low-latency video semantic segmentation for ROS 2.

Implements Li, Shi, Lin, "Low-Latency Video Semantic Segmentation", CVPR 2018.
The core (everything but :mod:`lowlat_seg_ros.ros`) needs no ROS installation.
"""

import os
import pkgutil

# How long PyTorch's OpenMP threads wait for each other spinning. Long enough for the gaps within a
# frame: a thread that falls asleep in one wakes late where the core has slept since the last frame.
# Short enough to leave the core to who delivers the mask, above whom frames may have priority.
# The engine sees to it that no team waits for a core (docs/latency.md has figures). OpenMP reads it
# when PyTorch is loaded, so it is set here.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# The generated messages (lowlat_seg_ros.msg) are installed beside the package by colcon; this
# lets a source checkout and an installed copy be seen as one package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
