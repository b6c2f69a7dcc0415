"""The operating systems on a medium, as properties by which its images are found."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sqlimage.image.medium import Medium
from sqlimage.streams.properties import Value, typed_value

_OURS = re.compile(
    r"(os\.(name|version|build|update|edition|architecture|kernels|packages)|host\.name)(\.\d+)?", re.ASCII
)
_NUMBERS = frozenset({"os.version", "os.build"})
"""Numbers where they can be, so that ``os.version >= 12`` means what it says."""


def system_properties(medium: Medium) -> dict[str, Value]:
    """What is told of the systems: of the first one under plain names, as ``os.name``; of a further one, on volume N,
    with the volume behind it: ``os.name.N``."""
    known: dict[str, Value] = {}
    for volume in medium.volumes:
        if volume.system is not None:
            suffix = f".{volume.number}" if known else ""
            for name, value in volume.system.properties().items():
                known[f"{name}{suffix}"] = typed_value(value) if name in _NUMBERS and isinstance(value, str) else value
    return known


def properties_since(medium: Medium, inherited: Mapping[str, Value], *, had_system: bool) -> dict[str, Value]:
    """As :func:`system_properties`, for a version whose ancestors have properties too: what they told of a system that
    is there no more, or told more of it, is hidden. ``had_system``: whether the parent's was found on its volumes, not
    only told by somebody."""
    known = system_properties(medium)
    if had_system:
        known = {**{name: None for name in inherited if _OURS.fullmatch(name)}, **known}
    return known
