"""Functions that numba compiles on request, not when they are first called."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

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
    function: Callable[..., None],
    signature: str,
    consequence: str,
    *,
    fastmath: bool | set[str] = False,
) -> Callable[..., None] | None:
    """``function`` compiled for numba's ``signature``, which runs without the GIL.

    None without numba, and where compiling fails, which is logged; ``consequence`` completes the
    message: what a user will notice. ``fastmath``: True lets sums be taken in any order, so in
    vectors, and forbids NaN and infinity; ``{"contract"}`` only fuses multiplications and
    additions. The result is kept in ``__pycache__`` or numba's cache folder, where one can be
    written.
    """
    if absence():
        return None
    try:
        import numba

        try:
            result: Callable[..., None] = numba.njit(
                signature, nogil=True, cache=True, fastmath=fastmath
            )(function)
        except (RuntimeError, OSError):  # no folder that can be written, or a full disk
            result = numba.njit(signature, nogil=True, fastmath=fastmath)(function)
    except Exception as error:
        # For example a numba that does not support this version of NumPy or Python.
        logger.warning("No numba kernel, %s: %s", consequence, error)
        return None
    return result
