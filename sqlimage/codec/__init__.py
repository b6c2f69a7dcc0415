"""Chunks: bytes to what is stored and back."""
