"""Functions that numba compiles when they are asked for, not when they are first called."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function")

logger = logging.getLogger(__name__)


def compiled(
    function: Callable[..., None], signature: str, *, fastmath: bool | set[str] = False
) -> Callable[..., None]:
    """``function`` for arguments of ``signature``, numba's; it runs without the GIL.

    ``fastmath``: sums may be taken in any order, so in vectors; no argument is NaN or infinite. A
    set names LLVM's liberties one by one, such as "contract" for fused multiply-adds.

    The machine code is kept in ``__pycache__`` or, where that cannot be written, where numba keeps
    what is the user's. Raises what numba raises.
    """
    import numba

    try:
        result: Callable[..., None] = numba.njit(
            signature, nogil=True, cache=True, fastmath=fastmath
        )(function)
    except (RuntimeError, OSError):  # no folder that can be written, or a full disk
        result = numba.njit(signature, nogil=True, fastmath=fastmath)(function)
    return result


def if_possible(make: Callable[[], Function], without: str) -> Function | None:
    """What ``make`` compiles; None without numba, and where that cannot, which is logged.

    ``without`` says what follows.
    """
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return make()
    except Exception as error:
        # Such as a numba that knows neither this NumPy nor this Python.
        logger.warning("No numba kernel, %s: %s", without, error)
        return None
