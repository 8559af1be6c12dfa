"""Opens the bucket and the lease's register as the configuration says, with their secrets.

Light for whoever needs little of it: the libraries of the store and of etcd are loaded when they are opened.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import msgspec

from gateway.config import Config, Sync
from gateway.io.registers import SoloRegister, StoreRegister
from mirror.errors import ConfigError
from mirror.layout import Layout
from mirror.lease import Register

if TYPE_CHECKING:
    from mirror.io.s3 import S3Settings, S3Store

REGISTER_SHARE = 0.25  # of a lease: longest wait for an answer


def open_register(config: Config) -> Register:
    """Return where the lease's record stands.

    Raises:
        ConfigError: A file that a setting names cannot be used.
    """
    arbiter, limit_s = config.arbiter, config.arbiter.seconds * REGISTER_SHARE
    match arbiter.kind:
        case "etcd":
            from gateway.io.etcd import EtcdRegister, tls_context  # noqa: PLC0415

            tls = tls_context(arbiter)
            return EtcdRegister(arbiter.endpoints, config.group.name, limit_s=limit_s, tls=tls)
        case "s3":
            from mirror.io.s3 import S3Store  # noqa: PLC0415 - see above

            quick = S3Store.quick(msgspec.structs.replace(bucket_settings(config.sync), quick_timeout_s=limit_s))
            return StoreRegister(quick, log_layout(config).lease, quick.settings.bucket)
    return SoloRegister()


def log_layout(config: Config) -> Layout:
    """Return where the group's objects are in the bucket."""
    return Layout(urlsplit(config.sync.bucket).path.strip("/"), config.group.name)


def open_store(config: Sync) -> S3Store:
    """Return the bucket for the log."""
    from mirror.io.s3 import S3Store  # noqa: PLC0415 - see above

    return S3Store.open(bucket_settings(config))


def bucket_settings(config: Sync) -> S3Settings:
    """Return where the bucket is and how to reach it."""
    from mirror.io.s3 import S3Settings  # noqa: PLC0415 - see above

    return S3Settings.parse(
        config.bucket, endpoint=config.endpoint, region=config.region, ca_file=config.ca_file,
        keys=Keys(config) if config.access_key_file else None, proxy=_proxy(config),
    )  # fmt: skip


class Keys:
    """The bucket's two keys as their files hold them now; while one of them is being replaced, as they did last."""

    def __init__(self, config: Sync) -> None:
        self._files = config.access_key_file, config.secret_key_file
        self._last = self._read()

    def __call__(self) -> tuple[str, str]:
        with contextlib.suppress(ConfigError):
            access, secret = self._read()
            if access and secret:
                self._last = access, secret
        return self._last

    def _read(self) -> tuple[str, str]:
        access, secret = self._files
        return read_secret(access, "sync.access_key_file"), read_secret(secret, "sync.secret_key_file")


def _proxy(config: Sync) -> str:
    """Return the proxy's URL with user and password, as the client of the store wants it."""
    if not config.proxy_user:
        return config.proxy
    url = urlsplit(config.proxy)
    secret = quote(read_secret(config.proxy_password_file, "sync.proxy_password_file"), safe="")
    return f"http://{quote(config.proxy_user, safe='')}:{secret}@{url.netloc}"


def read_secret(path: str, setting: str = "") -> str:
    """Return what a secret's file holds, without the newline at its end; empty for no file."""
    if not path:
        return ""
    try:
        return Path(path).read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{setting or 'a secret'}: {path!r}: {what}; a secret's file must be readable") from error


def secret_files(config: Config) -> list[tuple[str, str]]:
    """Return the settings that name secrets, with the files."""
    sync = config.sync
    names = ("access_key_file", "secret_key_file", "proxy_password_file")
    of_bucket = [(f"sync.{name}", getattr(sync, name)) for name in names] if sync.bucket else []
    of_http = [("http.token_file", config.http.token_file)] if config.http.listen else []
    return [*((f"source.password_file of {s.name}", s.password_file) for s in config.source), *of_bucket, *of_http]
