"""Names made safe to print and to join into a path."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x1f/\x7f-\x9f]")
_SAFE = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_SAFE |= {0x7F: 0x2421, ord("/"): 0x2215}
_DOTS = {"": "_", ".": "\u2024", "..": "\u2024\u2024"}
"""Names that would not be a component of a path."""


def decode_name(units: bytes) -> str:
    """UTF-16 as a component of a path; what cannot be decoded becomes U+FFFD."""
    name = units.decode("utf-16-le", "replace")
    if _UNSAFE.search(name) is not None:
        return name.translate(_SAFE)
    return _DOTS.get(name, name)
