"""A mount in the background, as a command would start one: ``python -m tests.mount.serve REQUEST``, a JSON object with
the fields of a mount request and ``devices`` (name to file); prints what was ready, or the error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlimage.errors import RefusedError, SqlimageError
from sqlimage.media.file import FileDevice, WritableFileDevice
from sqlimage.mount.background import error_from_json, start_in_background
from sqlimage.mount.session import MountEnd, MountRequest, error_as_json, mount

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    told: dict[str, Any] = json.loads(sys.argv[1])
    paths, log, end_fails = told.pop("devices"), told.pop("log"), told.pop("end_fails", False)
    request = MountRequest(**told)

    def on_end(end: MountEnd) -> dict[str, Any]:
        if end_fails:
            raise RefusedError("the end is refused", hint="try again")
        return {"kept": not end.discard, "clean": end.clean}

    def work(ready: Callable[[dict[str, Any]], None]) -> None:
        kind = WritableFileDevice if request.writable else FileDevice
        devices = {name: kind(path) for name, path in paths.items()}
        try:
            mount(devices, request, on_end=on_end, on_ready=ready)
        finally:
            for device in devices.values():
                device.close()

    try:
        print(json.dumps({"ready": start_in_background(work, log=log)}))
    except SqlimageError as problem:
        print(json.dumps({"error": error_as_json(problem)}))


def start(directory: Path, *, log: Path, devices: dict[str, Path], **request: Any) -> dict[str, Any]:
    """What was ready; raises the error."""
    told = {"directory": str(directory), "devices": {n: str(p) for n, p in devices.items()}, "log": str(log), **request}
    argv = [sys.executable, "-m", "tests.mount.serve", json.dumps(told)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise error_from_json(answer["error"])
    ready: dict[str, Any] = answer["ready"]
    return ready


if __name__ == "__main__":
    main()
