"""Named trades between time, size and speed of access."""

from __future__ import annotations

from dataclasses import dataclass

from sqlimage.codec.chunk import MAX_LEVEL, MIN_LEVEL
from sqlimage.errors import UsageError
from sqlimage.units import KIB, MIB


@dataclass(frozen=True, slots=True)
class Preset:
    """How data is cut and compressed: chunk size in bytes, zstd level."""

    chunk_bytes: int
    level: int


# Chosen by measurement; README, "Presets", has the table.
PRESETS = {
    "fast": Preset(128 * KIB, 1),
    "balanced": Preset(128 * KIB, 3),
    "archive": Preset(MIB, 12),
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
    return Preset(preset.chunk_bytes, level)
