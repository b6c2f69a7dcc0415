"""Named trades between time, size and speed of access."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlimage.codec.chunk import MAX_LEVEL, MIN_LEVEL
from sqlimage.errors import UsageError
from sqlimage.units import KIB, MIB


@dataclass(frozen=True, slots=True)
class Preset:
    """How data is cut and compressed."""

    chunk_bytes: int
    level: int
    """zstd's, 1 to 22."""
    window_bytes: int
    """Small files are brought together by kind within this much of the medium."""


# Chosen by measurement; README, "Presets", has the table.
PRESETS = {
    "fast": Preset(384 * KIB, 1, 256 * MIB),
    "balanced": Preset(384 * KIB, 3, 256 * MIB),
    "archive": Preset(4 * MIB, 9, 1 << 40),
}
DEFAULT = "balanced"


def choose(name: str, level: int | None) -> Preset:
    """A preset by name, its level replaced where ``level`` is given (1 to 22)."""
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}", hint=f"there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if level is None:
        return preset
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise UsageError(f"level {level} is out of range", hint=f"choose {MIN_LEVEL} to {MAX_LEVEL}")
    return replace(preset, level=level)
