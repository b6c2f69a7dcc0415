"""The superblock, or a backup of it: parsed, validated against itself and its medium, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import numpy as np

from sqlimage.device import BlockDevice
from sqlimage.errors import InconsistentVolume
from sqlimage.filesystem.crc32c import crc32c
from sqlimage.filesystem.ext import layout
from sqlimage.filesystem.ext.layout import Compat, Incompat, RoCompat

CRC_START = 0xFFFFFFFF
_KNOWN = int(sum(Incompat) & ~Incompat.JOURNAL_DEV)
_EXT3 = Incompat.FILETYPE | Incompat.RECOVER | Incompat.META_BG, RoCompat(0x7)
"""Features that say nothing against ext3."""


@dataclass(frozen=True)
class Geometry:
    """What a valid superblock says. Blocks and groups count from the start of the volume."""

    inodes_count: int
    blocks_count: int
    first_data_block: int
    bytes_per_block: int
    blocks_per_cluster: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    bytes_per_inode: int
    first_inode: int
    """The first that is not reserved."""
    bytes_per_descriptor: int
    reserved_gdt_blocks: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    compat: int
    incompat: int
    ro_compat: int
    revision: str
    state: int
    uuid: bytes
    label: bytes
    journal_inode: int
    quota_inodes: tuple[int, int, int]
    """User, group, project; 0 where there is none."""
    orphan_file_inode: int
    checksum_seed: int
    copy_in_group: int
    """The group whose copy of the superblock this is; 0 for the first one."""

    @cached_property
    def groups(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.blocks_per_group)

    @property
    def size_bytes(self) -> int:
        return self.blocks_count * self.bytes_per_block

    @property
    def bytes_per_cluster(self) -> int:
        return self.bytes_per_block * self.blocks_per_cluster

    @property
    def total_clusters(self) -> int:
        return -(-self.blocks_count // self.blocks_per_cluster)

    @cached_property
    def descriptors_per_block(self) -> int:
        return self.bytes_per_block // self.bytes_per_descriptor

    @cached_property
    def descriptor_blocks(self) -> int:
        return -(-self.groups // self.descriptors_per_block)

    @property
    def inode_table_blocks(self) -> int:
        """Of a group."""
        return -(-self.inodes_per_group * self.bytes_per_inode // self.bytes_per_block)

    @cached_property
    def meta_bg_from(self) -> int:
        """The first block of descriptors that lies in its own meta group; those before lie behind the superblock."""
        total = self.descriptor_blocks
        return min(self.first_meta_bg, total) if self.incompat & Incompat.META_BG else total

    @cached_property
    def has_checksums(self) -> bool:
        return bool(self.ro_compat & RoCompat.METADATA_CSUM)

    @property
    def has_group_flags(self) -> bool:
        """Whether groups can be uninitialised."""
        return bool(self.ro_compat & (RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM))

    @property
    def has_shared_blocks(self) -> bool:
        return bool(self.ro_compat & RoCompat.SHARED_BLOCKS)

    @property
    def needs_recovery(self) -> bool:
        return bool(self.incompat & Incompat.RECOVER)

    @property
    def file_system(self) -> str:
        incompat, ro_compat = _EXT3
        if self.incompat & ~incompat or self.ro_compat & ~ro_compat:
            return "ext4"
        return "ext3" if self.compat & Compat.HAS_JOURNAL else "ext2"

    def first_block(self, group: int) -> int:
        return self.first_data_block + group * self.blocks_per_group

    def has_superblock(self, group: int) -> bool:
        """Whether a copy of the superblock stands at the start of a group."""
        if group == 0:
            return True
        if self.compat & Compat.SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & RoCompat.SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def superblock_groups(self) -> Iterable[int]:
        """All that have one."""
        if self.compat & Compat.SPARSE_SUPER2:
            return sorted({0, *(group for group in self.backup_groups if group < self.groups)})
        if not self.ro_compat & RoCompat.SPARSE_SUPER:
            return range(self.groups)
        powers = {base**n for base in (3, 5, 7) for n in range(self.groups.bit_length())}
        return sorted(group for group in {0, *powers} if group < self.groups)

    @property
    def superblock_block(self) -> int:
        """The block of the first group that the superblock lies in."""
        return layout.SUPERBLOCK_AT // self.bytes_per_block

    def descriptor_block(self, number: int) -> int:
        """Where a block of group descriptors lies: in the group of the copy that was read, or in its own meta group."""
        if number < self.meta_bg_from:
            first = self.superblock_block if self.copy_in_group == 0 else self.first_block(self.copy_in_group)
            return first + 1 + number
        group = number * self.descriptors_per_block
        if self.copy_in_group and group + 1 < self.groups:
            group += 1
        return self.first_block(group) + self.superblock_offset(group) + int(self.has_superblock(group))

    def superblock_offset(self, group: int) -> int:
        """Blocks of a group before its superblock: 1 where a boot block of 1 KiB is a block of the first group."""
        return self.superblock_block - self.first_data_block if group == 0 else 0


def is_ext(head: bytes) -> bool:
    """Whether the first bytes of a volume have a superblock of ext; says nothing about its being right."""
    at = layout.SUPERBLOCK_AT + layout.MAGIC_AT
    return len(head) >= at + 2 and int.from_bytes(head[at : at + 2], "little") == layout.MAGIC


def read_geometry(device: BlockDevice) -> tuple[Geometry, InconsistentVolume | None]:
    """What the superblock says, or the first backup that is right; then also what is wrong with the first one.

    Raises :class:`~sqlimage.errors.InconsistentVolume` where none is right.
    """
    try:
        return validate(_read(device, layout.SUPERBLOCK_AT), device.size_bytes, 0), None
    except InconsistentVolume as problem:
        if problem.structure.endswith(_LONGER_THAN_MEDIUM):
            raise
        backup = find_backup(device)
        if backup is None:
            raise
        return backup, problem


def find_backup(device: BlockDevice) -> Geometry | None:
    """A superblock at the start of a later block group that is right in itself: of group 1, 3 or 5, by each size of
    block, or where the damaged first one says that groups lie."""
    for size, first, per_group, groups in _likely_groups(device):
        for group in groups:
            at = (first + group * per_group) * size
            if at + layout.SUPERBLOCK_BYTES > device.size_bytes:
                continue
            try:
                geometry = validate(_read(device, at), device.size_bytes, group)
            except InconsistentVolume:
                continue
            if geometry.first_block(group) * geometry.bytes_per_block == at and geometry.has_superblock(group):
                return geometry
    return None


def _likely_groups(device: BlockDevice) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Bytes of a block, the first block of group 0, blocks of a group, and which groups may have a backup."""
    usual = (1, 3, 5)
    if device.size_bytes >= layout.SUPERBLOCK_AT + layout.SUPERBLOCK_BYTES:
        field = np.frombuffer(_read(device, layout.SUPERBLOCK_AT), dtype=layout.SUPERBLOCK)[0]
        log, first, per_group = (
            int(field[name]) for name in ("s_log_block_size", "s_first_data_block", "s_blocks_per_group")
        )
        if field["s_magic"] == layout.MAGIC and log <= 6 and first <= 1 and per_group >= layout.LEAST_BLOCKS_PER_GROUP:
            yield 1024 << log, first, per_group, (*usual, *(n for n in field["s_backup_bgs"].tolist() if n))
    for log in range(10, 17):
        size = 1 << log
        yield size, int(size == 1024), 8 * size, usual
        yield size, 0, 8 * size * _USUAL_RATIO, usual


def _read(device: BlockDevice, at: int) -> bytes:
    if at + layout.SUPERBLOCK_BYTES > device.size_bytes:
        raise InconsistentVolume("superblock", f"the medium has {device.size_bytes} bytes")
    return device.read(at, layout.SUPERBLOCK_BYTES)


_LONGER_THAN_MEDIUM = "s_blocks_count"
_USUAL_RATIO = 16
"""Blocks of a cluster that mke2fs takes for bigalloc where it is not told."""


def validate(raw: bytes, device_bytes: int, group: int) -> Geometry:
    """The geometry of a volume by the superblock ``raw`` of a block group, on a medium of ``device_bytes``.

    Raises :class:`~sqlimage.errors.InconsistentVolume` naming the field where one is out of its range.
    """
    field = np.frombuffer(raw, dtype=layout.SUPERBLOCK)[0]

    def number(name: str) -> int:
        return int(field[name])

    def check(holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise InconsistentVolume(f"superblock, {name}", f"is {number(name)}, must be {allowed}")

    check(number("s_magic") == layout.MAGIC, "s_magic", f"{layout.MAGIC}")
    revision = number("s_rev_level")
    check(revision in (0, 1), "s_rev_level", "0 or 1")
    compat, incompat, ro_compat = (
        (number("s_feature_compat"), number("s_feature_incompat"), number("s_feature_ro_compat"))
        if revision
        else (0, 0, 0)
    )
    if incompat & Incompat.JOURNAL_DEV:
        raise InconsistentVolume("superblock, s_feature_incompat", "it is the external journal of another volume")
    if unknown := incompat & ~_KNOWN:
        raise InconsistentVolume("superblock, s_feature_incompat", f"has features that are not known ({unknown:#x})")
    if ro_compat & RoCompat.METADATA_CSUM:
        found, right = number("s_checksum"), crc32c(CRC_START, raw[: layout.SUPERBLOCK_CHECKSUM_AT])
        check(found == right, "s_checksum", f"{right}")
    check(number("s_log_block_size") <= 6, "s_log_block_size", "at most 6")
    block = 1024 << number("s_log_block_size")
    ratio_log, is_bigalloc = 0, bool(ro_compat & RoCompat.BIGALLOC)
    if is_bigalloc:
        ratio_log = number("s_log_cluster_size") - number("s_log_block_size")
        check(0 <= ratio_log <= 20, "s_log_cluster_size", "at least s_log_block_size, and at most 20 more")
    per_group, clusters = number("s_blocks_per_group"), number("s_clusters_per_group")
    if not is_bigalloc:
        clusters = per_group
    # A bitmap of one block has a bit for each cluster.
    name = "s_clusters_per_group" if is_bigalloc else "s_blocks_per_group"
    check(clusters % 8 == 0 and 8 <= clusters <= 8 * block, name, f"a multiple of 8 up to {8 * block}")
    allowed = f"at least {layout.LEAST_BLOCKS_PER_GROUP}, and s_clusters_per_group clusters"
    check(
        per_group >= layout.LEAST_BLOCKS_PER_GROUP and per_group == clusters << ratio_log, "s_blocks_per_group", allowed
    )
    first = number("s_first_data_block")
    expected = int(block == 1024 and not is_bigalloc)
    check(first == expected, "s_first_data_block", f"{expected}")
    count = number("s_blocks_count_lo")
    if incompat & Incompat.BIT64:
        count |= number("s_blocks_count_hi") << 32
    if count * block > device_bytes:
        raise InconsistentVolume(
            f"superblock, {_LONGER_THAN_MEDIUM}",
            f"is {count} blocks of {block} bytes, the medium has {device_bytes} bytes",
        )
    if count <= first:
        raise InconsistentVolume(f"superblock, {_LONGER_THAN_MEDIUM}", f"is {count}")
    inode = number("s_inode_size") if revision else layout.OLD_INODE_BYTES
    check(128 <= inode <= block and inode & (inode - 1) == 0, "s_inode_size", f"a power of two from 128 to {block}")
    inodes = number("s_inodes_per_group")
    check(0 < inodes <= 8 * block, "s_inodes_per_group", f"from 1 to {8 * block}")
    first_inode = number("s_first_ino") if revision else layout.OLD_FIRST_INODE
    check(first_inode >= layout.OLD_FIRST_INODE, "s_first_ino", f"at least {layout.OLD_FIRST_INODE}")
    descriptor = layout.DESCRIPTOR_BYTES
    if incompat & Incompat.BIT64:
        descriptor = number("s_desc_size")
        check(
            layout.DESCRIPTOR_64_BYTES <= descriptor <= layout.DESCRIPTOR_BYTES_MAX
            and descriptor & (descriptor - 1) == 0,
            "s_desc_size",
            "a power of two from 64 to 1024",
        )
    geometry = Geometry(
        inodes_count=number("s_inodes_count"),
        blocks_count=count,
        first_data_block=first,
        bytes_per_block=block,
        blocks_per_cluster=1 << ratio_log,
        blocks_per_group=per_group,
        clusters_per_group=clusters,
        inodes_per_group=inodes,
        bytes_per_inode=inode,
        first_inode=first_inode,
        bytes_per_descriptor=descriptor,
        reserved_gdt_blocks=number("s_reserved_gdt_blocks"),
        first_meta_bg=number("s_first_meta_bg"),
        backup_groups=tuple(field["s_backup_bgs"].tolist()),
        compat=compat,
        incompat=incompat,
        ro_compat=ro_compat,
        revision=f"{revision}.{number('s_minor_rev_level')}",
        state=number("s_state"),
        uuid=field["s_uuid"].tobytes(),
        label=field["s_volume_name"].tobytes().split(b"\0")[0],
        journal_inode=number("s_journal_inum") if compat & Compat.HAS_JOURNAL else 0,
        quota_inodes=(number("s_usr_quota_inum"), number("s_grp_quota_inum"), number("s_prj_quota_inum")),
        orphan_file_inode=number("s_orphan_file_inum") if compat & Compat.ORPHAN_FILE else 0,
        checksum_seed=number("s_checksum_seed")
        if incompat & Incompat.CSUM_SEED
        else crc32c(CRC_START, field["s_uuid"].tobytes()),
        copy_in_group=group,
    )
    check(geometry.inodes_count == geometry.groups * inodes, "s_inodes_count", f"{geometry.groups * inodes}")
    check(number("s_block_group_nr") == group or group == 0, "s_block_group_nr", f"{group}")
    allowed = f"more, for {count} blocks"
    check(geometry.groups <= layout.GROUPS_MAX and geometry.meta_bg_from < per_group, "s_blocks_per_group", allowed)
    return geometry


def uuid_text(raw: bytes) -> str | None:
    """As ``blkid`` prints it; None where there is none."""
    return str(UUID(bytes=raw)) if any(raw) else None


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
