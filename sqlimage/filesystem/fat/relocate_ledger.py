"""The fix-ups of one relocation, collected within a bound of memory."""

from __future__ import annotations

from sqlimage.errors import RefusedError
from sqlimage.fixup import Fixup
from sqlimage.units import MIB

HELD_BYTES_MAX = 512 * MIB
"""Of originals and replacements together. The FAT of 2 TiB in clusters of 32 KiB has 256 MiB."""


class Ledger:
    def __init__(self) -> None:
        self._fixups: list[Fixup] = []
        self._held_bytes = 0

    def add(self, offset_bytes: int, original: bytes, replacement: bytes, reason: str, *, shared: bool = False) -> None:
        """Nothing is added where nothing changes. ``shared``: the same two objects were added before.

        Raises :class:`RefusedError` where the fix-ups outgrow their bound.
        """
        if original == replacement:
            return
        if not shared:
            self._held_bytes += len(original) + len(replacement)
            if self._held_bytes > HELD_BYTES_MAX:
                raise RefusedError(f"laying the volume out anew changes over {HELD_BYTES_MAX // 2} bytes of its FAT")
        self._fixups.append(Fixup(offset_bytes, original, replacement, reason))

    def in_order(self) -> tuple[Fixup, ...]:
        return tuple(sorted(self._fixups, key=lambda fixup: fixup.offset_bytes))
