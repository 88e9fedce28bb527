"""Say clearly what this machine lacks for a build, before a long set-up fails without saying so.

Usage: ``python3 scripts/check_machine.py`` with the Python that is to be used. Needs nothing
installed, and runs on Pythons too old for the rest.
"""

import os
import shutil
import sys
import sysconfig


def lacking():
    """What is missing, one line each with the way to repair it."""
    if sys.version_info < (3, 10):  # noqa: UP036 - that is what is asked here
        yield f"Python >= 3.10, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        yield "Python's venv: sudo apt install python3-venv"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        yield "Python's headers for the messages: sudo apt install python3-dev"
    for variable, compiler in (("CC", "cc"), ("CXX", "c++")):
        if not shutil.which(os.environ.get(variable, compiler).split()[0]):
            yield f"a compiler ({compiler}) for the messages: sudo apt install build-essential"


if __name__ == "__main__":
    sys.exit("".join(f"This machine lacks {line}\n" for line in lacking()) or 0)
