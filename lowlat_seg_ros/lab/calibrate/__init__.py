"""``lowlat-seg calibrate``: how many pixels of a mask are probably right."""
