"""The network of the paper: Sl, Sh, propagation, adaptation and key-frame selection."""
