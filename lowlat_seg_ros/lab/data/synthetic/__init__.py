"""Rendered drives; see :class:`RenderedDrive`."""

from lowlat_seg_ros.lab.data.synthetic.drive import RenderedDrive

__all__ = ["RenderedDrive"]
