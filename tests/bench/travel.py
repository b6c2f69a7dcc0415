"""Measures travelling: ``python -m tests.bench.travel --corpus DIR [--repeat 5] [--json FILE] [--work DIR]``

The captured NTFS volume is pushed to a local S3 server (SeaweedFS) and pulled from it, in turn with a plain copy of the
same file by the same client library (obstore), synced to the disk. Then what a second push sends after 2% of the volume
have changed, and what the first byte of a file at a URL costs. Prints Markdown; exit code 1 where a bar was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import obstore
from obstore.store import S3Store

import sqlimage
from sqlimage.streams.database import Database
from sqlimage.transfer import opening, places
from sqlimage.transfer.push import PushReport
from sqlimage.transfer.stores.asking import reference
from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.contract import SEGMENTS, Content, Store
from sqlimage.transfer.stores.wrappers import Wrapped
from sqlimage.units import MIB
from tests.bench.run import describe_machine
from tests.make.servers import BUCKET, s3_server

ASKED = 0.8
"""Of the speed of a plain copy."""
MOST_REQUESTS, MOST_BYTES = 4, MIB
MOST_SENT = 1.05
"""Of a child's own data."""
_PLAIN, _OURS = "plain", "sqlimage"


@dataclass(frozen=True)
class FirstByte:
    """What it cost at the server until the first byte of a file was there."""

    path: str
    requests: int
    received_bytes: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the report; returns the exit code."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.work or options.corpus) as work:
        place = Path(work)
        image, child = place / "ntfs.sqlimage", place / "child.sqlimage"
        os.environ[places.CACHE_VARIABLE] = str(place / "cache")
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        print("capturing", file=sys.stderr, flush=True)
        sqlimage.capture(str(options.corpus / "ntfs.img"), str(image))
        sqlimage.capture(str(options.corpus / "ntfs_v2.img"), str(child), parent=str(image))
        times: dict[str, dict[str, list[float]]] = {job: {_PLAIN: [], _OURS: []} for job in ("push", "pull")}
        for turn in range(options.repeat):
            print(f"{turn + 1} of {options.repeat}", file=sys.stderr, flush=True)
            with _server(place / "server"):
                _round(image, place, times)
        with _server(place / "server"):
            sqlimage.push(str(image), None, f"s3://{BUCKET}/shelf/ntfs.sqlimage")
            second = sqlimage.push(str(child), None, f"s3://{BUCKET}/shelf/child.sqlimage")
            first = _first_byte(f"s3://{BUCKET}/shelf/ntfs.sqlimage", image)
        own = _own_bytes(child)
    ratios = {job: median(a / b for a, b in zip(both[_PLAIN], both[_OURS], strict=True)) for job, both in times.items()}
    print(report(times, ratios, second, own, first))
    if options.json:
        told = {"machine": describe_machine(), "seconds": times, "sent": second.sent_bytes, "own": own}
        options.json.write_text(json.dumps({**told, "first_byte": asdict(first)}, indent=1) + "\n")
    is_first_cheap = first.requests <= MOST_REQUESTS and first.received_bytes <= MOST_BYTES
    return 0 if min(ratios.values()) >= ASKED and second.sent_bytes <= own * MOST_SENT and is_first_cheap else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.travel", description="Pushing and pulling.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    return parser


@contextmanager
def _server(directory: Path) -> Iterator[None]:
    """A server that holds nothing yet, and the environment in which it is found."""
    shutil.rmtree(directory, ignore_errors=True)
    with s3_server(directory) as (_, environment):
        os.environ.update(environment)
        yield


def _round(image: Path, place: Path, times: dict[str, dict[str, list[float]]]) -> None:
    store = S3Store.from_url(
        f"s3://{BUCKET}/plain", client_options={"allow_http": True}, endpoint=os.environ["AWS_ENDPOINT_URL"]
    )
    url = f"s3://{BUCKET}/shelf/ntfs.sqlimage"
    jobs: dict[str, dict[str, Callable[[], object]]] = {
        "push": {
            _PLAIN: lambda: obstore.put(store, "ntfs.sqlimage", image),
            _OURS: lambda: sqlimage.push(str(image), None, url),
        },
        "pull": {
            _PLAIN: lambda: _plain_get(store, place / "plain.sqlimage"),
            _OURS: lambda: sqlimage.pull(url, str(place / "pulled.sqlimage")),
        },
    }
    for job, both in jobs.items():
        for name, action in both.items():
            os.sync()
            began = time.perf_counter()
            action()
            times[job][name].append(time.perf_counter() - began)
    (place / "plain.sqlimage").unlink()
    (place / "pulled.sqlimage").unlink()


def _plain_get(store: S3Store, target: Path) -> None:
    with target.open("wb") as file:
        for block in obstore.get(store, "ntfs.sqlimage").stream():
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _own_bytes(image: Path) -> int:
    with Database.open(str(image)) as database:
        row = database.row("SELECT sum(stored_bytes) FROM data WHERE bytes IS NOT NULL")
        assert row is not None
        return int(row[0])


class _Asked(Wrapped):
    """Counts what a store is asked for."""

    requests = received = 0

    def get(self, name: str, most_bytes: int) -> Content:
        return self._count(super().get(name, most_bytes))

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(self._count(super().get_range(name, offset_bytes, length_bytes)))

    def first(self, name: str) -> str:
        self.requests += 1
        self.received += len(reference(f"{SEGMENTS}{'0' * 64}"))
        return super().first(name)

    def head(self, name: str) -> int | None:
        self.requests += 1
        return super().head(name)

    def _count(self, content: Content) -> Content:
        self.requests += 1
        self.received += len(content)
        return content


def _first_byte(url: str, image: Path) -> FirstByte:
    """Of a file in the middle of the medium."""
    with sqlimage.open(str(image)) as opened:
        rows = opened.database.rows(
            "SELECT path FROM file WHERE kind = 'file' AND bytes BETWEEN 20000 AND 200000 ORDER BY path"
        )
        path = str(rows[len(rows) // 2][0])
    asked = _Asked(CloudStore(url.rpartition("/")[0]))
    usual = opening.open_store  # type: ignore[attr-defined]  # it is imported there

    def open_counted(_url: str) -> tuple[Store, str]:
        return asked, url.rpartition("/")[2]

    opening.open_store = open_counted  # type: ignore[assignment, attr-defined]
    began = time.perf_counter()
    try:
        local = opening.local_image(url, with_rest=False)
        with sqlimage.open(local) as opened, opened.version().content(path) as content:
            content.read(0, 1)
    finally:
        opening.open_store = usual  # type: ignore[attr-defined]
    return FirstByte(path, asked.requests, asked.received, time.perf_counter() - began)


def report(
    times: dict[str, dict[str, list[float]]], ratios: dict[str, float], second: PushReport, own: int, first: FirstByte
) -> str:
    """Markdown."""
    machine = ", ".join(f"{name}: {told}" for name, told in describe_machine().items())
    lines = [
        machine,
        "",
        "| | plain copy, s | sqlimage, s | speed / plain | asked |",
        "|---|---|---|---|---|",
    ]
    for job, both in times.items():
        shown = [f"{median(both[name]):.2f} ({min(both[name]):.2f}-{max(both[name]):.2f})" for name in (_PLAIN, _OURS)]
        lines.append(f"| {job} | {shown[0]} | {shown[1]} | {ratios[job]:.2f} | {ASKED} |")
    lines += [
        "",
        f"second push: {second.sent_bytes / 1e6:.2f} MB sent, the child's own data is {own / 1e6:.2f} MB: "
        f"{second.sent_bytes / own:.3f} (asked: {MOST_SENT})",
        f"first byte of {first.path}: {first.requests} requests, {first.received_bytes} bytes, "
        f"{first.seconds:.2f} s (asked: under {MOST_REQUESTS + 1}, {MOST_BYTES})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
