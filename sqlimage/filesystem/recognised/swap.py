"""Linux swap: an area whose pages are worth nothing once the system that wrote them is down, unless it hibernated.

Linux, ``include/linux/swap.h``, ``union swap_header``; numbers are in the byte order of the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sqlimage.device import BlockDevice
from sqlimage.extent import Runs
from sqlimage.filesystem.contract import VolumeFacts
from sqlimage.filesystem.recognised.volume import longer_than_medium, text_of, uuid_text
from sqlimage.units import power_of_two_in

HEAD_BYTES = 65536
"""More than this of an area's start is not looked at."""
_PAGES = tuple(4096 << n for n in range(5))
_SIGNATURE_BYTES = 10
_SIGNATURE = b"SWAPSPACE2"
_HIBERNATED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c")
"""What the kernel, its older versions, uswsusp and TuxOnIce put in place of the signature."""
_INFO_AT, _UUID_AT, _VOLUME_AT, _BADPAGES_AT = 1024, 1036, 1052, 1536
"""Three numbers (version, last_page, nr_badpages), sws_uuid and sws_volume of 16 bytes each, and the bad pages."""


@dataclass(frozen=True, slots=True)
class SwapArea:
    """What the header of a swap area says, checked."""

    page_bytes: int
    last_page: int
    label: str | None
    serial: str | None

    @property
    def size_bytes(self) -> int:
        return (self.last_page + 1) * self.page_bytes

    @property
    def pages(self) -> Runs:
        """Bytes of the area that are swapped to: all pages but the first, which is the header."""
        return Runs.of([(self.page_bytes, self.last_page * self.page_bytes)])


@dataclass(frozen=True, slots=True)
class SwapVolume:
    """A :class:`~sqlimage.filesystem.contract.Recognised` swap area."""

    facts: VolumeFacts
    reason: str
    pages: Runs

    def allocated(self) -> Runs | None:
        return None

    def left_out(self) -> Runs:
        return self.pages


def swap_header(head: bytes, size_bytes: int) -> SwapArea | None:
    """The swap area of ``size_bytes`` (a partition or a file) that begins with ``head``, of which up to 64 KiB count.

    None where it is no swap area, where its header cannot be right, and where a system hibernated into it.
    """
    area = None if _hibernated_page(head) else _area(head)
    return area if area is not None and area.size_bytes <= size_bytes else None


def swap(device: BlockDevice) -> SwapVolume | None:
    """The swap area on a device; None where there is none. One that a system hibernated into is kept whole.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where it says that it is larger than the device.
    """
    head = device.read(0, min(HEAD_BYTES, device.size_bytes))
    hibernated = _hibernated_page(head)
    area = _parse(head, hibernated) if hibernated else _area(head)
    if area is None:
        return None
    if area.size_bytes > device.size_bytes:
        raise longer_than_medium("swap_header", area.size_bytes, device, 0)
    facts = VolumeFacts(
        file_system="swap",
        size_bytes=area.size_bytes,
        bytes_per_sector=device.bytes_per_sector,
        bytes_per_cluster=area.page_bytes,
        total_clusters=area.last_page + 1,
        alignment_bytes=power_of_two_in(area.page_bytes),
        label=area.label,
        serial=area.serial,
        format_version="1",
        hibernated=hibernated is not None,
    )
    if hibernated:
        return SwapVolume(facts, "swap area that a system hibernated into: it is kept whole", Runs.empty())
    return SwapVolume(facts, "swap area: its pages are left out", area.pages)


def _area(head: bytes) -> SwapArea | None:
    page = _page_with(head, (_SIGNATURE,))
    return _parse(head, page) if page else None


def _hibernated_page(head: bytes) -> int | None:
    return _page_with(head, _HIBERNATED)


def _page_with(head: bytes, signatures: tuple[bytes, ...]) -> int | None:
    """The size of the pages, by where a signature ends the first of them."""
    for page in _PAGES:
        if len(head) >= page and head[page - _SIGNATURE_BYTES : page].startswith(signatures):
            return page
    return None


def _parse(head: bytes, page: int) -> SwapArea | None:
    for order in "<>":
        version, last_page, bad = struct.unpack_from(f"{order}III", head, _INFO_AT)
        if version != 1:
            continue
        if last_page == 0 or bad > (page - _SIGNATURE_BYTES - _BADPAGES_AT) // 4:
            return None
        if any(not 0 < number <= last_page for number in struct.unpack_from(f"{order}{bad}I", head, _BADPAGES_AT)):
            return None
        return SwapArea(page, last_page, text_of(head[_VOLUME_AT:][:16]), uuid_text(head[_UUID_AT:][:16]))
    return None
