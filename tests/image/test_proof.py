"""What was laid out anew is proven, and nothing that is wrong with it passes."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sqlimage.errors import DamagedError
from sqlimage.extent import Int64s
from sqlimage.filesystem.contract import HOLE, ContentFlag, EntryKind, Scan, read_all
from sqlimage.filesystem.fat import FatVolume
from sqlimage.filesystem.ntfs.volume import NtfsVolume
from sqlimage.filesystem.relocation import Relocatable, Relocation, Wish
from sqlimage.image.proof import Before, places_of, prove
from sqlimage.media.memory import MemoryDevice
from sqlimage.units import KIB, MIB
from tests.images import noise
from tests.make import fat
from tests.make.fat_tree import ScatteredVolume
from tests.make.ntfs import VolumeBytes, make_everything, put_pairs
from tests.make.relocated import apply

TWINS = ("/one", "/other")
"""Two files of one size and of different bytes."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A volume laid out anew, and all that is known of it as it was."""

    volume: Relocatable
    device: MemoryDevice
    scan: Scan
    plan: Relocation
    new: bytes
    digests: dict[int, bytes]

    def row(self, path: str) -> int:
        return int(self.scan.entries.content[self.scan.entries.path.index(path)])

    def run(self, path: str) -> tuple[int, int]:
        """Where a file lies in the new volume, in one run; bytes."""
        run = int(self.plan.scan.contents.first_run[self.row(path)])
        return int(self.plan.scan.contents.run_offset[run]), int(self.plan.scan.contents.run_length[run])

    def before(self, *, with_digests: bool = True) -> Before:
        return Before(self.device, self.scan, self.digests if with_digests else {})


def ntfs(place: Path) -> bytes:
    made = VolumeBytes(make_everything(place / "v.img"))
    return bytes(made.content)


def scattered(bits: int, size_bytes: int, place: Path) -> bytes:
    empty = fat.make_volume(place / "v.img", size_bytes, bits, sectors_per_cluster=1)
    volume = ScatteredVolume(bytearray(empty.read_bytes()), bits)
    chance = random.Random(bits)
    volume.add_directory("/directory")
    for n in range(30):
        volume.add_file(f"{'/directory' * (n % 2)}/file {n}", chance.randbytes(chance.randint(0, 4000)))
    for name in TWINS:
        volume.add_file(name, noise(name, 3000))
    volume.lose(5, chance.randbytes(2000))
    return bytes(volume.finish())


MAKERS: dict[str, Callable[[Path], bytes]] = {
    "ntfs": ntfs,
    "fat12": lambda place: scattered(12, 1440 * KIB, place),
    "fat16": lambda place: scattered(16, 9 * MIB, place),
    "fat32": lambda place: scattered(32, 34 * MIB, place),
}


def digests_of(volume: Relocatable, scan: Scan) -> dict[int, bytes]:
    """By row, of all contents that lie in clusters as they are read: what a capture knows."""
    contents, found = scan.contents, {}
    own = scan.entries.content[scan.entries.kind == EntryKind.METADATA].tolist()
    unread = ContentFlag.INLINE | ContentFlag.INDEX | ContentFlag.COMPRESSED
    for row in np.flatnonzero((contents.flags & unread) == 0).tolist():
        if contents.size_bytes[row] and row not in own:
            digest = hashlib.sha256()
            for block in read_all(volume.open(int(contents.record[row]), contents.stream[row])):
                digest.update(block)
            found[row] = digest.digest()
    return found


@pytest.fixture(scope="module", params=["ntfs", "fat12", "fat16", pytest.param("fat32", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("proof")
    device = MemoryDevice(MAKERS[request.param](place))
    volume: Relocatable = NtfsVolume(device) if request.param == "ntfs" else FatVolume(device)
    scan = volume.scan()
    plan = volume.relocate(scan, Wish(defragment=True))
    new = apply(device, plan, place / "new.img").read_bytes()
    return Made(volume, device, scan, plan, new, digests_of(volume, scan))


def twins(made: Made) -> tuple[str, str]:
    """Two files of one length, in one run each, and of different bytes."""
    if TWINS[0] in made.scan.entries.path:
        return TWINS
    return "/large", "/sparse"


def wrong(
    made: Made, new: bytes | bytearray, plan: Relocation | None = None, ways: Sequence[bool] = (False, True)
) -> str:
    """What is said of a volume that must not pass, with digests and without."""
    said = ""
    for with_digests in ways:
        with pytest.raises(DamagedError, match="the volume laid out anew is not what was planned: ") as raised:
            prove(MemoryDevice(new), plan or made.plan, made.before(with_digests=with_digests))
        assert "\n" not in str(raised.value)
        assert raised.value.hint
        said = raised.value.message.partition("planned: ")[2]
    return said


def test_what_is_as_planned_is_proven(made: Made) -> None:
    counts = {
        prove(MemoryDevice(made.new), made.plan, made.before(with_digests=with_digests), threads=threads)
        for with_digests in (False, True)
        for threads in (None, 1)
    }
    contents, kinds = made.scan.contents, made.scan.entries.kind
    own = made.scan.entries.content[kinds == EntryKind.METADATA]
    files = ((contents.flags & (ContentFlag.INDEX | ContentFlag.INLINE)) == 0) & (np.diff(contents.first_run) > 0)
    files[own[own >= 0]] = False
    assert counts == {int(files.sum())}


def test_two_files_that_changed_places_are_found(made: Made) -> None:
    first, second = (made.run(path) for path in twins(made))
    length = min(first[1], second[1])
    new = bytearray(made.new)
    new[first[0] : first[0] + length], new[second[0] : second[0] + length] = (
        made.new[second[0] : second[0] + length],
        made.new[first[0] : first[0] + length],
    )
    assert re.fullmatch(r"/.* does not have the digest it had", wrong(made, new))


def test_every_byte_that_changed_is_found(made: Made) -> None:
    """Of all that is allocated, when every file is read again; of every file's own bytes, when digests are known."""
    contents, chance = made.plan.scan.contents, random.Random(7)
    for start, length in made.plan.allocated:
        for _ in range(6):
            new = bytearray(made.new)
            new[start + chance.randrange(length)] ^= 1 << chance.randrange(8)
            assert wrong(made, new, ways=[False])
    for row in made.digests:
        run = int(contents.first_run[row])
        if run < contents.first_run[row + 1] and contents.run_offset[run] != HOLE:
            new = bytearray(made.new)
            new[int(contents.run_offset[run]) + chance.randrange(min(int(contents.size_bytes[row]), 512))] ^= 0xFF
            said = wrong(made, new, ways=[True])
            assert "does not have the digest it had" in said or contents.stream[row] == "$ATTRIBUTE_LIST"


def test_every_change_of_control_information_that_was_not_made_is_found(made: Made) -> None:
    assert len(made.plan.fixups) >= 5
    for fixup in made.plan.fixups:
        new = bytearray(made.new)
        new[fixup.offset_bytes : fixup.offset_bytes + len(fixup.original)] = fixup.original
        assert wrong(made, new, ways=[True])


def test_a_plan_that_moves_two_files_to_each_others_place_is_found(made: Made, tmp_path: Path) -> None:
    """The volume is as this plan says, and all of it reads well: but a file is another one now."""
    first, second = (made.run(path) for path in twins(made))
    length = min(first[1], second[1])
    moved_from, moved_to, moved_length = _cut(made.plan, first[0], second[0], length)
    twins_rows = np.flatnonzero(np.isin(moved_to, (first[0], second[0])))
    moved_from[twins_rows] = moved_from[twins_rows[::-1]]
    plan = dataclasses.replace(made.plan, moved_from=moved_from, moved_to=moved_to, moved_length=moved_length)
    new = apply(made.device, plan, tmp_path / "new.img").read_bytes()
    assert new != made.new
    assert wrong(made, new, plan) == "a file's clusters are not its own"


def _cut(plan: Relocation, *at_and_length: int) -> tuple[Int64s, Int64s, Int64s]:
    """The moves with borders where pieces begin and end."""
    *places, length = at_and_length
    borders = sorted({border for place in places for border in (place, place + length)})
    moves = zip(plan.moved_from.tolist(), plan.moved_to.tolist(), plan.moved_length.tolist(), strict=True)
    rows = []
    for old, new, count in moves:
        cuts = [new, *(border for border in borders if new < border < new + count), new + count]
        rows += [(old + low - new, low, high - low) for low, high in pairwise(cuts)]
    table = np.array(rows, dtype=np.int64)
    return table[:, 0].copy(), table[:, 1], table[:, 2]


def test_run_lists_that_lead_to_another_files_clusters_are_found(made: Made) -> None:
    first, second = twins(made)
    if made.plan.facts.file_system == "ntfs":
        volume = VolumeBytes(made.new)
        unit = volume.cluster_bytes
        place, length = made.run(first)
        number = int(made.scan.entries.record[made.scan.entries.path.index(first)])
        put_pairs(volume, number, 0x80, 0, [(place // unit + 1, length // unit)])
        new = volume.content
    else:
        new, ours = bytearray(made.new), FatVolume(MemoryDevice(made.new))
        records = [int(ours.scan().entries.record[made.scan.entries.path.index(path)]) for path in (first, second)]
        for at in (20, 21, 26, 27):  # DIR_FstClusHI, DIR_FstClusLO
            one, other = (record * 32 + at for record in records)
            new[one], new[other] = new[other], new[one]
    assert wrong(made, new) == "run_offset of its contents"


def test_another_name_is_found(made: Made) -> None:
    wanted, other = ("large", "larce") if made.plan.facts.file_system == "ntfs" else ("other", "othes")
    new = made.new.replace(wanted.encode("utf-16-le"), other.encode("utf-16-le"))
    assert new != made.new
    assert wrong(made, new) == "path of its names"


def test_clusters_that_nobody_gave_back_are_found(made: Made) -> None:
    """One more is marked as in use than the plan says."""
    contents, new = made.plan.scan.contents, bytearray(made.new)
    if made.plan.facts.file_system == "ntfs":
        row = int(np.flatnonzero(contents.record == 6)[0])
        bitmap = int(contents.run_offset[contents.first_run[row]])
        free = made.new[bitmap : bitmap + made.plan.facts.total_clusters // 8].index(0)
        new[bitmap + free] = 0x10
    else:
        volume = ScatteredVolume(new, 0)
        volume.link(volume.clusters - 3, 0x0FFFFFFF if volume.bits == 32 else (1 << volume.bits) - 1)
    assert wrong(made, new) == "its allocated clusters"


def test_facts_of_the_volume_that_changed_are_found(made: Made) -> None:
    new = bytearray(made.new)
    at = 0x48 if made.plan.facts.file_system == "ntfs" else 67 if made.plan.facts.file_system == "fat32" else 39
    new[at] ^= 1  # the serial number
    assert wrong(made, new) == "its control information"


def test_what_is_no_file_system_any_more_or_contradicts_itself_is_found(made: Made) -> None:
    assert wrong(made, bytes(len(made.new))) == "its file system is not recognised"
    new = bytearray(made.new)
    new[13] = 3  # sectors per cluster
    assert wrong(made, new)


def test_a_digest_that_was_another_names_the_file(made: Made) -> None:
    path = twins(made)[0]
    digests = {**made.digests, made.row(path): hashlib.sha256(b"another").digest()}
    with pytest.raises(DamagedError, match=f"{path} does not have the digest it had"):
        prove(MemoryDevice(made.new), made.plan, Before(made.device, made.scan, digests))


def test_bytes_that_were_taken_from_elsewhere_are_found_though_their_digests_tell_of_them(made: Made) -> None:
    """Two files changed places on the way from the medium, before anything was digested."""
    (first, length), (second, other) = (made.run(path) for path in twins(made))
    new, length = bytearray(made.new), min(length, other)
    new[first : first + length] = made.new[second : second + length]
    new[second : second + length] = made.new[first : first + length]
    volume = type(made.volume)(MemoryDevice(new))  # type: ignore[call-arg]
    before = Before(made.device, made.scan, digests_of(volume, made.plan.scan))
    prove(MemoryDevice(new), made.plan, before)
    with pytest.raises(DamagedError, match="does not have the digest it had"):
        prove(MemoryDevice(new), made.plan, dataclasses.replace(before, taken_by_moves=True))
    assert prove(MemoryDevice(made.new), made.plan, dataclasses.replace(made.before(), taken_by_moves=True))


def test_contents_that_were_not_taken_are_not_compared_and_all_others_are(made: Made) -> None:
    ignored = np.zeros(len(made.scan.contents), dtype=np.bool_)
    first, second = twins(made)
    ignored[made.row(first)] = True
    for with_digests in (False, True):
        before = dataclasses.replace(made.before(with_digests=with_digests), ignored=ignored)
        place, length = made.run(first)
        new = bytearray(made.new)
        new[place : place + length] = bytes(length)
        whole = prove(MemoryDevice(made.new), made.plan, made.before())
        assert prove(MemoryDevice(new), made.plan, before) == whole - 1
        new[made.run(second)[0]] ^= 1
        with pytest.raises(DamagedError, match=second):
            prove(MemoryDevice(new), made.plan, before)


def test_places_of_changes_are_columns(made: Made) -> None:
    start, length = places_of(made.plan.fixups)
    assert start.tolist() == [fixup.offset_bytes for fixup in made.plan.fixups]
    assert length.tolist() == [len(fixup.replacement) for fixup in made.plan.fixups]
    assert [len(column) for column in places_of(())] == [0, 0]
