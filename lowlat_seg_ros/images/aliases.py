"""Other names of encodings, so that a refused image is answered with the one that it should have.

A name that merely looks alike is none: yuv422p is not yuv422, nor is yuyv422, and pixels in the
wrong order give a mask all the same. libcamera and DRM name the bytes of a pixel from the last one
on, so that RGB888 may be either order, and nothing is said of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

#: Names of V4L2, FFmpeg, GStreamer and GenICam, in lower case and without signs between letters.
_SAME = {
    "mono8": ("mono", "gray", "grey", "gray8", "grey8", "y8", "y800", "l8", "r8"),
    "mono16": ("gray16", "grey16", "gray16le", "y16", "r16"),
    "rgb8": ("rgb", "rgb24"),
    "bgr8": ("bgr", "bgr24"),
    "rgba8": ("rgba", "rgba32"),
    "bgra8": ("bgra",),
    "yuyv": ("yuy2", "yuyv422"),
    "uyvy": ("uyvy422",),
    "i420": ("iyuv", "yu12", "yuv420p"),
    "yv12": ("yvu420",),
}
_NAMES = {alias: name for name, aliases in _SAME.items() for alias in aliases}

#: The mosaic's colours, by V4L2 or by GenICam; then bits, of which more than 8 have two bytes.
_MOSAIC = re.compile(r"(?:s|bayer)?(rggb|bggr|gbrg|grbg)(8|10|12|14|16)?")
_GENICAM = re.compile(r"bayer(rg|bg|gb|gr)(8|10|12|14|16)?")
_PATTERNS = {"rg": "rggb", "bg": "bggr", "gb": "gbrg", "gr": "grbg"}
_GREY = re.compile(r"(?:mono|gray|grey|y)(10|12|14)")


def hint(name: str, known: Collection[str]) -> str:
    """The sentence "did you mean ...? " for an encoding's ``name``; empty where none is sure."""
    plain = re.sub(r"[\W_]", "", name.lower())
    same = {encoding.replace("_", "").lower(): encoding for encoding in known}
    if found := same.get(plain) or _NAMES.get(plain):
        return f"did you mean {found}? "
    base, bits = "", ""
    if match := _MOSAIC.fullmatch(plain):
        base, bits = f"bayer_{match[1]}", match[2] or "8"
    elif match := _GENICAM.fullmatch(plain):
        base, bits = f"bayer_{_PATTERNS[match[1]]}", match[2] or "8"
    elif match := _GREY.fullmatch(plain):
        base, bits = "mono", match[1]
    if not base:
        return ""
    if bits in ("8", "16"):
        return f"did you mean {base}{bits}? "
    return (
        f"did you mean {base}16, with the parameter advanced.bits_per_sample {bits} (if each value "
        "has two bytes)? "
    )
