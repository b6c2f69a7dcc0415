"""Encryption by file: what a glob names is found nowhere in the image without the key; all the rest is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlimage
from sqlimage.units import MIB
from tests.images import kept_bytes, noise, run_tool, tool
from tests.make import ntfs
from tests.make.encrypted import KEY, is_shown, with_key, without_keys

SECRETS = {
    "vault/small.txt": b"CANARY-resident: so short that it lies in the MFT",
    "vault/text.txt": b"CANARY-text: line after line. " * 4000,
    "vault/noise.bin": b"CANARY-noise" + noise("vault", 900_000),
    "elsewhere/budget.xlsx": b"CANARY-budget " * 30,
    "elsewhere/large budget.xlsx": b"CANARY-large-budget " * 60_000,
}
PLAIN = {
    "open/small.txt": b"anybody may read this",
    "open/text.txt": b"Nothing is hidden here. " * 5000,
    "open/noise.bin": noise("open", 700_000),
    "open/copy of noise.bin": b"CANARY-noise"[6:] + noise("copy", 20_000),
}
GLOBS = ("/VAULT", "*.xlsx")
CANARIES = (b"CANARY-resident", b"CANARY-text", b"CANARY-noise", b"CANARY-budget", b"CANARY-large-budget")


@pytest.fixture(autouse=True)
def no_key_is_known() -> Iterator[None]:
    without_keys()
    yield
    without_keys()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = ntfs.make_volume(tmp_path_factory.mktemp("volume") / "v.img", 24 * MIB)
    with ntfs.mounted(image) as root:
        ntfs.write_tree(root, SECRETS | PLAIN)
        (root / "open/text.txt:hidden").write_bytes(b"a stream of a plain file")
        (root / "vault/text.txt:hidden").write_bytes(b"CANARY-stream of a secret one")
    return image


@pytest.fixture(scope="module")
def image(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("image") / "i.sqlimage"
    report = sqlimage.capture(volume, target, encrypt=GLOBS, ways=[KEY])
    assert not report.warnings
    return target


def test_no_byte_of_the_files_is_in_the_image(image: Path) -> None:
    assert is_shown(image, *CANARIES, b"CANARY-stream") == []
    assert is_shown(image, b"anybody may read this", b"Nothing is hidden") == [
        b"anybody may read this",
        b"Nothing is hidden",
    ]


def test_no_digest_of_the_files_is_in_the_image(image: Path) -> None:
    digests = [hashlib.sha256(content).digest() for content in SECRETS.values()]
    assert is_shown(image, *digests) == []
    known = [hashlib.sha256(PLAIN["open/noise.bin"]).digest()]
    assert is_shown(image, *known) == known


def test_with_the_key_the_volume_comes_back_bit_for_bit(image: Path, volume: Path, tmp_path: Path) -> None:
    with_key()
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole
        sqlimage.restore(opened.version(), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == kept_bytes(image, volume.read_bytes())


def test_without_the_key_every_other_file_is_read(image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        version = opened.version()
        for path, content in PLAIN.items():
            with version.content(f"/{path}") as found:
                assert found.read(0, 1 << 22) == content
        assert {f"/{path}" for path in SECRETS} <= {row.path for row in version.below("/")}


@pytest.mark.parametrize("path", sorted(SECRETS))
def test_without_the_key_a_secret_file_says_what_it_needs(image: Path, path: str) -> None:
    done = run_tool("cat", image, f"/{path}")
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "is encrypted; it needs a key file" in done.stderr


def test_a_wrong_key_is_one_clear_line(image: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.key").write_bytes(b"another key altogether")
    done = run_tool("cat", image, "/vault/text.txt", "--key-file", tmp_path / "wrong.key")
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert "none of the keys that were given opens it" in done.stderr
    (tmp_path / "right.key").write_bytes(KEY.content)
    shown = tool("cat", image, "/vault/text.txt", "--key-file", tmp_path / "right.key")
    assert shown.encode() == SECRETS["vault/text.txt"]


def test_one_image_mixes_plain_compressed_and_encrypted(image: Path) -> None:
    with sqlimage.open(str(image)) as opened:
        flags = {row[0] for row in opened.database.rows("SELECT DISTINCT flags FROM data")}
        assert opened.version().control.encryption == "aes-256-gcm"
    assert flags == {0, 1, 2, 3}


def test_equal_files_are_stored_once_within_what_is_encrypted(tmp_path: Path) -> None:
    source = ntfs.make_volume(tmp_path / "v.img", 24 * MIB)
    content = b"CANARY" + noise("twice", 1_000_000)
    with ntfs.mounted(source) as root:
        ntfs.write_tree(root, {"a/one.bin": content, "a/two.bin": content, "b/three.bin": content})
    secret, plain = (
        sqlimage.capture(source, tmp_path / "secret", encrypt=["/a"], ways=[KEY]),
        sqlimage.capture(source, tmp_path / "plain"),
    )
    assert secret.repeated_bytes >= plain.repeated_bytes - 1_100_000
    assert plain.stored_bytes + 900_000 < secret.stored_bytes < plain.stored_bytes + 1_100_000


def test_defragmenting_on_the_way_leaves_nothing_behind(volume: Path, tmp_path: Path) -> None:
    image = tmp_path / "i.sqlimage"
    sqlimage.capture(volume, image, encrypt=GLOBS, ways=[KEY], defragment=True)
    assert is_shown(image, *CANARIES) == []
    with_key()
    with sqlimage.open(str(image)) as opened:
        assert sqlimage.verify(opened).is_whole
        for path, content in (SECRETS | PLAIN).items():
            with opened.version().content(f"/{path}") as found:
                assert found.read(0, 1 << 22) == content


def test_what_is_changed_later_stays_encrypted(image: Path, volume: Path, tmp_path: Path) -> None:
    copy = tmp_path / "i.sqlimage"
    copy.write_bytes(image.read_bytes())
    key = tmp_path / "key"
    key.write_bytes(KEY.content)
    new = tmp_path / "new.txt"
    new.write_bytes(b"CANARY-put: a new file in a secret place " * 10)
    assert run_tool("put", copy, new, "/vault/text.txt").returncode == 7
    tool("put", copy, new, "/vault/text.txt", "--key-file", key)
    tool("put", copy, new, "/vault/one more.txt", "--key-file", key)
    tool("mv", copy, "/vault/noise.bin", "/vault/renamed.bin", "--key-file", key)
    digest = hashlib.sha256(new.read_bytes()).digest()
    assert is_shown(copy, *CANARIES, b"CANARY-put", digest) == []
    with ntfs.mounted(volume) as root:
        (root / "vault/later.txt").write_bytes(b"CANARY-later " * 20_000)
    child = tmp_path / "child.sqlimage"
    tool("capture", volume, child, "--parent", copy, "--key-file", key)
    tool("capture", volume, copy, "--append", "--key-file", key)
    for where in (copy, child):
        assert is_shown(where, *CANARIES, b"CANARY-put", b"CANARY-later", digest) == []
        assert tool("cat", where, "/vault/later.txt", "--key-file", key).encode() == b"CANARY-later " * 20_000
        tool("verify", where, "--files", "--key-file", key)
    tool("merge", child, "--into", copy, "--key-file", key)
    tool("compact", copy, "--key-file", key)
    tool("flatten", child, tmp_path / "flat.sqlimage", "--key-file", key)
    for where in (copy, tmp_path / "flat.sqlimage"):
        assert is_shown(where, *CANARIES, b"CANARY-put", b"CANARY-later") == []
        tool("verify", where, "--key-file", key)
        shown = tool("cat", where, "/vault/later.txt", "--key-file", key)
        assert shown.encode() == b"CANARY-later " * 20_000


def test_a_child_of_a_plain_image_can_encrypt_what_is_new(volume: Path, tmp_path: Path) -> None:
    plain, child = tmp_path / "plain.sqlimage", tmp_path / "child.sqlimage"
    sqlimage.capture(volume, plain)
    with ntfs.mounted(volume) as root:
        (root / "open/fresh.txt").write_bytes(b"CANARY-fresh " * 20_000)
    with pytest.raises(sqlimage.RefusedError, match="is not encrypted, and what a child has"):
        sqlimage.capture(volume, child, parent=plain, encrypt_all=True, ways=[KEY])
    assert not child.exists()
    sqlimage.capture(volume, child, parent=plain, encrypt=["fresh.*"], ways=[KEY])
    sqlimage.capture(volume, plain, append=True, encrypt=["fresh.*"], ways=[KEY])
    for where in (child, plain):
        assert is_shown(where, b"CANARY-fresh") == []
        with sqlimage.open(str(where)) as opened, opened.version().content("/open/fresh.txt") as found:
            assert found.read(0, 1 << 20) == b"CANARY-fresh " * 20_000
    with pytest.raises(sqlimage.RefusedError, match="encrypted with different keys"):
        sqlimage.merge(child, plain)


def test_a_child_brings_its_key_into_the_file_of_its_parent(volume: Path, tmp_path: Path) -> None:
    plain, child = tmp_path / "plain.sqlimage", tmp_path / "child.sqlimage"
    sqlimage.capture(volume, plain)
    with ntfs.mounted(volume) as root:
        (root / "open/mine.txt").write_bytes(b"CANARY-mine " * 20_000)
    sqlimage.capture(volume, child, parent=plain, encrypt=["mine.*"], ways=[KEY])
    sqlimage.merge(child, plain)
    assert is_shown(plain, b"CANARY-mine") == []
    without_keys()
    assert run_tool("cat", plain, "/open/mine.txt").returncode == 7
    with_key()
    with sqlimage.open(str(plain)) as opened:
        assert sqlimage.verify(opened).is_whole


def test_a_volume_whose_files_are_not_read_is_encrypted_as_a_whole(tmp_path: Path) -> None:
    source = tmp_path / "raw.img"
    source.write_bytes(b"CANARY-raw " * 100_000)
    sqlimage.capture(source, tmp_path / "i.sqlimage", encrypt=["*.doc"], ways=[KEY])
    assert is_shown(tmp_path / "i.sqlimage", b"CANARY-raw") == []


def test_a_glob_that_matches_nothing_is_told(volume: Path, tmp_path: Path) -> None:
    report = sqlimage.capture(volume, tmp_path / "i.sqlimage", encrypt=["*.nothing", "*.xlsx"], ways=[KEY])
    assert report.warnings == ("no file matches --encrypt *.nothing",)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"encrypt": ["*.x"], "ways": []}, "needs a key"),
        ({"encrypt": [""], "ways": [KEY]}, "names no files"),
        ({"encrypt": ["*"], "encrypt_all": True, "ways": [KEY]}, "all files are encrypted already"),
        ({"ways": [KEY]}, "nothing is to be encrypted"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(
    volume: Path, tmp_path: Path, options: dict[str, object], told: str
) -> None:
    with pytest.raises(sqlimage.UsageError, match=told):
        sqlimage.capture(volume, tmp_path / "i.sqlimage", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "i.sqlimage").exists()
