"""Low-latency video semantic segmentation for ROS 2.

Implements Li, Shi, Lin, "Low-Latency Video Semantic Segmentation", CVPR 2018.
The core (everything but :mod:`lowlat_seg_ros.ros`) needs no ROS installation.
"""

import os
import pkgutil

# PyTorch's OpenMP threads wait for each other spinning, by default for 3 ms: a thread that lost its
# core to another process cannot even have that of one which waits for it. Long enough for the next
# layer, and short enough to let go. OpenMP reads it when PyTorch is loaded, so it is set here.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# The generated messages (lowlat_seg_ros.msg) are installed beside the package by colcon; this
# lets a source checkout and an installed copy be seen as one package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
