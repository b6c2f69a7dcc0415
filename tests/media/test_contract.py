"""What MUST hold for every device (``sqlimage/device.py``), tried on all of them against a ``bytearray``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlimage.device import BlockDevice, WritableDevice
from sqlimage.errors import DeviceError
from tests.media.kinds import KINDS, WRITABLE

SIZE = 160 * 1024 + 1536
"""Whole sectors, for block devices, but no whole pages."""
CONTENT = bytearray(SIZE)
for _cell in (0, 3, 4, 5, 11, 20, 21, 39, 40):
    CONTENT[_cell * 4096 : min(SIZE, (_cell + 1) * 4096)] = random.Random(_cell).randbytes(
        min(SIZE, (_cell + 1) * 4096) - _cell * 4096
    )


@dataclass(frozen=True)
class Operation:
    name: str
    offset: int
    length: int
    seed: int

    def data(self) -> bytes:
        return random.Random(self.seed).randbytes(self.length)


@st.composite
def operations(draw: st.DrawFn, names: tuple[str, ...]) -> list[Operation]:
    """Ranges anywhere, with a liking for the borders of sectors, pages and of the device."""
    border = st.sampled_from([0, 511, 512, 4095, 4096, 8192, SIZE - 512, SIZE - 1, SIZE])
    place = st.one_of(border, st.integers(0, SIZE))
    length = st.one_of(st.sampled_from([0, 1, 512, 4096, 65536]), st.integers(0, SIZE))
    steps = draw(st.lists(st.tuples(st.sampled_from(names), place, length, st.integers(0, 1 << 30)), max_size=12))
    return [Operation(name, at, min(long, SIZE - at), seed) for name, at, long, seed in steps]


@pytest.fixture(params=list(KINDS))
def device(request: pytest.FixtureRequest) -> Iterator[BlockDevice]:
    with KINDS[request.param](bytes(CONTENT)) as made:
        yield made


@pytest.fixture(params=WRITABLE)
def writable(request: pytest.FixtureRequest) -> Iterator[WritableDevice]:
    with KINDS[request.param](bytes(CONTENT)) as made:
        assert isinstance(made, WritableDevice)
        yield made


def check_extents(device: BlockDevice, model: bytes | bytearray, offset: int, length: int) -> None:
    """Exact cover, in order, and nothing but zeros where zeros are claimed."""
    at = offset
    for extent in device.extents(offset, length):
        assert extent.offset_bytes == at
        assert extent.length_bytes > 0
        at += extent.length_bytes
        assert extent.is_data or not any(model[extent.offset_bytes : at])
    assert at == offset + length


def test_describes_itself(device: BlockDevice) -> None:
    assert device.size_bytes == SIZE
    assert device.bytes_per_sector == 512


def test_only_writable_devices_claim_to_be(device: BlockDevice, request: pytest.FixtureRequest) -> None:
    assert isinstance(device, BlockDevice)
    assert isinstance(device, WritableDevice) == (request.node.callspec.params["device"] in WRITABLE)


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_agrees_with_a_bytearray(kind: str, data: st.DataObject) -> None:
    names: tuple[str, ...] = ("read", "read_into", "extents")
    if kind in WRITABLE:
        names += ("write", "write_view", "zero", "flush")
    steps = data.draw(operations(names))
    model = bytearray(CONTENT)
    with KINDS[kind](bytes(CONTENT)) as device:
        for step in steps:
            _apply(device, model, step)
        assert device.read(0, SIZE) == model
        check_extents(device, model, 0, SIZE)


def _apply(device: BlockDevice, model: bytearray, step: Operation) -> None:
    end = step.offset + step.length
    match step.name:
        case "read":
            answer = device.read(step.offset, step.length)
            assert type(answer) is bytes
            assert answer == model[step.offset : end]
        case "read_into":
            around = bytearray(b"\xaa" * (step.length + 16))
            device.read_into(step.offset, memoryview(around)[8:-8])
            assert around == b"\xaa" * 8 + model[step.offset : end] + b"\xaa" * 8
        case "extents":
            check_extents(device, model, step.offset, step.length)
        case "write":
            assert isinstance(device, WritableDevice)
            device.write(step.offset, step.data())
            model[step.offset : end] = step.data()
        case "write_view":
            assert isinstance(device, WritableDevice)
            device.write(step.offset, memoryview(bytearray(step.data())))
            model[step.offset : end] = step.data()
        case "zero":
            assert isinstance(device, WritableDevice)
            device.zero(step.offset, step.length)
            model[step.offset : end] = bytes(step.length)
        case "flush":
            assert isinstance(device, WritableDevice)
            device.flush()


OUTSIDE = [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 1), (-1, 2), (SIZE + 512, 0), (1 << 62, 512), (1 << 64, 1)]


@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
def test_refuses_reads_outside(device: BlockDevice, offset: int, length: int) -> None:
    with pytest.raises(DeviceError, match=f"the device has {SIZE}"):
        device.read(offset, length)
    if length <= SIZE + 1:
        buffer = bytearray(b"\xaa" * length)
        with pytest.raises(DeviceError):
            device.read_into(offset, buffer)
        assert set(buffer) <= {0xAA}
    with pytest.raises(DeviceError):
        list(device.extents(offset, length))


def test_refuses_negative_lengths(device: BlockDevice) -> None:
    with pytest.raises(DeviceError):
        device.read(512, -1)
    with pytest.raises(DeviceError):
        list(device.extents(512, -1))


@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
def test_refuses_writes_outside_and_writes_nothing(writable: WritableDevice, offset: int, length: int) -> None:
    with pytest.raises(DeviceError):
        writable.write(offset, b"\x55" * length)
    with pytest.raises(DeviceError):
        writable.zero(offset, length)
    with pytest.raises(DeviceError):
        writable.zero(SIZE, -512)
    assert writable.size_bytes == SIZE
    assert writable.read(0, SIZE) == CONTENT


@pytest.mark.parametrize("at", [0, 1, 512, SIZE])
def test_empty_requests_inside_are_allowed(writable: WritableDevice, at: int) -> None:
    assert writable.read(at, 0) == b""
    writable.read_into(at, bytearray())
    assert list(writable.extents(at, 0)) == []
    writable.write(at, b"")
    writable.zero(at, 0)
    assert writable.read(0, SIZE) == CONTENT


def test_reads_from_several_threads_do_not_disturb_each_other(device: BlockDevice) -> None:
    def reader(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            at = chance.randrange(SIZE)
            length = chance.randrange(min(20_000, SIZE - at) + 1)
            buffer = bytearray(length)
            device.read_into(at, buffer)
            assert buffer == CONTENT[at : at + length], (seed, at, length)
            check_extents(device, CONTENT, at, length)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(reader, seed) for seed in range(6)]:
            done.result()


def test_several_threads_write_beside_each_other(writable: WritableDevice) -> None:
    threads = 6
    share = SIZE // threads

    def writer(index: int) -> bytes:
        chance = random.Random(index)
        low = index * share
        model = CONTENT[low : low + share]
        for _ in range(100):
            at = chance.randrange(share)
            length = chance.randrange(min(9_000, share - at) + 1)
            data = chance.randbytes(length)
            if chance.random() < 0.3:
                writable.zero(low + at, length)
                data = bytes(length)
            else:
                writable.write(low + at, data)
            model[at : at + length] = data
            assert writable.read(low, share) == model, (index, at, length)
        writable.flush()
        return bytes(model)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(writer, range(threads)))
    assert writable.read(0, SIZE) == b"".join(parts) + CONTENT[threads * share :]


def test_closing_twice_is_allowed(device: BlockDevice) -> None:
    device.close()
    device.close()
