"""Whoever reads while versions are rearranged gets right bytes or one clear error, never those of something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from tests.image.edits import SIZE, captured, check_whole, medium
from tests.images import noise

UNIT = 4096


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """An image of six versions and what each reads as."""
    content = bytearray(medium(UNIT))
    image = captured(tmp_path / "i.sqlimage", bytes(content), UNIT)
    contents = [bytes(content)]
    for number in range(1, 6):
        with sqlimage.open(str(image), writable=True) as opened, opened.edit(label=f"v{number}") as edit:
            for place in range(number, SIZE // UNIT, 7):
                block = noise((number, place), UNIT)
                edit.driver.write(place * UNIT, block)
                content[place * UNIT : (place + 1) * UNIT] = block
        contents.append(bytes(content))
    return image, contents


@pytest.fixture
def reading(chain: tuple[Path, list[bytes]]) -> Iterator[tuple[Path, list[bytes], sqlimage.ImageDriver]]:
    """The same, with a reader of the newest version that has read a little of it."""
    image, contents = chain
    with sqlimage.open(str(image)) as opened:
        driver = opened.driver("6")
        assert driver.read(0, 3 * UNIT) == contents[-1][: 3 * UNIT]
        yield image, contents, driver
        driver.close()


def squash(image: Path) -> None:
    sqlimage.squash(image, "1", "6")


def compact(image: Path) -> None:
    assert sqlimage.compact(image).recut_contents > 0


def rebase(image: Path) -> None:
    sqlimage.rebase(image, image, version="6", onto_version="1")


def several(image: Path) -> None:
    """Numbers of contents are given anew in between."""
    squash(image)
    compact(image)
    with sqlimage.open(str(image), writable=True) as opened, opened.edit() as edit:
        edit.driver.write(0, noise("others", 40 * UNIT))
    sqlimage.prune(image, ["7"])
    sqlimage.capture(sqlimage.MemoryDevice(noise("something else", SIZE)), image, append=True)


@pytest.mark.parametrize("rearrange", [squash, compact, rebase, several])
def test_a_reader_goes_on_reading_its_version(
    reading: tuple[Path, list[bytes], sqlimage.ImageDriver], rearrange: object
) -> None:
    image, contents, driver = reading
    assert callable(rearrange)
    rearrange(image)
    assert driver.read(0, SIZE) == contents[-1]
    data = sum(extent.length_bytes for extent in driver.extents(0, SIZE) if extent.is_data)
    assert 0 < data <= SIZE
    check_whole(image)


def test_a_reader_of_a_version_that_is_gone_is_told_and_gets_no_bytes(chain: tuple[Path, list[bytes]]) -> None:
    image, contents = chain
    with sqlimage.open(str(image)) as opened:
        driver = opened.driver("6")
        driver.read(0, UNIT)
        uuid = opened.version("6").control.uuid
        sqlimage.prune(image, ["6"])
        sqlimage.capture(sqlimage.MemoryDevice(noise("something else", SIZE)), image, append=True)
        with pytest.raises(sqlimage.NotFoundError, match=uuid):
            driver.read(0, SIZE)
        driver.close()
        restored = image.with_name("restored.raw")
        sqlimage.restore(opened.version("5"), restored)
        assert restored.read_bytes() == contents[4]


def test_the_parent_of_an_edit_in_another_file_may_be_rearranged(
    tmp_path: Path, chain: tuple[Path, list[bytes]]
) -> None:
    image, contents = chain
    child = tmp_path / "child.sqlimage"
    with sqlimage.open(str(image)) as opened, opened.edit("6", into=child) as edit:
        edit.driver.write(0, b"first")
        edit.driver.flush()
        with pytest.raises(sqlimage.RefusedError, match=r"child\.sqlimage.*is being written"):
            sqlimage.squash(image, "1", "6")
        edit.driver.write(UNIT, contents[0][UNIT : 2 * UNIT])
    with sqlimage.open(str(child)) as opened:
        driver = opened.driver()
        driver.read(0, UNIT)
        sqlimage.squash(image, "1", "6")
        expected = b"first" + contents[-1][5:UNIT] + contents[0][UNIT : 2 * UNIT] + contents[-1][2 * UNIT :]
        assert driver.read(0, SIZE) == expected
        driver.close()
    check_whole(child)
