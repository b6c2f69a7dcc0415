"""One shelf of each kind, and a way to have it filled, for tests that say the same of all of them."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.contract import SEGMENTS, Store
from sqlimage.transfer.stores.directory import DirectoryStore
from sqlimage.transfer.stores.memory import MemoryStore
from sqlimage.transfer.stores.registry import RegistryStore
from tests.make.servers import BUCKET, registry_server, s3_server

KINDS = ("memory", "directory", "s3", "registry")
MakeStore = Callable[[], Store]


def segment_of(content: bytes) -> str:
    return SEGMENTS + hashlib.sha256(content).hexdigest()


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that are the same each time and nowhere like those of another seed."""
    return hashlib.shake_128(f"{seed}".encode()).digest(length)


@contextmanager
def shelves(kind: str, directory: Path) -> Iterator[MakeStore]:
    """What makes an empty shelf each time that it is called, on one server of this kind."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if kind == "memory":
            yield MemoryStore
        elif kind == "directory":
            yield lambda: DirectoryStore(directory / uuid.uuid4().hex)
        elif kind == "s3":
            _, environment = stack.enter_context(s3_server(directory))
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            yield lambda: CloudStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/shelf")
        else:
            host = stack.enter_context(registry_server(directory))
            yield lambda: RegistryStore(f"oci://{host}/{uuid.uuid4().hex}/shelf")
