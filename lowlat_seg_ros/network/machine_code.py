"""Functions that numba compiles when they are asked for, not when they are first called."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled(function: Callable[..., None], signature: str) -> Callable[..., None]:
    """``function`` for arguments of ``signature``, numba's; it runs without the GIL.

    The machine code is kept in ``__pycache__`` or, where that cannot be written, where numba keeps
    what is the user's. Raises what numba raises.
    """
    try:
        result: Callable[..., None] = numba.njit(signature, nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no folder that can be written, or a full disk
        result = numba.njit(signature, nogil=True)(function)
    return result
