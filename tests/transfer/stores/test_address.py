"""Addresses of images: the shelf and the name that they lead to, and what is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sqlimage.errors import UsageError
from sqlimage.transfer.stores.address import is_url, open_store
from sqlimage.transfer.stores.cloud import CloudStore
from sqlimage.transfer.stores.directory import DirectoryStore
from sqlimage.transfer.stores.http import HttpStore
from sqlimage.transfer.stores.registry import RegistryStore

_GOOD = {
    "file:///srv/images/web.sqlimage": (DirectoryStore, "/srv/images", "web.sqlimage"),
    "file://localhost/srv/a%20b/web": (DirectoryStore, "/srv/a b", "web"),
    "http://host/web": (HttpStore, "http://host", "web"),
    "https://host:8443/a/b/web.sqlimage": (HttpStore, "https://host:8443/a/b", "web.sqlimage"),
    "HTTPS://host/a/web": (HttpStore, "https://host/a", "web"),
    "https://someone:secret@host/a/web": (HttpStore, "https://host/a", "web"),
    "s3://bucket/web": (CloudStore, "s3://bucket", "web"),
    "s3://bucket/a/b/web": (CloudStore, "s3://bucket/a/b", "web"),
    "gs://bucket/a/web": (CloudStore, "gs://bucket/a", "web"),
    "oci://host/web": (RegistryStore, "oci://host/web", "latest"),
    "oci://host:5000/a/b/web:1.2": (RegistryStore, "oci://host:5000/a/b/web", "1.2"),
    "oci+http://host/a:x": (RegistryStore, "oci+http://host/a", "x"),
    "oci+https://[::1]:5000/a:x": (RegistryStore, "oci+https://[::1]:5000/a", "x"),
}


@pytest.mark.parametrize("url", _GOOD)
def test_an_address_leads_to_a_shelf_and_a_name(url: str) -> None:
    kind, where, name = _GOOD[url]
    store, found = open_store(url)
    assert (type(store), store.where, found) == (kind, where, name)
    assert is_url(url)
    store.close()


def test_an_address_in_azure_names_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store, name = open_store("az://container/a/web")
    assert (store.where, name) == ("az://container/a", "web")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/web",
        "nbd://host/web",
        "/srv/web",
        "web",
        "https://host",
        "https://host/",
        "https:///web",
        "https://host/web?version=1",
        "https://host/web#part",
        "https://host/.web",
        "https://host/a%20b",
        "https://host:port/web",
        "file://elsewhere/srv/web",
        "file:///srv/",
        "file:///srv/%00/web",
        "s3://bucket",
        "s3:///web",
        "s3://bucket/../web",
        "s3://key:secret@bucket/web",
        "az://",
        "oci://host",
        "oci://host/Upper:tag",
        "oci://host/web:",
        "oci://host/web:-tag",
        "oci://host/web@sha256:0000",
        "oci://someone:secret@host/web",
        "oci://host/a//b",
        "oci+ftp://host/a",
        "oci://host/" + "a" * 256,
    ],
)
def test_what_is_no_address_of_an_image_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_store(url)
    assert "secret" not in str(raised.value)


def test_a_repository_to_take_segments_over_from_has_the_name_of_one() -> None:
    open_store("oci://host/a", mount_from=["other/one"])
    with pytest.raises(UsageError):
        open_store("oci://host/a", mount_from=["Other?x"])


@pytest.mark.parametrize("path", ["/srv/web", "web.sqlimage", "a:b", "c:/x", "", "//host/x", "1://x"])
def test_a_path_is_no_address(path: str) -> None:
    assert not is_url(path)


def test_nothing_loads_what_a_local_image_does_not_need() -> None:
    script = (
        "import sys; from sqlimage.transfer.stores import address, wrappers, memory\n"
        "address.open_store('file:///srv/web')\n"
        "print(sorted({'httpx', 'obstore', 'httpcore', 'ssl', 'email.utils'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "url"), [("httpx", "https://host/x"), ("obstore", "s3://b/x"), ("httpx", "oci://h/x")]
)
def test_a_missing_extra_is_named(module: str, url: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError")
    script = f"from sqlimage.transfer.stores.address import open_store; open_store({url!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=False
    )
    assert "UsageError" in done.stderr.splitlines()[-1]
    assert "pip install 'sqlimage[remote]'" in done.stderr.splitlines()[-1]
