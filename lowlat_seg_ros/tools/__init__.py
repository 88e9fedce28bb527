"""What people run around the node: the demo, one's own pictures and videos, and bags."""
