"""Who may ask for Sh next, of cameras whose frames want to become key frames together."""

from __future__ import annotations

from collections.abc import Hashable

#: A camera that has not asked again for so long is not waited for: its stream has stopped, or its
#: frames no longer deviate.
PATIENCE_S = 1.0


class Turns:
    """Staggers key frames: one camera asks at a time, in the order in which they began to wish.

    A camera that turns, or a common interval, makes the frames of all cameras deviate at once.
    Were all of them handed to the slow track, the last would be old when Sh came to it; a camera
    that is put off hands over a newer frame when its turn has come.
    """

    def __init__(self) -> None:
        self._wishes: dict[Hashable, float] = {}  # the oldest first: when it was last uttered

    def take(self, camera: Hashable, *, free: bool, now_s: float) -> bool:
        """Whether ``camera`` may ask now; if not it is remembered.

        ``free``: no other camera waits in the slow track. ``now_s`` is monotonic.
        """
        recent = now_s - PATIENCE_S
        self._wishes = {who: at for who, at in self._wishes.items() if at >= recent}
        first = next(iter(self._wishes), camera)
        if free and first == camera:
            self._wishes.pop(camera, None)
            return True
        self._wishes[camera] = now_s  # keeps its place
        return False

    def forget(self, camera: Hashable) -> None:
        """``camera`` no longer wishes for anything."""
        self._wishes.pop(camera, None)
