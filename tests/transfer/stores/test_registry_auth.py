"""Who a registry believes one to be: passwords, tokens, and where they come from; and that nobody else learns them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlimage.transfer.stores.contract import StoreError
from sqlimage.transfer.stores.registry import RegistryStore
from sqlimage.transfer.stores.registry_credentials import Credentials, find_credentials
from tests.make.misbehaving import make_certificate, misbehaving, status
from tests.make.servers import registry_server
from tests.make.small_registry import SmallRegistry, small_registry
from tests.transfer.stores.shelves import noise, segment_of

_SMALL, _LARGE = noise(1000, 1), noise(20 << 20, 2)


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those that a test gives."""
    for name in ("SQLIMAGE_REGISTRY_USER", "SQLIMAGE_REGISTRY_PASSWORD", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLIMAGE_REGISTRY_USER", "someone")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_PASSWORD", "s3cr3t")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's registry with a password."""
    import bcrypt

    line = "someone:" + bcrypt.hashpw(b"s3cr3t", bcrypt.gensalt(4, prefix=b"2a")).decode()
    with registry_server(tmp_path_factory.mktemp("closed"), htpasswd=line) as host:
        yield host


@pytest.fixture
def registry() -> Iterator[SmallRegistry]:
    with small_registry() as made:
        made.password = "s3cr3t"
        yield made


def use(host: str) -> None:
    store = RegistryStore(f"oci://{host}/a/shelf", sleep=lambda _: None)
    for content in (_SMALL, _LARGE):
        store.put(segment_of(content), content)
    store.publish("image", segment_of(_LARGE), [segment_of(_SMALL)])
    assert store.get("image", 1 << 30) == _LARGE
    assert store.get_range("image", 5, 5) == _LARGE[5:10]
    assert list(store.list()) == ["image"]


@pytest.mark.usefixtures("known")
def test_a_password_is_shown_to_who_asks_for_one(closed: str) -> None:
    use(closed)


def test_without_a_password_a_registry_that_wants_one_is_closed(closed: str) -> None:
    with pytest.raises(StoreError, match="refuses who asks") as raised:
        use(closed)
    assert not raised.value.is_transient
    assert "SQLIMAGE_REGISTRY_USER" in raised.value.hint


def test_a_wrong_password_is_told_and_not_shown(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLIMAGE_REGISTRY_USER", "someone")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_PASSWORD", "Wr0ng")
    with pytest.raises(StoreError, match="refuses who asks") as raised:
        use(closed)
    assert "Wr0ng" not in str(raised.value) + repr(raised.value)


@pytest.mark.usefixtures("known")
def test_a_token_is_fetched_for_a_password(registry: SmallRegistry) -> None:
    use(registry.host)
    assert registry.count("GET", "/token") == 2
    for _, path, told in registry.requests:
        assert ("Basic" in told.get("authorization", "")) is path.startswith("/token")


@pytest.mark.usefixtures("known")
def test_a_host_is_the_same_however_it_is_written(registry: SmallRegistry) -> None:
    use(registry.host.replace("127.0.0.1", "LOCALHOST"))


@pytest.mark.usefixtures("known")
def test_a_token_that_ended_is_fetched_anew(registry: SmallRegistry) -> None:
    registry.uses_of_a_token = 1
    use(registry.host)
    assert registry.count("GET", "/token") > 5


@pytest.mark.usefixtures("known")
def test_a_token_to_take_over_names_both_repositories(registry: SmallRegistry) -> None:
    name = segment_of(_SMALL)
    RegistryStore(f"oci://{registry.host}/base").put(name, _SMALL)
    sent = registry.count("PUT")
    RegistryStore(f"oci://{registry.host}/a/shelf", ["base"]).put(name, _SMALL)
    assert registry.count("PUT") == sent
    assert list(registry.blobs["a/shelf"].values()) == [_SMALL]


def test_without_a_password_there_is_no_token(registry: SmallRegistry) -> None:
    with pytest.raises(StoreError, match="refuses who asks"):
        use(registry.host)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("realm", ["", "ftp://127.0.0.1/token", "file:///etc/passwd"])
def test_a_token_is_fetched_from_the_web_only(registry: SmallRegistry, realm: str) -> None:
    registry.realm = realm or "x"
    with pytest.raises(StoreError, match="not https"):
        use(registry.host)


@pytest.mark.usefixtures("known")
def test_a_password_that_came_over_tls_is_not_shown_in_the_clear(
    registry: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with misbehaving(_SMALL, certificate) as secure:
        host = secure.url.removeprefix("https://").removesuffix("/shelf")
        realm = f'Bearer realm="http://{registry.host}/token",service="x",scope="y"'
        secure.always = status(401, WWW_Authenticate=realm)
        with pytest.raises(StoreError, match="not https"):
            RegistryStore(f"oci+https://{host}/a").get(segment_of(_SMALL), 1000)
    assert registry.requests == []


def test_an_upload_that_began_over_tls_does_not_go_on_in_the_clear(
    registry: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with small_registry(certificate) as secure:
        store = RegistryStore(f"oci+https://{secure.host}/a", sleep=lambda _: None)
        store.put(segment_of(_SMALL), _SMALL)
        assert store.get(segment_of(_SMALL), 1000) == _SMALL
        secure.location_prefix = f"http://{registry.host}"
        with pytest.raises(StoreError, match="from https to http"):
            store.put(segment_of(_LARGE), _LARGE)
    assert registry.requests == []


def test_an_identity_token_is_traded(registry: SmallRegistry, tmp_path: Path) -> None:
    write_docker(tmp_path, {"auths": {registry.host: {"identitytoken": "s3cr3t"}}})
    use(registry.host)
    assert registry.count("POST", "/token") == 2


def write_docker(directory: Path, config: object) -> None:
    (directory / "docker").mkdir(exist_ok=True)
    (directory / "docker" / "config.json").write_text(json.dumps(config))


def encoded(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("host:5000", "host:5000"),
        ("https://host:5000", "host:5000"),
        ("https://host:5000/v2/", "host:5000"),
        ("host:5000/a", "host:5000"),
        ("host:5000/a/shelf", "host:5000"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
    ],
)
def test_what_docker_login_left_is_found(tmp_path: Path, key: str, host: str) -> None:
    write_docker(tmp_path, {"auths": {"elsewhere": encoded("no", "body"), key: encoded("someone", "s3:cr3t")}})
    assert find_credentials(host, "a/shelf") == Credentials("someone", "s3:cr3t")
    assert find_credentials("another", "a/shelf") is None


def test_the_most_special_entry_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"auths": {"host": encoded("one", "1"), "host/a/shelf": encoded("two", "2")}}
    (tmp_path / "auth.json").write_text(json.dumps(content))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    write_docker(tmp_path, {"auths": {"host": encoded("docker", "3"), "only-docker": encoded("docker", "3")}})
    assert find_credentials("host", "a/shelf") == Credentials("two", "2")
    assert find_credentials("host", "a/other") == Credentials("one", "1")
    assert find_credentials("only-docker", "x") == Credentials("docker", "3")


def test_podmans_file_comes_before_dockers_and_the_environment_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "auth.json").write_text(json.dumps({"auths": {"host": encoded("podman", "1")}}))
    write_docker(tmp_path, {"auths": {"host": encoded("docker", "2")}})
    assert find_credentials("host", "a") == Credentials("podman", "1")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_USER", "me")
    monkeypatch.setenv("SQLIMAGE_REGISTRY_PASSWORD", "3")
    assert find_credentials("host", "a") == Credentials("me", "3")


def test_a_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-tests"
    helper.write_text('#!/bin/sh\nread host\nprintf \'{"Username":"%s","Secret":"of %s"}\' "$NAME" "$host"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NAME", "someone")
    write_docker(tmp_path, {"credHelpers": {"host": "tests"}, "auths": {"other": encoded("a", "b")}})
    assert find_credentials("host", "a") == Credentials("someone", "of host")
    assert find_credentials("other", "a") == Credentials("a", "b")
    write_docker(tmp_path, {"credsStore": "tests"})
    monkeypatch.setenv("NAME", "<token>")
    assert find_credentials("host", "a") == Credentials("", "", "of host")


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"auths": []},
        {"auths": {"host": "x"}},
        {"auths": {"host": {"auth": "!"}}},
        {"auths": {"host": {"auth": 5}}},
        {"auths": {"host": {"auth": "/w=="}}},
        {"auths": {"host": {}}},
        {"credHelpers": {"host": "../../bin/sh"}},
        {"credHelpers": {"host": "no-such-helper"}},
        {"credHelpers": [], "credsStore": 5},
    ],
)
def test_a_file_that_says_nothing_sensible_is_passed_over(tmp_path: Path, config: object) -> None:
    write_docker(tmp_path, config)
    assert find_credentials("host", "a") is None


def test_credentials_do_not_show_themselves() -> None:
    assert "s3cr3t" not in repr(Credentials("someone", "s3cr3t", "s3cr3t"))
