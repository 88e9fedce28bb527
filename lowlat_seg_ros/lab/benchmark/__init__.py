"""What the engine costs, on this machine and against what it replaces: ``lowlat-seg benchmark``."""
