"""Image messages as RGB arrays, whatever library made the messages: rclpy's or one for bags."""
