"""Other ways to segment a stream, with the engine's interface."""
