"""Functions that numba compiles on request, not when they are first called."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function")

logger = logging.getLogger(__name__)


def absence() -> str:
    """What the absence of numba costs on a CPU, and how to end it; empty where it is installed."""
    if importlib.util.find_spec("numba") is not None:
        return ""
    return (
        "numba is not installed, so propagation takes six to ten times as long and the last step "
        "to a mask three times: pip install numba (the package's extra 'fast')"
    )


def compiled(
    function: Callable[..., None], signature: str, *, fastmath: bool | set[str] = False
) -> Callable[..., None]:
    """``function`` compiled for numba's ``signature``; it runs without the GIL.

    ``fastmath``: True lets sums be taken in any order, so in vectors, and forbids NaN and infinity;
    ``{"contract"}`` only fuses multiplications and additions.

    The machine code is cached in ``__pycache__`` or, where that cannot be written, in the user's
    cache folder of numba. Raises what numba raises.
    """
    import numba

    try:
        result: Callable[..., None] = numba.njit(
            signature, nogil=True, cache=True, fastmath=fastmath
        )(function)
    except (RuntimeError, OSError):  # no folder that can be written, or a full disk
        result = numba.njit(signature, nogil=True, fastmath=fastmath)(function)
    return result


def if_possible(make: Callable[[], Function], consequence: str) -> Function | None:
    """What ``make`` compiles; None without numba, and where compiling fails, which is logged.

    ``consequence`` completes the log message: what a user will notice.
    """
    if absence():
        return None
    try:
        return make()
    except Exception as error:
        # For example a numba that does not support this version of NumPy or Python.
        logger.warning("No numba kernel, %s: %s", consequence, error)
        return None
