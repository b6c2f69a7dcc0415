"""On-disk structures as tables of fields."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def structure(size_bytes: int, fields: Mapping[str, tuple[int, str]]) -> np.dtype[np.void]:
    """A record type of ``size_bytes`` with the fields that count, each by its offset and its numpy type."""
    return np.dtype(
        {
            "names": list(fields),
            "offsets": [offset for offset, _ in fields.values()],
            "formats": [kind for _, kind in fields.values()],
            "itemsize": size_bytes,
        }
    )
