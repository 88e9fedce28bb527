"""Repair the CMake files of PyPI's ROS wheels, so that messages can be built against them.

Some of those files name the Python headers and the numpy headers of the machine that built the
wheels (``/opt/python/cp311-cp311/...``). They are replaced with those of the running Python.
Usage: ``python scripts/repair_ros_wheels.py``, in the virtual environment to repair; doing so twice
does no harm.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILDER = r"/opt/python/cp\d+-cp\d+[a-z]?"
NUMPY_HEADERS = re.compile(BUILDER + r"/lib/python[\d.]+[a-z]?/site-packages/numpy/_?core/include")
PYTHON_HEADERS = re.compile(BUILDER + r"/include/python[\d.]+[a-z]?")


def repair(text: str) -> str:
    """``text`` of a CMake file with the builder's include folders replaced by this Python's."""
    text = NUMPY_HEADERS.sub(lambda _: numpy.get_include(), text)
    return PYTHON_HEADERS.sub(lambda _: sysconfig.get_paths()["include"], text)


def main() -> None:
    """Repair every CMake file of this environment and say how many there were.

    Raises SystemExit when a builder's path is left: the wheels have changed, and a build would
    fail later with a less clear message.
    """
    files = sorted((Path(sys.prefix) / "share").rglob("*.cmake"))
    repaired = 0
    for path in files:
        text = path.read_text()
        new = repair(text)
        if re.search(BUILDER, new):
            sys.exit(f"{path} still names the wheel builder's Python; adapt {__file__} to it")
        if new != text:
            path.write_text(new)
            repaired += 1
    print(f"{repaired} of {len(files)} CMake files repaired")


if __name__ == "__main__":
    main()
