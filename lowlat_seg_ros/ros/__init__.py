"""The ROS 2 node; the only part of the product that imports rclpy."""
