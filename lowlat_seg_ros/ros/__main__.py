"""``python -m lowlat_seg_ros.ros``: the process of the node."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time


def main() -> int:
    """Import and run the node; 0 when SIGINT or SIGTERM ends it, at any moment."""
    # Importing PyTorch and rclpy takes seconds, in which an exception would end in a traceback, and
    # there is nothing to tidy up.
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda *_: os._exit(0))
    # What is imported stays: looking for garbage in it is in vain, and takes a sixth of the time.
    began = time.monotonic()
    gc.disable()  # until the node has started
    from lowlat_seg_ros.ros import node

    gc.freeze()
    for number, handler in before.items():
        signal.signal(number, handler)
    return node.main(began=began)


if __name__ == "__main__":
    sys.exit(main())
