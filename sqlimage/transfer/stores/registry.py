"""A repository of an OCI registry (Distribution Specification 1.1) as a store.

A segment is a blob. What has a name of its own is a manifest under a tag, whose first layer is the segment that the
name stands for, and whose other layers are the segments that the registry must keep for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlimage.errors import NotFoundError, RefusedError, UsageError
from sqlimage.transfer.stores.asking import check_image, check_part, check_published, is_name, missing
from sqlimage.transfer.stores.contract import SEGMENTS, VERSIONS, Bytes, StoreError, address, check_name, digest_in
from sqlimage.transfer.stores.http import read_part
from sqlimage.transfer.stores.registry_auth import PUSH, RegistryLine, check_answer, error_words
from sqlimage.transfer.stores.registry_upload import upload
from sqlimage.transfer.stores.web import check_status, drain, length_told, read
from sqlimage.units import MIB

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
IMAGE_TYPE = "application/vnd.sqlimage.image.v1"
OBJECT_TYPE = "application/vnd.sqlimage.object.v1"
SEGMENT_TYPE = "application/vnd.sqlimage.segment.v1"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_EMPTY = b"{}"
_MOST_MANIFEST_BYTES = 4 * MIB
_MOST_PAGES = 10_000
_HEADS_AT_A_TIME = 8
_REPOSITORY = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_URL = re.compile(rf"(oci(?:\+https?)?)://((?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{{1,5}})?)/({_REPOSITORY})/?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')
_VERSION_TAG = "version-"


@dataclass(frozen=True)
class _Layer:
    digest: str
    size: int

    def descriptor(self, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


class RegistryStore:
    """``oci://host[:port]/repository``. Over https; in the clear to this machine itself, or with ``oci+http:``.

    ``mount_from`` names other repositories of the same registry that segments may be taken over from. A registry tells
    its tags, so :meth:`list` names images and versions; it does not tell its blobs.
    """

    def __init__(
        self,
        url: str,
        mount_from: Sequence[str] = (),
        *,
        silence_s: float = 60.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        found = _URL.fullmatch(url)
        if not found or len(found[3]) > 255:
            raise UsageError(
                f"{url.rpartition('@')[2]!r} names no repository of a registry",
                hint="write oci://host/repository, all of the repository in small letters",
            )
        scheme, host, self._repository = found[1], found[2], found[3]
        for repository in mount_from:
            if not re.fullmatch(_REPOSITORY, repository):
                raise UsageError(f"{repository!r} is not the name of a repository")
        host = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
        is_plain = scheme == "oci+http" or (scheme == "oci" and _is_this_machine(host))
        origin = f"{'http' if is_plain else 'https'}://{host}"
        self._where = f"{scheme}://{found[2]}/{self._repository}"
        self._base = f"{origin}/v2/{self._repository}"
        self._mount_from = [repository for repository in mount_from if repository != self._repository]
        self._sleep = sleep
        self._line = RegistryLine(origin, self._repository, self._where, silence_s=silence_s)
        self._emptying = threading.Lock()
        self._blobs: dict[str, int] = {}
        """Lengths of blobs that are known to be there."""
        self._tags: dict[str, _Layer] = {}
        """What names stand for, as it was when they were last begun to be read."""

    @property
    def where(self) -> str:
        return self._where

    def put(self, name: str, content: Bytes) -> bool:
        check_name(name)
        digest = digest_in(name)
        if digest:
            return self._put_blob(name, f"sha256:{digest}", content)
        _check_tag(name)
        layer = _Layer(f"sha256:{hashlib.sha256(content).hexdigest()}", memoryview(content).nbytes)
        was_sent = self._put_blob(name, layer.digest, content)
        self._tag(name, OBJECT_TYPE, [layer])
        return was_sent

    def get(self, name: str, most_bytes: int) -> bytes:
        layer = self._find(name, is_anew=True)
        what = self._told(name)
        with self._line.ask("GET", self._blob_url(layer), what=what) as response:
            check_status(response, what, 200)
            if max(length_told(response) or 0, layer.size) > most_bytes:
                raise StoreError(f"{what}: has more than the {most_bytes} bytes that it may have")
            return read(response, what, most_bytes)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        check_part(offset_bytes, length_bytes)
        layer = self._find(name)
        if not length_bytes:
            if digest_in(name) and self.head(name) is None:
                raise missing(self.where, name)
            return b""
        return read_part(self._line, self._blob_url(layer), self._told(name), {}, offset_bytes, length_bytes)

    def head(self, name: str) -> int | None:
        try:
            layer = self._find(name, is_anew=True)
        except NotFoundError:
            return None
        if not digest_in(name):
            return layer.size
        what = self._told(name)
        with self._line.ask("HEAD", self._blob_url(layer), what=what) as response:
            if response.status_code == 404:
                return None
            check_status(response, what, 200)
            length = length_told(response)
        if length is None:
            raise StoreError(f"{what}: the registry does not tell how long it is")
        self._blobs[layer.digest] = length
        return length

    def list(self, prefix: str = "") -> Iterator[str]:
        if prefix.startswith(SEGMENTS):
            raise RefusedError(
                f"{self.where}: a registry does not tell its blobs", hint="ask for a segment by its name"
            )
        url = f"{self._base}/tags/list?n=1000"
        for _ in range(_MOST_PAGES):
            with self._line.ask("GET", url, what=self.where) as response:
                if response.status_code == 404:  # nothing was ever put here
                    return
                check_answer(response, self.where, 200)
                tags = _parse(read(response, self.where, _MOST_MANIFEST_BYTES), self.where).get("tags") or []
                following = _NEXT.search(response.headers.get("Link", ""))
                url = str(self._line.url(following[1], str(response.url))) if following else ""
            for tag in tags if isinstance(tags, list) else []:
                name = _name_of(tag)
                if name is not None and name.startswith(prefix):
                    yield name
            if not url:
                return

    def publish(self, name: str, segment: str, keep: Sequence[str] = ()) -> None:
        check_published(name, segment, keep)
        _check_tag(name)
        wanted = list(dict.fromkeys([segment, *keep]))
        self._learn_lengths([other for other in wanted if f"sha256:{digest_in(other)}" not in self._blobs], name)
        layers = [_Layer(digest, self._blobs[digest]) for digest in (f"sha256:{digest_in(other)}" for other in wanted)]
        self._tag(name, IMAGE_TYPE, layers)

    def first(self, name: str) -> str:
        check_image(name)
        layer = self._find(name, is_anew=True)
        return f"{SEGMENTS}{layer.digest.removeprefix('sha256:')}"

    def close(self) -> None:
        self._line.close()

    def _learn_lengths(self, segments: Sequence[str], name: str) -> None:
        """A manifest tells the length of each of its layers: those that the last one told, the others one by one."""
        if len(segments) > 1:
            with contextlib.suppress(NotFoundError, StoreError):  # there may be none, or none that helps
                self._fetch(name)
            segments = [segment for segment in segments if f"sha256:{digest_in(segment)}" not in self._blobs]
        if not segments:
            return
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
            for segment, length in zip(segments, pool.map(self.head, segments), strict=True):
                if length is None:
                    raise missing(self.where, segment)

    def _put_blob(self, name: str, digest: str, content: Bytes) -> bool:
        """Whether it was sent: it may be there, or in another repository of the same registry."""
        what = self._told(name)
        length = memoryview(content).nbytes
        with self._line.ask("HEAD", f"{self._base}/blobs/{digest}", what=what) as response:
            is_there = response.status_code == 200 and length_told(response) in (None, length)
        was_sent = not is_there and upload(self._line, self._base, what, digest, content, self._mount_from, self._sleep)
        self._blobs[digest] = length
        return was_sent

    def _tag(self, name: str, artifact_type: str, layers: Sequence[_Layer]) -> None:
        empty = _Layer(f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}", len(_EMPTY))
        with self._emptying:  # by one thread alone: see below
            if empty.digest not in self._blobs:
                self._put_blob(name, empty.digest, _EMPTY)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": artifact_type,
            "config": {**empty.descriptor(_EMPTY_TYPE), "data": "e30="},
            "layers": [layer.descriptor(SEGMENT_TYPE) for layer in layers],
        }
        content = json.dumps(manifest, separators=(",", ":")).encode()
        what = self._told(name)
        if len(content) > _MOST_MANIFEST_BYTES:
            raise StoreError(f"{what}: {len(layers)} segments are more than a registry can keep for one name")
        url = f"{self._base}/manifests/{_tag_of(name)}"
        headers = {"Content-Type": MANIFEST_TYPE}
        with self._line.ask("PUT", url, what=what, headers=headers, body=content, kind=PUSH) as response:
            if response.status_code in (400, 404):
                words = error_words(response, what)
                is_missing = "MANIFEST_BLOB_UNKNOWN" in words
                if is_missing:  # it was cleared away; or Debian's registry, which writes in place, just writes it anew
                    self._blobs.clear()
                told = f"{what}: the registry does not take its manifest ({', '.join(words)})"
                raise StoreError(told, is_transient=is_missing)
            check_answer(response, what, 201, 200, 202)
            drain(response)
        self._tags[name] = layers[0]

    def _find(self, name: str, *, is_anew: bool = False) -> _Layer:
        """The blob that a name stands for."""
        check_name(name)
        if digest := digest_in(name):
            return _Layer(f"sha256:{digest}", 0)
        _check_tag(name)
        found = None if is_anew else self._tags.get(name)
        return found or self._fetch(name)

    def _fetch(self, name: str) -> _Layer:
        what = self._told(name)
        url = f"{self._base}/manifests/{_tag_of(name)}"
        with self._line.ask("GET", url, what=what, headers={"Accept": MANIFEST_TYPE}) as response:
            check_answer(response, what, 200)
            layers = _layers_in(_parse(read(response, what, _MOST_MANIFEST_BYTES), what), what)
        self._blobs.update((layer.digest, layer.size) for layer in layers)
        self._tags[name] = layers[0]
        return layers[0]

    def _blob_url(self, layer: _Layer) -> str:
        return f"{self._base}/blobs/{layer.digest}"

    def _told(self, name: str) -> str:
        return f"{self.where}/{name}" if digest_in(name) else address(self, _tag_of(name))


def _parse(content: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{what}: the registry's answer is not what the specification says")
    return found


def _layers_in(manifest: dict[str, Any], what: str) -> list[_Layer]:
    if manifest.get("artifactType") not in (IMAGE_TYPE, OBJECT_TYPE):
        raise StoreError(f"{what}: is something else than an image of sqlimage", hint="name another tag")
    layers = manifest.get("layers")
    found = []
    for layer in layers if isinstance(layers, list) else []:
        digest, size = (layer.get("digest"), layer.get("size")) if isinstance(layer, dict) else (None, None)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise StoreError(f"{what}: its manifest is damaged")
        found.append(_Layer(digest, size))
    if not found:
        raise StoreError(f"{what}: its manifest is damaged")
    return found


def _tag_of(name: str) -> str:
    return name.replace(VERSIONS, _VERSION_TAG, 1) if name.startswith(VERSIONS) else name


def _name_of(tag: object) -> str | None:
    """The name that a tag stands for; None for tags that are not from here."""
    if not isinstance(tag, str):
        return None
    version = VERSIONS + tag[len(_VERSION_TAG) :]
    name = version if tag.startswith(_VERSION_TAG) and is_name(version) else tag
    return name if is_name(name) and not digest_in(name) else None


def _check_tag(name: str) -> None:
    if _name_of(_tag_of(name)) != name:
        raise UsageError(
            f"{name!r} is what a registry calls the version {_name_of(name)!r}", hint="choose another name"
        )


def _is_this_machine(host: str) -> bool:
    return urllib.parse.urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1", "::1")
