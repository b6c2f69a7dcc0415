"""The functions that SQLite's library takes from the C library, answered by functions of a test.

SQLite's table of system calls has no entry for ``fdatasync``, so the place is changed through which the library calls
it: its slot in the global offset table (System V ABI, "Relocation"; 64-bit little-endian ELF with addends only).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_RELA_BYTES, _SYMBOL_BYTES = 24, 24
_PROT_READ, _PROT_WRITE = 1, 2


def slots(address: int, name: str) -> list[int]:
    """Where the library that holds the code at ``address`` keeps its pointers to the imported function ``name``."""
    path, base = _library_at(address)
    return [base + offset for offset in _relocations(path.read_bytes(), name.encode())]


def read(slot: int) -> int:
    """The pointer in a slot."""
    return ctypes.c_void_p.from_address(slot).value or 0


def redirect(slot: int, target: int) -> None:
    """Make the pointer in a slot ``target``."""
    page, access = slot & -mmap.PAGESIZE, _PROT_READ | _PROT_WRITE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), access):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.c_void_p.from_address(slot).value = target


def _library_at(address: int) -> tuple[Path, int]:
    """The file mapped at an address, and where its first byte is mapped."""
    firsts: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if path and int(offset, 16) == 0:
            firsts.setdefault(path[0], low)
        if low <= address < high:
            return Path(path[0]), firsts[path[0]]
    raise LookupError(f"no library at {address:#x}")


def _relocations(elf: bytes, name: bytes) -> Iterator[int]:
    """Offsets from the load address of every slot that the dynamic linker fills with the symbol's address."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise NotImplementedError("only 64-bit little-endian ELF")
    table, size, count = *struct.unpack_from("<Q", elf, 32), *struct.unpack_from("<HH", elf, 54)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + n * size) for n in range(count)]
    loads = [(vaddr, length, offset) for kind, _, offset, vaddr, _, length in headers if kind == _PT_LOAD]

    def in_file(vaddr: int) -> int:
        return next(int(offset + vaddr - low) for low, length, offset in loads if low <= vaddr < low + length)

    start, length = next((offset, size) for kind, _, offset, _, _, size in headers if kind == _PT_DYNAMIC)
    dynamic = dict(struct.iter_unpack("<QQ", elf[start : start + length]))
    strings, symbols = in_file(dynamic[_DT_STRTAB]), in_file(dynamic[_DT_SYMTAB])
    for where, how_long in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if where not in dynamic:
            continue
        first = in_file(dynamic[where])
        for offset, info, _ in struct.iter_unpack("<QQq", elf[first : first + dynamic[how_long]]):
            (text,) = struct.unpack_from("<I", elf, symbols + (info >> 32) * _SYMBOL_BYTES)
            if info >> 32 and elf.startswith(name + b"\0", strings + text):
                yield offset
