"""How chunks are known within a lineage."""

from __future__ import annotations

Key = tuple[int, int]
"""Index of a file in its lineage, and the id of a row of its data stream."""
