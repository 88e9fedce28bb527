"""The engine: turns frames into masks at once, and refines key frames in the background."""
