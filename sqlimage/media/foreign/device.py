"""A disk inside a container, as a device: read and written through ``qemu-nbd``."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections.abc import Iterator

from sqlimage import nbd_layout as n
from sqlimage.device import Buffer, DeviceExtent, check_range
from sqlimage.errors import DeviceError, FormatError, RefusedError
from sqlimage.media.foreign.client import (
    LARGEST_QUERY,
    LARGEST_TRANSFER,
    LARGEST_ZEROING,
    Client,
    ServerRefusal,
    connect,
)
from sqlimage.media.foreign.connection import BrokenConnection, Connection
from sqlimage.media.foreign.formats import Format
from sqlimage.media.foreign.found import Found
from sqlimage.media.foreign.program import NbdProgram
from sqlimage.units import MIB, TIB, format_size

_LARGEST_DISK = 256 * TIB
"""Four times what VHDX allows. Beyond, asking for the holes alone takes longer than anybody waits."""
_SLACK_BYTES = 256 * MIB
"""The largest block of any format: so much more than its file may a disk seem to hold."""
_FINE_EXTENTS = 1 << 18
"""So many extents are told as they are; for as many again, holes shorter than a bound are called data, and so on."""

_NAMED = re.compile("/proc/self/fd/[0-9]+")
"""How QEMU was told to call the container."""
_IN_USE = "another process using the image"
"""QEMU's words where another of its programs has the file open for writing."""


class ForeignDevice:
    """The disk inside a container, for reading. Safe from any thread: each request has a connection to itself.

    ``server`` is closed with it. Raises :class:`~sqlimage.errors.FormatError`, with what QEMU
    says, where it cannot open the container.
    """

    def __init__(self, path: str, found: Found, server: NbdProgram, file_bytes: int) -> None:
        self.path = path
        self.format: Format = found.format
        self.is_block_device = False
        self._found = found
        self._server = server
        self._connections = [Connection(sock) for sock in server.sockets]
        self._failure = ""
        self._most_data = None if found.most_expansion is None else file_bytes * found.most_expansion + _SLACK_BYTES
        try:
            clients = connect(self._connections)
        except (BrokenConnection, ServerRefusal) as problem:
            reason = self._why(problem)
            self.close()
            if _IN_USE in reason:
                raise RefusedError(f"{path}: is in use", hint="shut down what writes to it first") from None
            raise FormatError(f"{path}: cannot be opened as {self.format.name}: {reason}") from None
        self._flags = clients[0].flags
        self._size_bytes = clients[0].size_bytes
        if self._size_bytes > _LARGEST_DISK:
            self.close()
            raise FormatError(f"{path}: a disk of {self._size_bytes} bytes is larger than {format_size(_LARGEST_DISK)}")
        self._idle: queue.SimpleQueue[Client] = queue.SimpleQueue()
        for client in clients:
            self._idle.put(client)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def bytes_per_sector(self) -> int:
        return self._found.bytes_per_sector

    def read_into(self, offset_bytes: int, buffer: Buffer) -> None:
        check_range(offset_bytes, len(buffer), self._size_bytes, self.path)
        view = memoryview(buffer)
        for at in range(0, len(view), LARGEST_TRANSFER):
            with self._asking(f"reading at byte {offset_bytes + at}") as client:
                client.read_into(offset_bytes + at, view[at : at + LARGEST_TRANSFER])

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        buffer = bytearray(length_bytes)
        self.read_into(offset_bytes, buffer)
        return bytes(buffer)

    def extents(self, offset_bytes: int, length_bytes: int) -> Iterator[DeviceExtent]:
        """Data and holes as the container's tables tell them. Raises :class:`~sqlimage.errors.FormatError` where they
        tell of more data than the file can hold."""
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        return self._joined(offset_bytes, self._pieces(offset_bytes, offset_bytes + length_bytes))

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._server.close()
        self._failure = self._failure or "it is closed"

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, bool]]:
        """Lengths, and whether there is data, without gaps."""
        at = start
        for zero_start, zero_bytes in self._found.zeros.clip(start, end):
            yield from self._status(at, zero_start)
            yield zero_bytes, False
            at = zero_start + zero_bytes
        yield from self._status(at, end)

    def _status(self, start: int, end: int) -> Iterator[tuple[int, bool]]:
        at = start
        while at < end:
            with self._asking(f"looking for holes at byte {at}") as client:
                status = client.block_status(at, min(LARGEST_QUERY, end - at))
            yield from status
            at += sum(length for length, _ in status)

    def _joined(self, offset_bytes: int, pieces: Iterator[tuple[int, bool]]) -> Iterator[DeviceExtent]:
        """Neighbours of a kind as one extent. The more there are, the longer must a hole be to count as one."""
        start = at = offset_bytes
        current: bool | None = None
        data_bytes = told = shortest_hole = 0
        for length, is_data in pieces:
            data_bytes += length if is_data else 0
            if self._most_data is not None and data_bytes > self._most_data:
                raise FormatError(
                    f"{self.path}: tells of more than {format_size(self._most_data)} of data, which its file does not "
                    "hold"
                )
            kind = is_data or length < shortest_hole
            if current is not None and kind != current:
                yield DeviceExtent(start, at - start, is_data=current)
                start = at
                told += 1
                if told % _FINE_EXTENTS == 0:
                    shortest_hole = max(1 << 16, shortest_hole * 4)
            current = kind
            at += length
        if current is not None:
            yield DeviceExtent(start, at - start, is_data=current)

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator[Client]:
        """A connection for one request."""
        if self._failure:
            raise DeviceError(f"{self.path}: {doing} failed ({self._failure})")
        client = self._idle.get()
        try:
            yield client
        except ServerRefusal as refusal:
            said = self._server.said
            raise DeviceError(f"{self.path}: {doing} failed ({refusal}{said and f'; {said}'})") from None
        except BrokenConnection as problem:
            self._failure = self._failure or self._why(problem)
            raise DeviceError(f"{self.path}: {doing} failed ({self._failure})") from None
        except BaseException:  # an answer may be half read
            self._failure = self._failure or "a request was interrupted"
            raise
        finally:
            self._idle.put(client)

    def _why(self, problem: Exception) -> str:
        """What is wrong, in the words of the program where it has said something."""
        self._server.kill()
        said = self._server.said
        said = _NAMED.sub(lambda _: self.path, said).removeprefix(f"Could not open '{self.path}': ")
        return said or f"qemu-nbd: {problem}"


class WritableForeignDevice(ForeignDevice):
    """The disk inside a container that was just made, for writing too. ``container`` is a descriptor of its file.

    Only after :meth:`finish` is the file whole.
    """

    def __init__(self, path: str, found: Found, server: NbdProgram, container: int) -> None:
        self._container = container
        self._turn = threading.Lock() if found.format.in_turn else contextlib.nullcontext()
        super().__init__(path, found, server, 0)
        self._most_data = None

    def write(self, offset_bytes: int, data: bytes | Buffer) -> None:
        check_range(offset_bytes, len(data), self._size_bytes, self.path)
        view = memoryview(data)
        for at in range(0, len(view), LARGEST_TRANSFER):
            with self._turn, self._asking(f"writing at byte {offset_bytes + at}") as client:
                client.write(offset_bytes + at, view[at : at + LARGEST_TRANSFER])

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        check_range(offset_bytes, length_bytes, self._size_bytes, self.path)
        if not self._flags & n.NBD_FLAG_SEND_WRITE_ZEROES:
            for at in range(offset_bytes, offset_bytes + length_bytes, LARGEST_TRANSFER):
                self.write(at, bytes(min(LARGEST_TRANSFER, offset_bytes + length_bytes - at)))
            return
        for at in range(offset_bytes, offset_bytes + length_bytes, LARGEST_ZEROING):
            with self._turn, self._asking(f"zeroing at byte {at}") as client:
                client.write_zeroes(at, min(LARGEST_ZEROING, offset_bytes + length_bytes - at))

    def flush(self) -> None:
        """QEMU hands over what it holds, and then the file is synced: QEMU itself never does, see ``create``."""
        if self._flags & n.NBD_FLAG_SEND_FLUSH:
            with self._asking("sync") as client:
                client.flush()
        try:
            os.fsync(self._container)
        except OSError as problem:
            raise DeviceError(f"{self.path}: sync failed ({problem.strerror})") from None

    def finish(self) -> None:
        """Let QEMU write its last table and end; nothing can be asked any more. The file has still to be synced.

        Raises :class:`~sqlimage.errors.DeviceError` where QEMU does not end well.
        """
        if self._flags & n.NBD_FLAG_SEND_FLUSH:
            with self._asking("writing") as client:
                client.flush()
        self._failure = "it is finished"
        for _ in self._connections:
            client = self._idle.get()
            with contextlib.suppress(BrokenConnection):
                client.disconnect()
        if not self._server.finish():
            raise DeviceError(f"{self.path}: qemu-nbd did not end well ({self._server.said})")
