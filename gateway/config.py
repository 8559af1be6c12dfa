"""The one configuration file: TOML in, frozen structures out, every field checked once.

A setting is a number or a string; components (clock, store, random source) are constructor arguments and
never settings. A message names the setting, the value that is wrong and a legal one. Secrets never stand
in the file: settings that end in `_file` name a file that holds them.

This module reads no file and no environment: both come in as arguments.
"""

from __future__ import annotations

import ipaddress
import math
import tomllib
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta

from gateway.browse import parse_root
from mirror.errors import ConfigError

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[float, Meta(gt=0)]
Security = Literal[
    "none",
    "Basic256Sha256:Sign",
    "Basic256Sha256:SignAndEncrypt",
    "Aes128Sha256RsaOaep:Sign",
    "Aes128Sha256RsaOaep:SignAndEncrypt",
    "Aes256Sha256RsaPss:Sign",
    "Aes256Sha256RsaPss:SignAndEncrypt",
]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TOML table; unknown keys are errors."""


class Group(_Table, frozen=True):
    """The devices that are mirrored together: one log, one place in the topic name space.

    Attributes:
        name: One log in the bucket and one MQTT client.
        enterprise: Level of the topic name space.
        site: Level of the topic name space.
    """

    name: Name
    enterprise: Name = "enterprise"
    site: Name = "site"


class Replica(_Table, frozen=True):
    """This gateway; the only table that differs between the replicas of a group.

    Attributes:
        name: Of this gateway in the log; unique in the group.
        data_dir: Where `mirror.db` and the keys lie. One gateway at a time may use it.
    """

    name: Name
    data_dir: str


class Arbiter(_Table, frozen=True):
    """Who decides which replica acts.

    Attributes:
        kind: `solo`: this one, guarded by a lock on its data directory. `etcd`: who holds the record in an etcd
            cluster. `s3`: who holds the record in the bucket.
        endpoints: URLs of the members of etcd.
        lease_s: How long a record counts without a change; 0: 0.5 with etcd, 2 with s3.
        ca_file: Certificates to trust for etcd, instead of the system's.
        certificate_file, key_file: Own certificate and key for etcd.
        replaces: Identity of an arbiter that is gone for good, under which the log was led before.
    """

    kind: Literal["solo", "etcd", "s3"] = "solo"
    endpoints: Annotated[list[str], Meta(max_length=9)] = []
    lease_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    replaces: str = ""

    @property
    def seconds(self) -> float:
        """Return the length of a lease."""
        return self.lease_s or {"etcd": 0.5, "s3": 2.0}.get(self.kind, math.inf)


class Peer(_Table, frozen=True, kw_only=True):
    """Another replica of the group.

    Attributes:
        name: Its `replica.name`.
        public_key: Of its signing key, in hex, as `edgemirror identity` shows it there; enrolled in the log by whoever
            leads first.
    """

    name: Name
    public_key: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Device(_Table, frozen=True, kw_only=True):
    """A named subtree of a source's tags.

    Attributes:
        name: Unique in the group; a level of the topic name space.
        browse: Roots to mirror: a NodeId (`ns=2;s=Press7`, `nsu=<uri>;s=Press7`), `/**` for all below it.
        exclude: Patterns over the path below the root (`*` within one name, `**` over several).
        area: Level of the topic name space.
        line: Level of the topic name space.
        sampling_ms: Sampling interval asked for; 0 asks for every change the server knows of.
        publishing_ms: Publishing interval asked for; devices of one source with equal values share a
            subscription.
        queue_size: Samples the server shall keep for each tag between two publishes; 0 sizes it from
            publishing and sampling and two seconds of absence.
        tag_topics: Path patterns of the tags that get a retained MQTT topic of their own.
    """

    name: Name
    browse: Annotated[list[str], Meta(min_length=1)]
    exclude: list[str] = []
    area: Name = "area"
    line: Name = "line"
    sampling_ms: Annotated[float, Meta(ge=0)] = 0.0
    publishing_ms: Annotated[float, Meta(ge=10)] = 100.0
    queue_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    tag_topics: list[str] = []


class Source(_Table, frozen=True, kw_only=True):
    """One OPC UA server.

    Attributes:
        name: Unique in the file.
        endpoint: `opc.tcp://host:port`.
        security: Policy and mode; `none` has to be written out.
        user: User name; empty is anonymous.
        password_file: File with the password; required with `user`.
        password_in_clear: Send the password also where everybody on the network can read it.
        user_certificate_file, user_key_file: Certificate (DER or PEM) and key (PEM) of the user, instead of
            `user`; they need security.
        certificate_file, key_file: This gateway's application certificate (DER) and key (PEM).
        trust_dir: Folder of server certificates (DER) that are accepted. Required with security.
        session_timeout_s: How long the server is asked to keep the session of a gateway that is gone;
            within it a restart resumes without loss.
        request_timeout_s: After this long without an answer a request has failed.
        publish_requests: Publish requests kept waiting at the server.
        history: Fill gaps from the server's historian where it keeps one.
        audit_s: Each tag is read and compared with the mirror once in so long; 0 audits nothing.
        device: What is mirrored of it.
    """

    name: Name
    endpoint: str
    security: Security
    user: str = ""
    password_file: str = ""
    password_in_clear: bool = False
    user_certificate_file: str = ""
    user_key_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    trust_dir: str = ""
    session_timeout_s: Annotated[float, Meta(ge=10, le=86_400)] = 600.0
    request_timeout_s: Annotated[float, Meta(ge=1, le=120)] = 10.0
    publish_requests: Annotated[int, Meta(ge=1, le=10)] = 3
    history: bool = True
    audit_s: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    device: Annotated[list[Device], Meta(min_length=1)]


class JournalConfig(_Table, frozen=True):
    """The local file: how often it is made durable and how long it keeps what the cloud has.

    Attributes:
        max_gib: Room for the file: to stay within, what the cloud has goes before its time, and nothing else ever.
        keep_days: What the cloud has is kept here for so long where there is room.
        commit_ms: Least time between two fsyncs.
        inbox_mib: Received and not yet on disk; above this nobody asks the servers for more.
    """

    max_gib: Positive = 20.0
    keep_days: Annotated[float, Meta(ge=0)] = 7.0
    commit_ms: Annotated[float, Meta(ge=0, le=1000)] = 20.0
    inbox_mib: Annotated[int, Meta(ge=1, le=1024)] = 16


class Interval(_Table, frozen=True):
    """Bounds of the push interval in seconds.

    Attributes:
        min: Shortest time between two segments.
        max: Longest time that a sample waits for its segment while the store answers.
    """

    min: Positive = 1.0
    max: Positive = 60.0


class Sync(_Table, frozen=True):
    """The bucket that holds the full mirror. Without `bucket` nothing is pushed.

    Attributes:
        bucket: `s3://bucket/prefix`.
        endpoint: URL of an S3-compatible store; empty means AWS.
        region: Of the store.
        access_key_file, secret_key_file: Credentials; empty means the environment's own.
        ca_file: Certificates to trust; empty: the system's.
        proxy: `http://host:port` that everything to the bucket goes through; empty: what the environment says.
        proxy_user: User name at the proxy, empty for none.
        proxy_password_file: File with its password.
        interval_s: How often segments are sent.
        requests_per_day: Budget the push interval adapts to.
        segment_rows: Samples in one segment at the most.
        segment_mib: Chunk bytes in one segment at the most.
    """

    bucket: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    access_key_file: str = ""
    secret_key_file: str = ""
    ca_file: str = ""
    proxy: str = ""
    proxy_user: str = ""
    proxy_password_file: str = ""
    interval_s: Interval = Interval()
    requests_per_day: Annotated[int, Meta(ge=100)] = 20_000
    segment_rows: Annotated[int, Meta(ge=1, le=5_000_000)] = 200_000
    segment_mib: Annotated[int, Meta(ge=1, le=512)] = 16


class Mqtt(_Table, frozen=True):
    """The plant's broker. Without `url` nothing is published.

    Attributes:
        url: `mqtt://host:port` or `mqtts://host:port`.
        user: User name, empty for none.
        password_file: File with the password.
        ca_file: Certificates to trust; empty: the system's.
        certificate_file, key_file: Certificate and key (PEM) that the broker knows this client by; they need
            `mqtts`.
        prefix: First levels of all topics.
        device_objects: One object for each device and batch, QoS 1.
        shape: `nested` puts values under `values`, `flat` at the top level of the device object.
        tag_topics: Which tags get a retained topic: none, those selected by their device, all.
        payload: What a tag topic carries: an object with quality and time, or the bare value.
        keepalive_s: A broker that is silent for twice as long is away.
        window: Messages under way at the most.
    """

    url: str = ""
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    prefix: str = "uns/v1"
    device_objects: bool = True
    tag_topics: Literal["none", "selected", "all"] = "selected"
    payload: Literal["object", "raw"] = "object"
    shape: Literal["nested", "flat"] = "nested"
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 5
    window: Annotated[int, Meta(ge=1, le=10_000)] = 100


class Http(_Table, frozen=True):
    """Where health and metrics are served.

    Attributes:
        listen: `address:port`; empty serves nothing. Beyond loopback it needs `token_file`.
        token_file: File with a token of at least 16 characters that readers show (`Authorization: Bearer ...`).
        certificate_file, key_file: PEM; with both, HTTPS is spoken.
    """

    listen: str = "127.0.0.1:8480"
    token_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


class Config(_Table, frozen=True, kw_only=True):
    """Everything a gateway is told.

    Attributes:
        group: What is mirrored together.
        replica: This gateway.
        source: The OPC UA servers.
        arbiter: Who may act.
        peer: The other replicas of the group.
        journal: The local file.
        sync: The bucket.
        mqtt: The plant's broker.
        http: Health and metrics.
    """

    group: Group
    replica: Replica
    source: Annotated[list[Source], Meta(min_length=1)]
    arbiter: Arbiter = Arbiter()
    peer: Annotated[list[Peer], Meta(max_length=16)] = []
    journal: JournalConfig = JournalConfig()
    sync: Sync = Sync()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()


ENVIRONMENT_PREFIX = "EDGEMIRROR__"
PORT_MAX = 65_535
DAY_S = 86_400
TEXT_MAX = 1024
LEASE_S_MIN = 0.2
SHOWN_MAX = 300
REQUESTS_PER_SEGMENT = 2  # the write, and the floor read after it


def parse(text: str, environment: Mapping[str, str] | None = None) -> Config:
    """Return the checked configuration.

    Args:
        text: The TOML file.
        environment: Variables such as `EDGEMIRROR__MQTT__URL` replace single settings of plain tables.

    Raises:
        ConfigError: The file is not TOML, a key is unknown, or a value is out of its bounds.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration is not TOML: {error}") from error
    for name, value in (environment or {}).items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(raw, name, value)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at `$") if " - at `$" in str(error) else (str(error), "", "")
        what = _shown(what)
        place = where.rstrip("`").lstrip(".") or "the file"
        raise ConfigError(f"{place}: {what}", hint="docs/config.md lists every setting and its bounds") from error
    _check(config)
    return config


def _shown(text: str) -> str:
    """Return somebody's text as one short printable line."""
    short = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


def _override(raw: dict[str, Any], name: str, value: str) -> None:
    """Replace one setting by an environment variable's text, converted to the setting's type."""
    *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    types: dict[str, Any] = {f.name: f.type for f in msgspec.structs.fields(Config)}
    target: dict[str, Any] = raw
    for table in tables:
        kind = types.get(table)
        if not (isinstance(kind, type) and issubclass(kind, _Table)):
            raise ConfigError(f"{name} names no table; use a plain table such as {ENVIRONMENT_PREFIX}MQTT__URL")
        types = {f.name: f.type for f in msgspec.structs.fields(kind)}
        target = target.setdefault(table, {})
    if not tables or key not in types:
        raise ConfigError(f"{name} names no setting; docs/config.md lists them")
    try:
        target[key] = msgspec.convert(value, types[key], strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name} is {value!r}: {error}") from error


def _check(config: Config) -> None:
    """Check what one field alone cannot say."""
    _check_plain(config)
    seen: set[str] = set()
    for source in config.source:
        where = f"source {source.name!r}"
        url = _url(source.endpoint)
        if url is None or url.scheme != "opc.tcp" or not url.hostname or not url.port:
            raise ConfigError(f"{where}: endpoint is {source.endpoint!r}; use opc.tcp://host:port")
        if source.security != "none" and not (source.certificate_file and source.key_file and source.trust_dir):
            raise ConfigError(
                f"{where}: security is {source.security!r}, which needs certificate_file, key_file and trust_dir"
            )
        if source.user and not source.password_file:
            raise ConfigError(f"{where}: user is {source.user!r} without password_file")
        check_user(source, where)
        for device in source.device:
            for root in device.browse:
                parse_root(root)
        if source.name in seen:
            raise ConfigError(f"{where}: the name is used twice; names of sources are unique")
        seen.add(source.name)
    devices = [d.name for s in config.source for d in s.device]
    if len(set(devices)) < len(devices):
        twice = sorted({d for d in devices if devices.count(d) > 1})
        raise ConfigError(f"device {twice[0]!r}: the name is used twice; device names are unique in a group")
    _check_arbiter(config)
    _check_sync(config.sync)
    _check_mqtt(config.mqtt)
    _check_http(config.http)


def check_user(source: Source, where: str) -> None:
    """Check that a user's certificate can be used; ConfigError if it cannot."""
    if bool(source.user_certificate_file) != bool(source.user_key_file):
        raise ConfigError(f"{where}: user_certificate_file and user_key_file belong together; set both or neither")
    if source.user_certificate_file and source.user:
        raise ConfigError(f"{where}: user and user_certificate_file are two ways to log in; set one")
    if source.user_certificate_file and source.security == "none":
        raise ConfigError(
            f"{where}: user_certificate_file needs security such as Basic256Sha256:SignAndEncrypt: with none, "
            "somebody on the way could pass the proof on"
        )


def _check_arbiter(config: Config) -> None:
    arbiter = config.arbiter
    names = [config.replica.name, *(peer.name for peer in config.peer)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"peer.name {twice[0]!r} is used twice; the names of replicas are unique in a group")
    if config.peer and arbiter.kind == "solo":
        raise ConfigError('arbiter.kind is "solo" and there are peers; use "etcd" or "s3", the same on all replicas')
    if arbiter.lease_s and arbiter.lease_s < LEASE_S_MIN:
        raise ConfigError(f"arbiter.lease_s is {arbiter.lease_s}; use at least {LEASE_S_MIN}, or 0 for the default")
    if arbiter.kind == "etcd" and not arbiter.endpoints:
        raise ConfigError('arbiter.endpoints is empty; use such as ["https://10.0.0.11:2379"], one for each member')
    for endpoint in arbiter.endpoints:
        url = _url(endpoint)
        if url is None or url.scheme not in ("http", "https") or not url.hostname or not url.port:
            raise ConfigError(f"arbiter.endpoints has {endpoint!r}; use https://host:port")
    if arbiter.kind == "s3" and not config.sync.bucket:
        raise ConfigError('arbiter.kind is "s3", which needs sync.bucket')
    if bool(arbiter.certificate_file) != bool(arbiter.key_file):
        raise ConfigError("arbiter.certificate_file and arbiter.key_file belong together; set both or neither")


def _check_sync(sync: Sync) -> None:
    if sync.interval_s.min > sync.interval_s.max:
        raise ConfigError(
            f"sync.interval_s.min is {sync.interval_s.min}; use at most sync.interval_s.max ({sync.interval_s.max})"
        )
    if not sync.bucket:
        return
    url = _url(sync.bucket)
    if url is None or url.scheme != "s3" or not url.netloc:
        raise ConfigError(f"sync.bucket is {sync.bucket!r}; use s3://bucket/prefix")
    if bool(sync.access_key_file) != bool(sync.secret_key_file):
        raise ConfigError("sync.access_key_file and sync.secret_key_file belong together; set both or neither")
    if sync.proxy:
        proxy = _url(sync.proxy)
        if proxy is None or proxy.scheme != "http" or not proxy.hostname or not proxy.port or proxy.path.strip("/"):
            raise ConfigError(f"sync.proxy is {sync.proxy!r}; use http://host:port")
        if proxy.username is not None or proxy.password is not None:
            raise ConfigError("sync.proxy holds credentials; use sync.proxy_user and sync.proxy_password_file")
    if bool(sync.proxy_user) != bool(sync.proxy_password_file) or (sync.proxy_user and not sync.proxy):
        raise ConfigError("sync.proxy_user and sync.proxy_password_file belong to sync.proxy; set all or only that")
    least = math.ceil(REQUESTS_PER_SEGMENT * DAY_S / sync.interval_s.max)
    if sync.requests_per_day < least:
        raise ConfigError(
            f"sync.requests_per_day is {sync.requests_per_day}; a segment every {sync.interval_s.max:g} s "
            f"(sync.interval_s.max) takes {least}: allow so many, or a longer interval"
        )


def _check_mqtt(mqtt: Mqtt) -> None:
    if not mqtt.url:
        return
    url = _url(mqtt.url)
    if url is None or url.scheme not in ("mqtt", "mqtts") or not url.hostname:
        raise ConfigError(f"mqtt.url is {mqtt.url!r}; use mqtt://host:port or mqtts://host:port")
    levels = mqtt.prefix.split("/")
    if not all(levels) or any(c in "+#%" or not c.isprintable() for c in mqtt.prefix):
        raise ConfigError(f"mqtt.prefix is {mqtt.prefix!r}; use levels without +, #, % such as uns/v1")
    if mqtt.password_file and not mqtt.user:
        raise ConfigError("mqtt.password_file is set without mqtt.user; set both or neither")
    if bool(mqtt.certificate_file) != bool(mqtt.key_file):
        raise ConfigError("mqtt.certificate_file and mqtt.key_file belong together; set both or neither")
    if mqtt.certificate_file and url.scheme != "mqtts":
        raise ConfigError(f"mqtt.certificate_file needs TLS, and mqtt.url is {mqtt.url!r}; use mqtts://host:port")


def _check_http(http: Http) -> None:
    if bool(http.certificate_file) != bool(http.key_file):
        raise ConfigError("http.certificate_file and http.key_file belong together; set both or neither")
    if not http.listen:
        return
    found = address(http.listen)
    if found is None:
        raise ConfigError(f"http.listen is {http.listen!r}; use 127.0.0.1:8480")
    host, _ = found
    if not ipaddress.ip_address(host).is_loopback and not http.token_file:
        raise ConfigError(
            f"http.listen is {http.listen!r}, which others can reach; use 127.0.0.1:8480, or set http.token_file"
        )


def address(listen: str) -> tuple[str, int] | None:
    """Return the IP address and port of `address:port` or `[address]:port`; None if it is neither."""
    host, _, port = listen.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.removeprefix("[").removesuffix("]"))
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return (host, int(port)) if port.isascii() and port.isdigit() and int(port) <= PORT_MAX else None


def _check_plain(table: Any, place: str = "") -> None:
    """TOML knows inf and nan, control characters and texts of any length; no setting means any of them."""
    for name in table.__struct_fields__:
        value = getattr(table, name)
        for i, inner in enumerate(value if isinstance(value, list) else [value]):
            where = f"{place}{name}" + (f"[{i}]" if isinstance(value, list) else "")
            if isinstance(inner, _Table):
                _check_plain(inner, f"{where}.")
            elif isinstance(inner, float) and not math.isfinite(inner):
                raise ConfigError(f"{where} is {inner}; use a number")
            elif name in _OF_SERVERS:
                continue
            elif isinstance(inner, str) and len(inner) > TEXT_MAX:
                raise ConfigError(f"{where} is {len(inner)} characters long; use at most {TEXT_MAX}")
            elif isinstance(inner, str) and any(unicodedata.category(c) == "Cc" or c in _TURNING for c in inner):
                raise ConfigError(f"{where} is {inner!r}; use text without control characters")


_OF_SERVERS = ("browse", "exclude", "tag_topics")  # hold what servers call their nodes, which may be anything
_TURNING = frozenset(
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # change the direction of writing


def _url(text: str) -> SplitResult | None:
    """Return a URL's parts, or None if it is none, or its port is not one."""
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return None
    return url


def settings() -> list[str]:
    """Return the dotted name of every setting, for the documentation test."""

    def walk(kind: type[_Table], prefix: str) -> list[str]:
        names: list[str] = []
        for field in msgspec.structs.fields(kind):
            inner = [t for t in (field.type, *_arguments(field.type)) if isinstance(t, type) and issubclass(t, _Table)]
            name = f"{prefix}{field.name}"
            names += walk(inner[0], f"{name}.") if inner else [name]
        return names

    return walk(Config, "")


def _arguments(kind: Any) -> list[Any]:
    """Return all type arguments below a type: `Annotated[list[X], ...]` holds X."""
    found = list(get_args(kind))
    return found + [a for f in found for a in _arguments(f)]
