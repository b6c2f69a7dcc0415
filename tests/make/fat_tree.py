"""Trees written into volumes of mkfs.fat with their clusters scattered at will: what years of use do to a volume."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from tests.make.fat import long_entries, short_entry

END = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
BAD = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}


@dataclass
class Directory:
    path: str
    entries: list[bytes] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)


class ScatteredVolume:
    """Writes into ``content``, an empty volume by mkfs.fat. Clusters are taken in runs of up to ``longest``, in an
    order that ``seed`` shuffles; with ``longest`` 0 in order from the front."""

    def __init__(self, content: bytearray, seed: int, longest: int = 3) -> None:
        self.content = content
        sector, per_cluster, reserved, self.fats, roots, short, _, fat = struct.unpack_from("<HBHBHHBH", content, 11)
        total, fat32_sectors, _, _, root = struct.unpack_from("<IIHHI", content, 32)
        self.reserved_bytes = reserved * sector
        self.fat_bytes = (fat or fat32_sectors) * sector
        self.root_offset = self.reserved_bytes + self.fats * self.fat_bytes
        self.heap_offset: int = self.root_offset + -(-roots * 32 // sector) * sector
        self.bytes_per_cluster: int = sector * per_cluster
        self.clusters = ((short or total) * sector - self.heap_offset) // self.bytes_per_cluster
        self.bits = 32 if fat == 0 else 12 if self.clusters < 4085 else 16
        self.sector = sector
        self.random = random.Random(seed)
        chain = [root] if self.bits == 32 else []
        self.directories = {"/": Directory("/", chain=chain)}
        self.files: dict[str, bytes] = {}
        self.pool = self._shuffled([n for n in range(2, self.clusters + 2) if n not in chain], longest)[::-1]
        """Free clusters; the next to be taken is the last."""
        self._roots = roots

    def _shuffled(self, clusters: list[int], longest: int) -> list[int]:
        if longest == 0:
            return clusters
        runs, at = [], 0
        while at < len(clusters):
            length = self.random.randint(1, longest)
            runs.append(clusters[at : at + length])
            at += length
        self.random.shuffle(runs)
        return [cluster for run in runs for cluster in run]

    @property
    def free(self) -> int:
        return len(self.pool)

    def link(self, cluster: int, following: int) -> None:
        """Set an entry in every FAT."""
        for number in range(self.fats):
            at = self.reserved_bytes + number * self.fat_bytes + cluster * self.bits // 8
            if self.bits == 12:
                (old,) = struct.unpack_from("<H", self.content, at)
                struct.pack_into(
                    "<H",
                    self.content,
                    at,
                    old & 0x000F | following << 4 if cluster % 2 else old & 0xF000 | following,
                )
            else:
                struct.pack_into("<H" if self.bits == 16 else "<I", self.content, at, following)

    def take(self, count: int) -> list[int]:
        assert count <= len(self.pool), "the volume is full"
        taken = self.pool[len(self.pool) - count :][::-1]
        del self.pool[len(self.pool) - count :]
        return taken

    def chain(self, clusters: list[int]) -> int:
        for here, following in zip(clusters, [*clusters[1:], END[self.bits]], strict=False):
            self.link(here, following)
        return clusters[0] if clusters else 0

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - 2) * self.bytes_per_cluster

    def mark_bad(self, *clusters: int) -> None:
        for cluster in clusters:
            if cluster in self.pool:
                self.pool.remove(cluster)
                self.link(cluster, BAD[self.bits])

    def lose(self, count: int, data: bytes) -> list[int]:
        """A chain that no entry names."""
        chain = self.take(count)
        self.chain(chain)
        self._put(chain, data)
        return chain

    def add_directory(self, path: str) -> None:
        self.directories[path] = Directory(path, chain=self.take(1))
        self._name(path, self.directories[path].chain[0], 0, 0x10)

    def add_file(self, path: str, data: bytes, attributes: int = 0x20, *, deleted: bool = False) -> None:
        """``deleted``: its entry is marked as free and its clusters are given back, with what they held."""
        chain = self.take(-(-len(data) // self.bytes_per_cluster))
        self._put(chain, data)
        self._name(path, chain[0] if chain else 0, len(data), attributes, deleted=deleted)
        if deleted:
            self.pool[:0] = chain
        else:
            self.chain(chain)
            self.files[path] = data

    def finish(self) -> bytearray:
        """Write the directories, the FATs' chains of them, and the counts."""
        for directory in self.directories.values():
            self.chain(directory.chain)
            parent = self.directories[directory.path.rpartition("/")[0] or "/"]
            body = b"".join(directory.entries)
            if directory.path != "/":
                above = parent.chain[0] if parent.path != "/" else 0
                own = short_entry(b".", directory.chain[0], attributes=0x10)
                body = own + short_entry(b"..", above, attributes=0x10) + body
            if directory.chain:
                self._put(directory.chain, body)
            else:
                self.content[self.root_offset : self.root_offset + len(body)] = body
        if self.bits == 32:
            for sector in (1, 7):
                struct.pack_into("<II", self.content, sector * self.sector + 488, len(self.pool), 2)
        return self.content

    def _name(self, path: str, cluster: int, size: int, attributes: int, *, deleted: bool = False) -> None:
        above, _, name = path.rpartition("/")
        directory = self.directories[above or "/"]
        short = b"N%07dTXT" % len(directory.entries)
        pieces = long_entries(name, short) + short_entry(short, cluster, size, attributes)
        entries = [pieces[at : at + 32] for at in range(0, len(pieces), 32)]
        if deleted:
            entries = [b"\xe5" + entry[1:] for entry in entries]
        directory.entries += entries
        dots = 0 if directory.path == "/" else 2
        needed = -(-(len(directory.entries) + dots) * 32 // self.bytes_per_cluster)
        if directory.chain:
            directory.chain += self.take(max(needed - len(directory.chain), 0))
        else:
            assert len(directory.entries) <= self._roots, "the root directory is full"

    def _put(self, chain: list[int], data: bytes) -> None:
        for k, cluster in enumerate(chain):
            piece = data[k * self.bytes_per_cluster : (k + 1) * self.bytes_per_cluster]
            at = self.offset_of(cluster)
            self.content[at : at + self.bytes_per_cluster] = piece.ljust(self.bytes_per_cluster, b"\0")
