"""A registry as a store: what is kept there, by whom it may be cleared away, how uploads survive lines that break."""

from __future__ import annotations

import hashlib
import json
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, StoreError
from sqlimage.transfer.stores.registry import IMAGE_TYPE, MANIFEST_TYPE, SEGMENT_TYPE, RegistryStore
from sqlimage.transfer.stores.wrappers import Checked, Retrying
from tests.make import misbehaving as bad
from tests.make.cutting import Cutting, cutting
from tests.make.misbehaving import misbehaving
from tests.make.servers import registry_server
from tests.make.small_registry import SmallRegistry, small_registry
from tests.transfer.stores.shelves import noise, segment_of

_SMALL, _LARGE = noise(1000, 1), noise(20 << 20, 2)
_PIECE = 8 << 20


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host of Debian's registry."""
    with registry_server(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def repository() -> str:
    return f"tests/{uuid.uuid4().hex}"


@pytest.fixture
def registry() -> Iterator[SmallRegistry]:
    with small_registry() as made:
        yield made


@pytest.fixture
def line(registry: SmallRegistry) -> Iterator[Cutting]:
    with cutting(registry.host) as made:
        yield made


def quick(host: str, repository: str = "a/shelf", **options: Any) -> RegistryStore:
    """A store that does not wait between attempts."""
    return RegistryStore(f"oci://{host}/{repository}", sleep=lambda _: None, **options)


def test_an_image_is_an_artifact_whose_layers_are_its_segments(debian: str, repository: str) -> None:
    store = quick(debian, repository)
    for content in (_SMALL, _LARGE):
        store.put(segment_of(content), content)
    store.publish("image", segment_of(_SMALL), [segment_of(_LARGE), segment_of(_SMALL)])
    request = urllib.request.Request(
        f"http://{debian}/v2/{repository}/manifests/image", headers={"Accept": MANIFEST_TYPE}
    )
    with urllib.request.urlopen(request) as answer:
        manifest = json.load(answer)
    assert manifest["mediaType"] == MANIFEST_TYPE
    assert manifest["artifactType"] == IMAGE_TYPE
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert manifest["layers"] == [
        {"mediaType": SEGMENT_TYPE, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}
        for content in (_SMALL, _LARGE)
    ]


def test_another_process_learns_what_it_has_to_keep(debian: str, repository: str) -> None:
    store = quick(debian, repository)
    for content in (_SMALL, _LARGE):
        store.put(segment_of(content), content)
    quick(debian, repository).publish("image", segment_of(_LARGE), [segment_of(_SMALL)])
    assert quick(debian, repository).get("image", 1 << 30) == _LARGE


def test_nothing_is_published_that_needs_what_is_missing(debian: str, repository: str) -> None:
    store = quick(debian, repository)
    store.put(segment_of(_SMALL), _SMALL)
    with pytest.raises(NotFoundError):
        store.publish("image", segment_of(_SMALL), [SEGMENTS + "0" * 64])
    assert store.head("image") is None


def test_a_segment_is_taken_over_from_another_repository(debian: str, repository: str) -> None:
    quick(debian, f"{repository}/base").put(segment_of(_LARGE), _LARGE)
    with cutting(debian) as line:
        store = quick(line.host, repository, mount_from=[f"{repository}/other", f"{repository}/base"])
        assert not store.put(segment_of(_LARGE), _LARGE), "nothing was sent, and that is told"
        assert sum(line.sent) < 10_000
        assert store.get(segment_of(_LARGE), 1 << 30) == _LARGE
        assert store.put(segment_of(_SMALL), _SMALL)
        assert store.get(segment_of(_SMALL), 1 << 30) == _SMALL


def test_what_is_there_is_not_sent_again(debian: str, repository: str) -> None:
    quick(debian, repository).put(segment_of(_LARGE), _LARGE)
    with cutting(debian) as line:
        quick(line.host, repository).put(segment_of(_LARGE), _LARGE)
        assert sum(line.sent) < 10_000


@pytest.mark.parametrize("cut", [3 << 20, 12 << 20, (20 << 20) + 1000], ids=["first", "second", "third"])
def test_an_upload_to_debians_registry_survives_a_cut(debian: str, repository: str, cut: int) -> None:
    with cutting(debian) as line:
        line.cuts = [cut]
        store = quick(line.host, repository)
        store.put(segment_of(_LARGE), _LARGE)
        assert store.get(segment_of(_LARGE), 1 << 30) == _LARGE


def test_a_name_that_a_version_has_is_refused(debian: str) -> None:
    with pytest.raises(UsageError, match="what a registry calls the version"):
        quick(debian).publish(f"version-{uuid.UUID(int=1)}", segment_of(_SMALL))


def test_segments_are_not_listed(debian: str, repository: str) -> None:
    with pytest.raises(RefusedError, match="does not tell its blobs"):
        list(quick(debian, repository).list(SEGMENTS))


def test_an_image_of_something_else_is_refused(registry: SmallRegistry) -> None:
    good = {"digest": "sha256:" + "0" * 64, "size": 5}
    for manifest in (
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"artifactType": "application/vnd.other", "layers": [good]}).encode(),
        *(
            json.dumps({"artifactType": IMAGE_TYPE, "layers": layers}).encode()
            for layers in ([], None, 5, ["x"], [good, {}], [{**good, "size": -1}], [{**good, "digest": "sha256:../x"}])
        ),
        b" " * (5 << 20),
    ):
        registry.manifests["a/shelf"] = {"image": manifest}
        with pytest.raises(StoreError):
            quick(registry.host).get("image", 1000)


def test_tags_come_in_pages_and_those_of_others_are_left_out(registry: SmallRegistry) -> None:
    tags = [f"image-{n}" for n in range(8)] + [f"version-{uuid.UUID(int=1)}", "sha256-x", "version-1"]
    registry.manifests["a/shelf"] = dict.fromkeys(tags, b"")
    store = quick(registry.host)
    assert sorted(store.list()) == sorted([*tags[:8], VERSIONS + str(uuid.UUID(int=1)), "sha256-x", "version-1"])
    assert registry.count("GET", "tags") == 4
    assert len(list(store.list("image"))) == 8


def test_an_upload_goes_on_where_the_registry_stands(registry: SmallRegistry, line: Cutting) -> None:
    line.cuts = [3 << 20, 2 << 20, 9 << 20]
    store = quick(line.host)
    store.put(segment_of(_LARGE), _LARGE)
    assert registry.blobs["a/shelf"] == {segment_of(_LARGE).replace(SEGMENTS, "sha256:"): _LARGE}
    assert registry.count("POST") == 1
    # what the cut connections had passed on was not sent again
    came = [int(told["content-range"].partition("-")[0]) for asked, _, told in registry.requests if asked == "PATCH"]
    assert came == sorted(set(came))
    assert len(came) == 5
    for at, cut in zip((came[1], came[2], came[4]), (3 << 20, 5 << 20, 14 << 20), strict=True):
        assert cut - 5000 < at < cut  # but for the headers
    assert len(_LARGE) < sum(line.sent) < len(_LARGE) + 50_000


def test_an_upload_whose_beginning_is_lost_begins_again(registry: SmallRegistry, line: Cutting) -> None:
    line.cuts = [600, 3 << 20]
    quick(line.host).put(segment_of(_LARGE), _LARGE)
    assert list(registry.blobs["a/shelf"].values()) == [_LARGE]


def test_a_line_that_breaks_too_often_is_an_error_that_may_pass(registry: SmallRegistry, line: Cutting) -> None:
    line.cuts = [1] * 1000
    with pytest.raises(StoreError) as raised:
        quick(line.host).put(segment_of(_LARGE), _LARGE)
    assert raised.value.is_transient


def test_a_small_blob_survives_a_cut(registry: SmallRegistry, line: Cutting) -> None:
    content = noise(1 << 20)
    line.cuts = [500_000, 500_000]
    quick(line.host).put(segment_of(content), content)
    assert list(registry.blobs["a/shelf"].values()) == [content]


def test_pieces_are_as_long_as_the_registry_wants_at_least(registry: SmallRegistry) -> None:
    registry.least_piece_bytes = 15 << 20
    quick(registry.host).put(segment_of(_LARGE), _LARGE)
    lengths = [int(told["content-length"]) for asked, _, told in registry.requests if asked == "PATCH"]
    assert lengths == [15 << 20, 5 << 20]


def test_what_the_registry_finds_not_to_match_is_no_silent_success(registry: SmallRegistry) -> None:
    registry.damages = 1
    with pytest.raises(StoreError, match=r"400 Bad Request \(DIGEST_INVALID\)"):
        quick(registry.host).put(segment_of(_SMALL), _SMALL)
    with pytest.raises(StoreError, match="400"):
        quick(registry.host).put(segment_of(_LARGE), _SMALL)
    assert registry.blobs["a/shelf"] == {}


def test_reading_goes_to_another_host_without_the_token(
    registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLIMAGE_REGISTRY_USER", "someone")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_PASSWORD", "secret")
    registry.password = "secret"
    with misbehaving(_SMALL) as storage:
        store = Retrying(Checked(quick(registry.host)), sleep=lambda _: None)
        store.put(segment_of(_SMALL), _SMALL)
        registry.blobs_at = storage.url
        storage.faults = [bad.status(503), bad.cut_after(100), bad.wrong_bytes]
        assert store.get(segment_of(_SMALL), 1000) == _SMALL
        assert store.get_range(segment_of(_SMALL), 100, 200) == _SMALL[100:300]
        assert store.head(segment_of(_SMALL)) == 1000
        assert [told for _, told in storage.requests if "authorization" in told] == []
        storage.always = bad.status(401)
        with pytest.raises(StoreError, match="401"):
            store.get(segment_of(_SMALL), 1000)


def test_an_upload_is_not_sent_on_to_another_place_with_the_token(
    registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLIMAGE_REGISTRY_USER", "someone")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_PASSWORD", "secret")
    registry.password = "secret"
    with small_registry() as other:
        other.uploads = registry.uploads
        registry.location_prefix = f"http://{other.host}"
        quick(registry.host).put(segment_of(_SMALL), _SMALL)
        assert [told for _, _, told in other.requests if "authorization" in told] == []
        assert other.count("PUT") == 1


def test_a_segment_that_was_cleared_away_meanwhile_is_told(registry: SmallRegistry) -> None:
    store = quick(registry.host)
    for content in (_SMALL, _LARGE):
        store.put(segment_of(content), content)
    del registry.blobs["a/shelf"][segment_of(_LARGE).replace(SEGMENTS, "sha256:")]
    with pytest.raises(StoreError, match="MANIFEST_BLOB_UNKNOWN") as raised:
        store.publish("image", segment_of(_SMALL), [segment_of(_LARGE)])
    assert raised.value.is_transient
    with pytest.raises(NotFoundError, match=segment_of(_LARGE)):
        Retrying(store, sleep=lambda _: None).publish("image", segment_of(_SMALL), [segment_of(_LARGE)])
    store.put(segment_of(_LARGE), _LARGE)
    store.publish("image", segment_of(_SMALL), [segment_of(_LARGE)])
