"""Bags and the node's offline twin: rosbag2 files made, run through the engine, and reported on.

Needs the library rosbags, which reads and writes bags without ROS, and nothing of ROS itself.
"""
