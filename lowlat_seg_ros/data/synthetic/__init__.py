"""Rendered drives; see :class:`RenderedDrive`."""

from lowlat_seg_ros.data.synthetic.drive import RenderedDrive

__all__ = ["RenderedDrive"]
