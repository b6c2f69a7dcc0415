"""Readers of untrusted control information: what a volume says of itself, without mounting it."""
