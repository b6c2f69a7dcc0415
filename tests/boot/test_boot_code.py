"""The boot code of a composed disk's master boot record, assembled from its source and run by firmware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sqlimage.boot import PROGRAM, qemu_command
from sqlimage.media.bootcode import MBR_BOOT_CODE, MBR_BOOT_CODE_BYTES_MAXIMUM
from sqlimage.media.compose import WritableComposedDisk, compose_disk
from sqlimage.media.geometry import Geometry
from sqlimage.media.memory import MemoryDevice
from tests.boot.qemu import MACHINE, assemble, says

PRINT = """
digits: movw    $seen, %si          # what was noted, in hexadecimal
1:      lodsb
        pushw   %ax
        shrb    $4, %al
        call    digit
        popw    %ax
        andb    $15, %al
        call    digit
        loop    1b
        movw    $end, %si
        call    text
stop:   hlt
        jmp     stop
digit:  addb    $0x30, %al
        cmpb    $0x3a, %al
        jb      char
        addb    $7, %al
char:   movb    $0x0e, %ah
        movw    $7, %bx
        int     $0x10
        ret
text:   lodsb
        testb   %al, %al
        jz      2f
        call    char
        jmp     text
2:      ret
end:    .asciz  " END\\r\\n"
seen:   .space  8
"""
STARTED = f"""
        .code16
        .globl  start
start:  movb    8(%si), %bh         # StartingLBA by DS:SI, if that is the record
        movb    (%si), %bl
        movw    %cs, %cx
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %bx, seen
        movb    %dl, seen + 2
        movw    %cx, seen + 3
        movw    $name, %si
        call    text
        movw    $5, %cx
        jmp     digits
name:   .asciz  "STARTED "
{PRINT}"""
"""Says what it was started with: BootIndicator, StartingLBA (low byte), DL, CS."""
LOADING = f"""
        .code16
        .globl  start
start:  jmp     main
        .org    0x3e
main:   movl    0x7c1c, %eax        # BPB_HiddSec leads to the second sector of the volume
        incl    %eax
        movl    %eax, lba
        movw    $packet, %si
        movb    $0x42, %ah
        int     $0x13
        movw    $0x7e00, %si
        call    text
        movb    $8, %ah             # and these are the disk's sectors and heads as firmware counts them
        int     $0x13
        andb    $63, %cl
        movb    %cl, seen
        movb    %dh, seen + 1
        movw    $2, %cx
        jmp     digits
packet: .word   16, 1, 0x7e00, 0
lba:    .long   0, 0
{PRINT}"""
"""Does what boot sectors of DOS and Windows do: finds its volume by the number of sectors that lie before it."""
ERRORS = (b"no active partition", b"not bootable", b"read error")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    code = assemble(STARTED, tmp_path_factory.mktemp("sector"), 0x7C00)
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)


def composed(volume: bytes, **options: object) -> WritableComposedDisk:
    disk = compose_disk(MemoryDevice(volume), file_system="ext4", **options)  # type: ignore[arg-type]
    assert isinstance(disk, WritableComposedDisk)
    return disk


def output(disk: WritableComposedDisk, work: Path, *, floppy: bool = False) -> bytes:
    path = work / "disk.raw"
    path.write_bytes(disk.read(0, disk.size_bytes))
    command = [PROGRAM, "-nodefaults", "-accel", "tcg", "-m", "16", "-nographic", "-serial", "stdio", "-boot", "a"]
    command += ["-drive", f"file={path},format=raw,if=floppy"]
    return says(path, b"END\r\n", *ERRORS, command=command if floppy else None)


def test_the_code_is_what_its_source_says(tmp_path: Path) -> None:
    source = (Path(__file__).parent / "mbr.s").read_text()
    assert assemble(source, tmp_path, 0x600).hex() == MBR_BOOT_CODE.hex()
    assert len(MBR_BOOT_CODE) <= MBR_BOOT_CODE_BYTES_MAXIMUM


def test_the_volume_is_started_with_its_drive_and_its_record(volume: bytes, tmp_path: Path) -> None:
    assert b"STARTED 803F800000 END" in output(composed(volume, hidden_sectors=63), tmp_path)


@pytest.mark.parametrize("own", [0, 63, 999_999])
def test_a_boot_sector_that_counts_hidden_sectors_finds_its_volume(own: int, tmp_path: Path) -> None:
    sector = bytearray(assemble(LOADING, tmp_path, 0x7C00).ljust(510, b"\0") + b"\x55\xaa")
    sector[24:32] = (16).to_bytes(2, "little") + (10).to_bytes(2, "little") + own.to_bytes(4, "little")
    volume = MemoryDevice(sector + b"FOUND ".ljust(512, b"\0") + bytes(8 << 20))
    disk = compose_disk(volume, file_system="fat16", hidden_sectors=own)
    path = tmp_path / "disk.raw"
    path.write_bytes(disk.read(0, disk.size_bytes))
    machine = replace(MACHINE, interface="ide")
    command = qemu_command(str(path), machine, geometry=disk.geometry, discard_writes=True)
    assert b"FOUND 1009 END" in says(path, b"END\r\n", *ERRORS, command=command)


def test_any_record_can_be_the_active_one(volume: bytes, tmp_path: Path) -> None:
    disk = composed(volume, hidden_sectors=200)
    disk.write(446 + 48, disk.read(446, 16))
    disk.zero(446, 16)
    assert b"STARTED 80C8800000 END" in output(disk, tmp_path)


def test_a_drive_without_extensions_is_read_by_cylinder_head_and_sector(volume: bytes, tmp_path: Path) -> None:
    floppy = composed(
        volume + bytes(1_474_560 - 100 * 512 - len(volume)),
        hidden_sectors=100,
        geometry=Geometry(80, 2, 18),
        alignment_bytes=512,
    )
    assert floppy.size_bytes == 1_474_560
    # the sector number would lead elsewhere: only the three bytes of CHS are right
    floppy.write(446 + 8, b"\x64\xff\xff\xff")
    assert b"STARTED 8064000000 END" in output(floppy, tmp_path, floppy=True)


def test_a_disk_without_an_active_partition_is_told(volume: bytes, tmp_path: Path) -> None:
    disk = composed(volume)
    disk.write(446, b"\0")
    assert b"no active partition" in output(disk, tmp_path)


def test_a_partition_without_a_boot_sector_is_told(volume: bytes, tmp_path: Path) -> None:
    assert b"not bootable" in output(composed(volume[:510] + bytes(1024)), tmp_path)


def test_a_sector_that_cannot_be_read_is_told_and_no_other_is_tried(volume: bytes, tmp_path: Path) -> None:
    disk = composed(volume)
    disk.write(446 + 8, b"\0\0\0\x70")
    assert b"read error" in output(disk, tmp_path)
