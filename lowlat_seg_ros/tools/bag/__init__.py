"""Bags and offline replay: rosbag2 files made, run through the node's engine, and reported on.

Needs the library rosbags, which reads and writes bags without ROS, and nothing of ROS itself.
"""
