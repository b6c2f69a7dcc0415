"""Partition tables: which part of a disk is which volume."""

from __future__ import annotations

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import InconsistentVolume, NotFoundError
from sqlimage.media import layout
from sqlimage.media.bootsector import Sector0, classify
from sqlimage.media.gpt import read_gpt
from sqlimage.media.mbr import has_signature, parse_records, read_mbr
from sqlimage.media.table import Partition, PartitionTable
from sqlimage.media.window import Window, WritableWindow

__all__ = ["Partition", "PartitionTable", "find_partition", "partition_window", "read_partition_table"]


def read_partition_table(device: BlockDevice) -> PartitionTable | None:
    """The MBR or GPT partition table of a disk (UEFI 2.10 sections 5.2 and 5.3), None where there is none.

    A volume's boot sector is no partition table though it ends in 55 AA as well, even where its maker has put a
    table into it. As in Linux a GPT counts only where the MBR announces it.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where there is a table that contradicts itself or its disk,
    and :class:`~sqlimage.errors.DeviceError` where the device cannot be read.
    """
    if device.size_bytes < max(layout.MBR_BYTES, device.bytes_per_sector):
        return None
    sector = device.read(0, layout.MBR_BYTES)
    if not has_signature(sector):
        return None
    records = parse_records(sector)
    announces_gpt = any(record.os_type == layout.OS_TYPE_GPT_PROTECTIVE for record in records)
    kind = classify(device, sector)
    if kind is Sector0.OTHER:
        return read_gpt(device, records) if announces_gpt else read_mbr(device, sector)
    # a boot loader keeps the parameter block of a volume that was there before: a table outweighs it if it is
    # beyond doubt, which checksums make a GPT and only the absence of the volume makes an MBR
    try:
        if announces_gpt:
            return read_gpt(device, records, primary_only=kind is Sector0.VOLUME)
        table = None if kind is Sector0.VOLUME else read_mbr(device, sector)
    except InconsistentVolume:
        return None
    return table if table and not table.problems else None


def partition_window(device: BlockDevice, number: int) -> Window:
    """The partition with this number as a device; a :class:`WritableWindow` where ``device`` can be written.

    Raises :class:`~sqlimage.errors.NotFoundError`, naming the numbers there are, and what
    :func:`read_partition_table` raises.
    """
    partition = find_partition(device, number)
    if isinstance(device, WritableDevice):
        return WritableWindow(device, partition.offset_bytes, partition.length_bytes)
    return Window(device, partition.offset_bytes, partition.length_bytes)


def find_partition(device: BlockDevice, number: int) -> Partition:
    """The partition with this number; raises as :func:`partition_window` does."""
    table = read_partition_table(device)
    if table is None:
        raise NotFoundError(f"partition {number} does not exist", hint="the device has no partition table")
    for partition in table.partitions:
        if partition.number == number:
            return partition
    numbers = ", ".join(str(n) for n in sorted(partition.number for partition in table.partitions))
    raise NotFoundError(f"partition {number} does not exist", hint=f"there are: {numbers or 'none'}")
