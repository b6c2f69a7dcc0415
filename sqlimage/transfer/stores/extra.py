"""The libraries that only stores elsewhere need: they come with an extra, and load when the first such store opens."""

from __future__ import annotations

import importlib
from types import ModuleType

from sqlimage.errors import UsageError


def load(module: str) -> ModuleType:
    """Raises :class:`~sqlimage.errors.UsageError` where the extra is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"{module.partition('.')[0]} is missing, which talks to stores elsewhere",
            hint="pip install 'sqlimage[remote]'",
        ) from None
