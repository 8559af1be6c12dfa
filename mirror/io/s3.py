"""An S3-compatible bucket as an `ObjectStore`, over boto3.

boto3 repeats failed requests by default, adds a checksum trailer that some servers cannot read, and
reports a refused condition, a lost answer and a wrong key through one exception. Here nothing that
writes is ever repeated, checksums are sent as a plain header, and every answer becomes one of the five
reactions. Two clients are kept apart, so that an upload of many megabytes never stands in front of a
renewal that must be answered at once: `S3Store.open` for the log, `S3Store.quick` for lease records.

Reading is repeated here (`_READ_TRIES`), since that changes nothing; of lease records not even that.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
import msgspec
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    ProxyConnectionError,
    SSLError,
)
from botocore.handlers import add_expect_header

from mirror.errors import ConfigError, Conflict, Corrupt, MirrorError, Unavailable
from mirror.io.limit import Limit
from mirror.store import NO_METADATA, Object, Range, cut
from mirror.tls import hint

T = TypeVar("T")

#: Returns the access key and the secret key as they are now.
Keys = Callable[[], tuple[str, str]]

_READ_TRIES = 3
_READ_PAUSE_S = 0.2
_PAGE = 1000

#: Error codes that say: other bytes arrived than were announced.
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
#: Client errors that pass by themselves.
_TRANSIENT = {"RequestTimeout", "IncompleteBody", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}

_KEY_FILES = "sync.access_key_file and sync.secret_key_file"

_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
_NO_ANSWER = (ConnectionError, HTTPClientError, IncompleteReadError, CredentialRetrievalError)


class S3Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bucket is and how to reach it.

    Attributes:
        bucket: Its name.
        prefix: Path below which everything of this project lies; no slash at its ends.
        endpoint: `https://host:port`; empty for Amazon S3 itself.
        region: As the server expects it in signatures.
        access_key: Empty: boto3 looks in its usual places.
        secret_key: Likewise.
        keys: Asked at each request in place of the two, so that they may change meanwhile.
        ca_file: Certificates to trust instead of the system's; empty for the system's.
        proxy: `http://[user:password@]host:port` that everything goes through; empty: what the environment says.
        connect_timeout_s: For the log; lease records use `quick_timeout_s`.
        read_timeout_s: Likewise; for each piece of an answer.
        quick_timeout_s: The longest wait for anything that is asked about lease records, all in all.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = ""
    keys: Keys | None = None
    ca_file: str = ""
    proxy: str = ""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    quick_timeout_s: float = 1.0

    @staticmethod
    def parse(url: str, **rest: Any) -> S3Settings:
        """Read `s3://bucket/prefix`; other settings by keyword."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"sync.bucket is {url!r}; use s3://BUCKET/PREFIX, such as s3://acme-mirror/plantA")
        return S3Settings(bucket=parts.netloc, prefix=parts.path.strip("/"), **rest)


class S3Store:
    """A bucket; see `mirror.store.ObjectStore` for what each call promises.

    Attributes:
        name: Endpoint and bucket.
        client: The boto3 client; its event hooks are where tests inject faults.
    """

    def __init__(self, settings: S3Settings, client: Any, *, quoted: bool = True, limit: Limit | None = None) -> None:
        self.name = f"{settings.endpoint or 'https://s3.amazonaws.com'}/{settings.bucket}"
        self.settings = settings
        self.client = client
        self._quoted, self._limit = quoted, limit

    @staticmethod
    def open(settings: S3Settings) -> S3Store:
        """Return the bucket for the log: patient timeouts."""
        return S3Store(settings, _client(settings, settings.connect_timeout_s, settings.read_timeout_s))

    @staticmethod
    def quick(settings: S3Settings) -> S3Store:
        """Return the bucket for lease records: an answer that comes late is worth nothing."""
        limit_s = settings.quick_timeout_s
        client = _client(settings, limit_s, limit_s)
        # boto3 asks before it sends a body, and waits a second where a proxy swallows the question.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        return S3Store(settings, client, limit=Limit(limit_s))

    @property
    def address(self) -> str:
        """The URL that connections go to: the store's, or that of the proxy on the way."""
        return self.settings.proxy or str(self.client.meta.endpoint_url)

    def dialects(self) -> list[S3Store]:
        """Return this bucket in all ways of speaking to it: some servers want ETags without quotes."""
        return [self, S3Store(self.settings, self.client, quoted=False, limit=self._limit)]

    def server(self) -> str:
        """See `ObjectStore.server`."""
        answer = self._read(lambda: self.client.head_bucket(Bucket=self.settings.bucket), "bucket")
        if answer is None:
            raise _no_bucket(self.settings.bucket)
        return str(answer["ResponseMetadata"]["HTTPHeaders"].get("server", ""))

    def get(self, key: str, range: Range | None = None) -> Object | None:
        """See `ObjectStore.get`."""
        if range is None:
            return self._read(lambda: self._get(key), key)
        return self._read(lambda: self._get_range(key, range), key)

    def head(self, key: str) -> Object | None:
        """See `ObjectStore.head`."""
        return self._read(lambda: self._head(key), key)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Mapping[str, str] = NO_METADATA,
        sha256: bytes | None = None,
    ) -> str:
        """See `ObjectStore.put`."""
        extra: dict[str, str] = {}
        if if_none_match:
            extra["IfNoneMatch"] = "*"
        if if_match is not None:
            extra["IfMatch"] = self._etag(if_match)
        digest = hashlib.sha256(body).digest() if sha256 is None else sha256
        answer = self._write(
            lambda: self.client.put_object(
                Bucket=self.settings.bucket, Key=key, Body=body, Metadata=dict(metadata),
                ChecksumSHA256=base64.b64encode(digest).decode(), **extra,
            ),
            f"PUT {key}",
            conditional=bool(extra),
        )  # fmt: skip
        return str(answer["ETag"])

    def delete(self, key: str, if_match: str | None = None) -> None:
        """See `ObjectStore.delete`."""
        extra = {} if if_match is None else {"IfMatch": self._etag(if_match)}
        self._write(
            lambda: self.client.delete_object(Bucket=self.settings.bucket, Key=key, **extra),
            f"DELETE {key}",
            conditional=bool(extra),
        )

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Object]:
        """See `ObjectStore.list`."""
        left = limit
        more: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while left is None or left > 0:
            page = self._page(prefix, more, _PAGE if left is None else min(left, _PAGE))
            for entry in page.get("Contents", [])[:left]:
                yield Object(entry["Key"], b"", entry["Size"], entry["ETag"])
            if left is not None:
                left -= len(page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _page(self, prefix: str, more: dict[str, Any], size: int) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self.client.list_objects_v2(
                Bucket=self.settings.bucket, Prefix=prefix, MaxKeys=size, **more
            )
            return answer

        page = self._read(ask, prefix)
        if page is None:
            raise _no_bucket(self.settings.bucket)
        return page

    def _get(self, key: str) -> Object:
        answer = self.client.get_object(Bucket=self.settings.bucket, Key=key)
        return Object(key, _body(answer, key), answer["ContentLength"], answer["ETag"], _metadata(answer))

    def _get_range(self, key: str, range: Range) -> Object:
        start, stop = range
        assert stop is None or min(start, stop) >= 0
        if stop is not None and stop <= start:
            return self._head(key)
        try:
            answer = self.client.get_object(Bucket=self.settings.bucket, Key=key, Range=_range_header(range))
        except ClientError as error:
            if _status(error) != 416:
                raise
            return self._nothing_there(key, start)
        whole = answer.get("ContentRange", "").rpartition("/")[2]
        if whole.isdecimal():
            return Object(key, _body(answer, key), int(whole), answer["ETag"], _metadata(answer))
        # All of it is on its way: no more is taken than is needed.
        size = answer["ContentLength"]
        body = cut(_body(answer, key, size if stop is None else min(stop, size)), range)
        return Object(key, body, size, answer["ETag"], _metadata(answer))

    def _nothing_there(self, key: str, start: int) -> Object:
        """Return an object without a body, as large as it is, after its store said that a range has no bytes."""
        found = self._head(key)
        if start < found.size and (start >= 0 or found.size):
            raise Unavailable(f"GET {key} found nothing at byte {start} of {found.size}: it changes while it is read")
        return found

    def _head(self, key: str) -> Object:
        try:
            answer = self.client.head_object(Bucket=self.settings.bucket, Key=key)
        except ClientError as error:
            # The answer to HEAD has no body that could say what is missing, the object or the bucket.
            if _status(error) == 404 and not self._has_bucket():
                raise _no_bucket(self.settings.bucket) from error
            raise
        return Object(key, b"", answer["ContentLength"], answer["ETag"], _metadata(answer))

    def _has_bucket(self) -> bool:
        try:
            self.client.head_bucket(Bucket=self.settings.bucket)
        except ClientError as error:
            if _status(error) == 404:
                return False
            raise
        return True

    def _write(self, act: Callable[[], T], what: str, *, conditional: bool) -> T:
        """Do something once."""
        try:
            return act() if self._limit is None else self._limit(act, f"{what} on {self.name}")
        except (ClientError, BotoCoreError) as error:
            raise self._reaction(error, what, conditional=conditional) from error

    def _read(self, ask: Callable[[], T], key: str) -> T | None:
        """Ask, again if the answer was lost and there is time; None if the object does not exist."""
        tries = _READ_TRIES if self._limit is None else 1
        for turn in range(1, tries + 1):
            try:
                return ask() if self._limit is None else self._limit(ask, f"read {key} on {self.name}")
            except (ClientError, BotoCoreError) as error:
                if _status(error) == 404 and _code(error) != "NoSuchBucket":
                    return None
                reaction = self._reaction(error, f"read {key}", conditional=False)
                if turn == tries or not isinstance(reaction, Unavailable):
                    raise reaction from error
            except Unavailable:
                if turn == tries:
                    raise
            time.sleep(_READ_PAUSE_S * turn)
        raise AssertionError("the last try returns or raises")

    def _etag(self, etag: str) -> str:
        return etag if self._quoted else etag.strip('"')

    def _reaction(self, error: Exception, what: str, *, conditional: bool) -> MirrorError:
        """Translate what boto3 raised into what is to be done about it."""
        told = f"{what} on {self.name}: {error}"
        status, code = _status(error), _code(error)
        if status is None:
            return self._without_answer(error, told)
        if status == 412 or (status == 404 and conditional and code != "NoSuchBucket"):
            return Conflict(told)
        if code in _DAMAGED:
            return Corrupt(told)
        if code == "NoSuchBucket" or status == 404:
            return _no_bucket(self.settings.bucket)
        if status == 501 or code == "NotImplemented":
            return ConfigError(
                told, hint="use a store that knows conditional writes, or a release of this one that does"
            )
        if status in (409, 429) or status >= 500 or code in _TRANSIENT:
            return Unavailable(told)
        if code == "RequestTimeTooSkewed":
            return ConfigError(told, hint="set this box's clock: its time differs too much from the store's")
        return ConfigError(told, hint=f"check sync.bucket, sync.endpoint, sync.region, {_KEY_FILES}")

    def _without_answer(self, error: Exception, told: str) -> MirrorError:
        if isinstance(error, SSLError):
            mend = hint(str(error), ca_setting="sync.ca_file", address_setting="sync.endpoint", whose="store")
            if mend:
                return ConfigError(told, hint=mend)
            if unreadable := _unreadable(self.settings.ca_file):
                return unreadable
        if isinstance(error, ProxyConnectionError):
            return _by_proxy(error, told)
        if isinstance(error, _NO_ANSWER):
            return Unavailable(told)
        return ConfigError(told, hint=f"check sync.bucket, sync.endpoint, {_KEY_FILES}")


def _client(settings: S3Settings, connect_timeout_s: float, read_timeout_s: float) -> Any:
    if bool(settings.access_key) != bool(settings.secret_key):
        raise ConfigError(
            "one of the access key and the secret key is empty",
            hint=f"set both of {_KEY_FILES}, or neither: then the environment's own credentials are used",
        )
    if unreadable := _unreadable(settings.ca_file):
        raise unreadable
    config = Config(
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=8,
        proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else None,
    )
    try:
        return _session(settings).client(
            "s3",
            endpoint_url=settings.endpoint or None,
            region_name=settings.region,
            verify=settings.ca_file or None,
            config=config,
        )
    except InvalidRegionError as error:
        raise ConfigError(f"sync.region is {settings.region!r}: {error}", hint="use one such as us-east-1") from error
    except BotoCoreError as error:
        raise ConfigError(
            f"the environment's own settings for S3: {error}", hint="mend or unset AWS_* there"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"sync.endpoint is {settings.endpoint!r}: {error}",
            hint="use https://HOST:PORT, or leave it out for Amazon S3",
        ) from error


def _session(settings: S3Settings) -> boto3.session.Session:
    session = botocore.session.Session()
    if settings.keys is not None:
        session._credentials = _Current(settings.keys)
    elif settings.access_key:
        session.set_credentials(settings.access_key, settings.secret_key)
    return boto3.session.Session(botocore_session=session)


class _Current(Credentials):  # type: ignore[misc]  # boto3's classes have no types
    """Keys that are asked for whenever a request is signed."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(*keys())
        self._keys = keys

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(*self._keys(), None, None)


def _by_proxy(error: ProxyConnectionError, told: str) -> MirrorError:
    """Say what the proxy said, which boto3 keeps to itself."""
    said = str(error.kwargs.get("error", ""))
    answer = _TUNNEL.search(said)
    status = answer.group(1) if answer else ""
    if status == "407":
        hint = "set sync.proxy_user and sync.proxy_password_file to what the proxy knows"
        return ConfigError(f"{told}: the proxy asks who this is (407)", hint=hint)
    if status == "403":
        return ConfigError(f"{told}: the proxy forbids it (403)", hint="have the proxy allow sync.endpoint")
    return Unavailable(f"{told}: {said}", hint="check sync.proxy, or HTTPS_PROXY in the environment")


def _unreadable(ca_file: str) -> ConfigError | None:
    """Return what is wrong with a file of certificates, if anything is; the HTTP client would call it no connection."""
    try:
        if ca_file:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except OSError as error:
        hint = "name a file of PEM certificates that this user can read, or leave it out to use the system's"
        return ConfigError(f"sync.ca_file is {ca_file!r}: {error.strerror or error}", hint=hint)
    return None


def together(calls: Sequence[Callable[[], str]]) -> list[str | BaseException]:
    """Run calls in a thread each and return what each returned or raised; see `mirror.probe.Together`."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.exception() or future.result() for future in futures]


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an answer, or None if there was no answer."""
    if not isinstance(error, ClientError):
        return None
    status: int | None = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _no_bucket(bucket: str) -> ConfigError:
    return ConfigError(f"bucket {bucket!r} does not exist", hint="create it, or set sync.bucket to one that exists")


def _body(answer: dict[str, Any], key: str, wanted: int | None = None) -> bytes:
    """Return the body, or its first bytes; then the rest is not fetched."""
    length = answer["ContentLength"] if wanted is None else wanted
    body: bytes = answer["Body"].read(wanted)
    if wanted is not None:
        answer["Body"].close()
    if len(body) != length:
        raise Unavailable(f"GET {key} ended after {len(body)} of {length} bytes")
    return body


def _metadata(answer: dict[str, Any]) -> dict[str, str]:
    return {k.lower(): v for k, v in answer.get("Metadata", {}).items()}


def _range_header(range: Range) -> str:
    start, stop = range
    if start < 0:
        return f"bytes={start}"
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"
