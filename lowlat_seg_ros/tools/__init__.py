"""What people run around the node: the demo, and bags."""
