"""What is asked of sqlimage, as ratios to its peers in the same run, and whether it was met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlimage.units import MIB
from tests.bench.measure import Result, ratio

Results = Mapping[str, Mapping[str, Result]]
"""By case, by contender."""


@dataclass(frozen=True)
class Bar:
    """``subject`` must need at most ``asked`` times what ``peer`` needs of ``what``, both in the same case."""

    name: str
    case: str
    subject: str
    peer: str
    what: str
    asked: float


@dataclass(frozen=True)
class Verdict:
    name: str
    asked: str
    measured: str
    met: bool | None
    """None where it was not measured."""


def _second(volume: str, case: str) -> tuple[Bar, ...]:
    """What is asked of the time of every second capture."""
    return (
        Bar(f"{volume} second time / first", case, "sqlimage child", "sqlimage first", "wall_seconds", 0.50),
        Bar(f"{volume} second time / borg", case, "sqlimage child", "borg", "wall_seconds", 0.60),
    )


PEAK_ASKED_BYTES = 300 * MIB
BARS = (
    Bar("NTFS capture time / qcow2 zstd", "ntfs-capture", "sqlimage", "qcow2 zstd", "wall_seconds", 0.45),
    Bar("NTFS capture time / WIM XPRESS", "ntfs-capture", "sqlimage", "wim xpress", "wall_seconds", 0.45),
    Bar("NTFS image size / WIM XPRESS", "ntfs-capture", "sqlimage", "wim xpress", "output_bytes", 1.00),
    Bar("NTFS image size / qcow2 zstd", "ntfs-capture", "sqlimage", "qcow2 zstd", "output_bytes", 0.40),
    Bar("NTFS archive time / WIM LZX", "ntfs-capture", "sqlimage archive", "wim lzx", "wall_seconds", 0.50),
    Bar("NTFS archive size / WIM LZX", "ntfs-capture", "sqlimage archive", "wim lzx", "output_bytes", 1.00),
    Bar("NTFS restore time / qemu-img convert", "ntfs-restore", "sqlimage", "qcow2 zstd", "wall_seconds", 0.70),
    Bar("FAT32 capture time / qcow2 zlib", "fat32-capture", "sqlimage", "qcow2 zlib", "wall_seconds", 0.60),
    Bar("FAT32 capture time / qcow2 zstd", "fat32-capture", "sqlimage", "qcow2 zstd", "wall_seconds", 0.60),
    Bar("ext4 capture time / qcow2 zstd", "ext4-capture", "sqlimage", "qcow2 zstd", "wall_seconds", 0.50),
    Bar("ext4 capture time / partclone", "ext4-capture", "sqlimage", "partclone, zstd", "wall_seconds", 0.50),
    Bar("ext4 image size / squashfs zstd 3", "ext4-capture", "sqlimage", "squashfs zstd 3", "output_bytes", 1.08),
    Bar("ext4 image size / squashfs zstd 15", "ext4-capture", "sqlimage", "squashfs zstd 15", "output_bytes", 1.08),
    Bar("NTFS defragmented / plain capture", "ntfs-defragment", "defragmented", "as it is", "wall_seconds", 1.25),
    Bar("FAT32 defragmented / plain capture", "fat32-defragment", "defragmented", "as it is", "wall_seconds", 1.25),
    Bar("NTFS restore to half / plain restore", "ntfs-half", "half its size", "its size", "wall_seconds", 1.25),
    Bar("NTFS encrypted / plain capture", "ntfs-encrypted", "encrypted", "plain", "wall_seconds", 1.30),
    Bar("encrypted / plain sequential read, time", "encrypted-read", "encrypted", "plain", "wall_seconds", 1 / 0.7),
    Bar("NTFS 1 TiB / 2 GiB, time", "ntfs-sparse", "sqlimage 1 TiB", "sqlimage 2 GiB", "wall_seconds", 2.0),
    Bar("NTFS 1 TiB / 2 GiB, size", "ntfs-sparse", "sqlimage 1 TiB", "sqlimage 2 GiB", "output_bytes", 2.0),
    Bar("FAT32 1 TiB / 2 GiB, time", "fat32-sparse", "sqlimage 1 TiB", "sqlimage 2 GiB", "wall_seconds", 2.0),
    Bar("FAT32 1 TiB / 2 GiB, size", "fat32-sparse", "sqlimage 1 TiB", "sqlimage 2 GiB", "output_bytes", 2.0),
    *_second("NTFS", "ntfs-second"),
    Bar("NTFS second added / WIM append", "ntfs-second", "sqlimage child", "wim xpress append", "output_bytes", 1.15),
    Bar("NTFS second added / qcow2 child", "ntfs-second", "sqlimage child", "qcow2 zstd child", "output_bytes", 0.10),
    *_second("ext4", "ext4-second"),
    *(
        Bar(f"ext4 second added / {peer}", "ext4-second", "sqlimage child", peer, "output_bytes", 1.00)
        for peer in ("borg", "restic", "casync", "qcow2 zstd child")
    ),
    Bar("merge time / qemu-img commit", "merge", "sqlimage merge", "qemu-img commit", "wall_seconds", 0.50),
)


def judge(results: Results, bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """The bars of the cases that were run, and last the memory of sqlimage in all of them."""
    verdicts = []
    for bar in bars:
        if bar.case in results:
            case = results[bar.case]
            found = ratio(case[bar.subject], case[bar.peer], bar.what)
            measured = "not measured" if found is None else f"{found:.2f}"
            met = None if found is None else found <= bar.asked
            verdicts.append(Verdict(bar.name, f"at most {bar.asked:.2f}", measured, met))
    verdicts.append(_judge_memory(results))
    return verdicts


def _judge_memory(results: Results) -> Verdict:
    peaks = [
        peak
        for case in results.values()
        for name, result in case.items()
        if name.startswith("sqlimage")
        for peak in result.of("peak_bytes")
    ]
    return Verdict(
        "peak memory of sqlimage in any run",
        f"below {PEAK_ASKED_BYTES // MIB} MiB",
        f"{max(peaks) / MIB:.0f} MiB" if peaks else "not measured",
        max(peaks) < PEAK_ASKED_BYTES if peaks else None,
    )
