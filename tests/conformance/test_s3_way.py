"""The way to the store: TLS that is checked, and through a proxy; each refusal with what to do."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Sync
from gateway.io.opening import open_store
from mirror.errors import ConfigError, MirrorError, Unavailable
from tests.conformance.connect_proxy import connect_proxy
from tests.conformance.loopback import BUCKET, Loopback, accepting, serve
from tests.live.certificates import Certificates, make

LOGIN = "edge:p@ss/word:1"


def put(shared: Loopback, folder: Path, ca: Path | None, **fields: Any) -> MirrorError | None:
    """Write one object as a gateway would; return the error, if there was one."""
    for name, text in (("access", "a"), ("secret", "b")):
        (folder / name).write_text(text)
    store = open_store(Sync(
        bucket=f"s3://{BUCKET}", **{"endpoint": shared.settings.endpoint, "ca_file": str(ca or ""), **fields},
        access_key_file=str(folder / "access"), secret_key_file=str(folder / "secret"),
    ))  # fmt: skip
    try:
        store.put("k", b"v")
    except MirrorError as error:
        return error
    finally:
        store.close()
    return None


def pair(made: Certificates) -> tuple[Path, Path]:
    return made.certificate, made.key


def test_everything_goes_through_the_proxy_and_the_store_s_own_certificate_is_what_counts(tmp_path: Path) -> None:
    made, other = make(tmp_path / "pki"), make(tmp_path / "other")
    with serve(accepting, tls=pair(made)) as store, connect_proxy() as proxy:
        assert put(store, tmp_path, made.ca, proxy=proxy.url) is None
        address = store.settings.endpoint.removeprefix("https://")
        assert proxy.asked == [address] and len(store.headers) == 1
        assert "Proxy-Authorization" not in store.headers[0]
        error = put(store, tmp_path, other.ca, proxy=proxy.url)
        assert isinstance(error, ConfigError) and "sync.ca_file" in error.hint and len(store.headers) == 1


def test_a_proxy_that_asks_who_this_is_is_told_by_the_files_and_the_store_is_not(tmp_path: Path) -> None:
    made = make(tmp_path / "pki")
    user, _, word = LOGIN.partition(":")
    (tmp_path / "word").write_text(word + "\n")
    login = {"proxy_user": user, "proxy_password_file": str(tmp_path / "word")}
    with serve(accepting, tls=pair(made)) as store, connect_proxy(login=LOGIN) as proxy:
        assert put(store, tmp_path, made.ca, proxy=proxy.url, **login) is None
        error = put(store, tmp_path, made.ca, proxy=proxy.url)
        assert isinstance(error, ConfigError) and "sync.proxy_user" in error.hint
        (tmp_path / "word").write_text("wr%ng")
        error = put(store, tmp_path, made.ca, proxy=proxy.url, **login)
        assert (
            isinstance(error, ConfigError) and "wr" not in str(error).replace("write", "") and len(store.headers) == 1
        )
        assert word not in str(store.headers[0])


def test_a_proxy_that_forbids_or_is_away_is_told_apart(tmp_path: Path) -> None:
    made = make(tmp_path / "pki")
    with serve(accepting, tls=pair(made)) as store, connect_proxy(forbids=True) as proxy:
        error = put(store, tmp_path, made.ca, proxy=proxy.url)
        assert isinstance(error, ConfigError) and "403" in str(error) and "allow sync.endpoint" in error.hint
        with socket.create_server(("127.0.0.1", 0)) as taken:
            gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        error = put(store, tmp_path, made.ca, proxy=gone)
        assert isinstance(error, Unavailable) and "sync.proxy" in error.hint and store.headers == []


def test_the_configured_proxy_counts_before_the_environment_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path / "pki")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    with serve(accepting, tls=pair(made)) as store, connect_proxy() as proxy:
        assert put(store, tmp_path, made.ca, proxy=proxy.url) is None and len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"host": "elsewhere.cloud"}, "set sync.endpoint to a name that stands in the certificate of the store"),
        ({"life": timedelta(minutes=-5)}, "give the store a new certificate"),
        ({}, "set sync.ca_file to the certificate authority of the store"),
    ],
)
def test_a_store_that_is_not_the_one_meant_gets_nothing(tmp_path: Path, fields: dict[str, Any], mend: str) -> None:
    made = make(tmp_path / "pki", **fields)
    with serve(accepting, tls=pair(made)) as store:
        error = put(store, tmp_path, made.ca if fields else None)
        assert isinstance(error, ConfigError) and mend in error.hint and store.headers == []
