"""Low-latency video semantic segmentation for ROS 2.

Implements Li, Shi, Lin, "Low-Latency Video Semantic Segmentation", CVPR 2018.
The core (everything but :mod:`lowlat_seg_ros.ros`) needs no ROS installation.
"""

import pkgutil

# The generated messages (lowlat_seg_ros.msg) are installed beside the package by colcon; this
# lets a source checkout and an installed copy be seen as one package.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
