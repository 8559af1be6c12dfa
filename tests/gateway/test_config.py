"""The configuration: what is legal is taken as written, what is not is named with a legal value."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway import config
from gateway.config import Config, parse
from mirror.errors import ConfigError

MINIMAL = """
[group]
name = "press-shop"
[replica]
name = "a"
data_dir = "/var/lib/edgemirror"
[[source]]
name = "press7"
endpoint = "opc.tcp://192.0.2.7:4840"
security = "none"
[[source.device]]
name = "press7"
browse = ["ns=2;s=Press7/**"]
"""


def test_the_shortest_file_takes_the_documented_defaults() -> None:
    c = parse(MINIMAL)
    assert c.arbiter.kind == "solo" and c.journal.commit_ms == 20.0 and c.sync.interval_s.max == 60.0
    assert c.source[0].device[0].publishing_ms == 100.0 and c.mqtt.url == "" and c.sync.bucket == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[group", "not TOML"),
        (MINIMAL + '[arbiter]\nkind = "etcd"', "arbiter.endpoints is empty"),
        (MINIMAL + '[arbiter]\nkind = "etcd"\nendpoints = ["h:1"]', "use https://host:port"),
        (MINIMAL + '[arbiter]\nkind = "s3"', "needs sync.bucket"),
        (MINIMAL + "[arbiter]\nlease_s = 0.1", "use at least 0.2"),
        (MINIMAL + f'[[peer]]\nname = "b"\npublic_key = "{"0" * 64}"', "and there are peers"),
        (MINIMAL + f'[[peer]]\nname = "a"\npublic_key = "{"0" * 64}"', "used twice"),
        (MINIMAL + '[[peer]]\nname = "b"\npublic_key = "x"', "public_key"),
        (MINIMAL.replace('security = "none"', ""), "missing required field `security`"),
        (MINIMAL.replace('"none"', '"None"'), "source"),
        (MINIMAL + "publishing_ms = 1", "publishing_ms"),
        (MINIMAL + "publising_ms = 100", "unknown field `publising_ms`"),
        (MINIMAL.replace("browse = [", "browse = []#"), "browse"),
        (MINIMAL.replace("opc.tcp://", "http://"), "use opc.tcp://host:port"),
        (MINIMAL.replace(":4840", ""), "use opc.tcp://host:port"),
        (MINIMAL.replace("ns=2;s=Press7", "Press7"), "Press7"),
        (MINIMAL.replace('"none"', '"Basic256Sha256:Sign"'), "needs certificate_file, key_file and trust_dir"),
        (MINIMAL.replace('security = "none"', 'security = "none"\nuser = "x"'), "without password_file"),
        (MINIMAL.replace('"press-shop"', '"press/shop"'), "group.name"),
        (MINIMAL.replace('security = "none"', 'security = "none"\nuser_key_file = "k"'), "set both or neither"),
        (MINIMAL.replace('security = "none"', 'security = "none"\nuser_key_file = "k"\nuser_certificate_file = "c"'),
         "needs security such as Basic256Sha256:SignAndEncrypt"),
        (MINIMAL.replace('security = "none"', 'security = "none"\nuser_key_file = "k"\nuser_certificate_file = "c"\n'
                         'user = "u"\npassword_file = "p"'), "two ways to log in"),
        (MINIMAL + '[mqtt]\nurl = "mqtts://b"\nkey_file = "k"', "set both or neither"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://b"\nkey_file = "k"\ncertificate_file = "c"', "use mqtts://host:port"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\nproxy = "proxy:3128"', "use http://host:port"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\nproxy = "http://u:p@proxy:3128"', "use sync.proxy_user"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\nproxy_user = "u"\nproxy_password_file = "p"', "belong to sync.proxy"),
        (MINIMAL + '[mqtt]\nurl = "tcp://broker"', "use mqtt://host:port"),
        (MINIMAL + '[sync]\nbucket = "mirror"', "use s3://bucket/prefix"),
        (MINIMAL + "[sync.interval_s]\nmin = 61", "use at most sync.interval_s.max (60.0)"),
        (MINIMAL + '[http]\nlisten = "0.0.0.0:8480"', "use 127.0.0.1:8480"),
        (MINIMAL + '[http]\nlisten = "plant:8480"\ntoken_file = "t"', "use 127.0.0.1:8480"),
        (MINIMAL + '[http]\nkey_file = "k"', "set both or neither"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\nproxy = "proxy.plant"', "use http://host:port"),
        (MINIMAL + '[[source]]\nname="press7"\nendpoint="opc.tcp://x:1"\nsecurity="none"\n'
         '[[source.device]]\nname="d2"\nbrowse=["i=85"]', "used twice"),
        (MINIMAL + '[[source.device]]\nname="press7"\nbrowse=["i=85"]', "device names are unique"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://[::1"', "use mqtt://host:port"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://h:99999"', "use mqtt://host:port"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://h"\nprefix = "uns/#"', "without +, #, %"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://h"\nprefix = "/uns"', "without +, #, %"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://h"\npassword_file = "x"', "without mqtt.user"),
        (MINIMAL + '[http]\nlisten = "127.0.0.1:99999"', "use 127.0.0.1:8480"),
        (MINIMAL + "[journal]\nmax_gib = inf", "journal.max_gib is inf"),
        (MINIMAL + "sampling_ms = nan", "source[0].device[0].sampling_ms"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\nrequests_per_day = 100', "takes 2880"),
        (MINIMAL + '[sync]\nbucket = "s3://b/p"\naccess_key_file = "x"', "set both or neither"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert complaint in str(error.value)


def test_an_environment_variable_replaces_one_setting() -> None:
    c = parse(MINIMAL, {"EDGEMIRROR__MQTT__URL": "mqtt://b:1", "EDGEMIRROR__SYNC__INTERVAL_S__MIN": "2", "PATH": "/"})
    assert c.mqtt.url == "mqtt://b:1" and c.sync.interval_s.min == 2.0


@pytest.mark.parametrize("name", ["EDGEMIRROR__NOPE__X", "EDGEMIRROR__MQTT__NOPE", "EDGEMIRROR__SOURCE__NAME"])
def test_an_environment_variable_that_names_no_setting_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        parse(MINIMAL, {name: "x"})


def test_an_environment_variable_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ConfigError, match="MQTT__WINDOW"):
        parse(MINIMAL, {"EDGEMIRROR__MQTT__WINDOW": "0"})


def test_settings_lists_every_field_of_every_table() -> None:
    names = config.settings()
    assert len(names) == len(set(names)) and "source.device.browse" in names and "sync.interval_s.max" in names
    peers = '[arbiter]\nkind = "etcd"\nendpoints = ["http://h:1"]\n[[peer]]\nname = "b"\n'
    c = parse(f'{MINIMAL}{peers}public_key = "{"0" * 64}"\n')
    for name in names:
        node: object = c
        for part in name.split("."):
            node = node[0] if isinstance(node, list) else node
            node = getattr(node, part)


def test_nothing_of_a_configuration_can_be_changed() -> None:
    c = parse(MINIMAL)
    with pytest.raises(AttributeError):
        c.replica.name = "b"  # type: ignore[misc]
    assert msgspec.convert(msgspec.to_builtins(c), Config) == c


def test_the_example_that_is_shipped_is_legal() -> None:
    text = (Path(__file__).parents[2] / "deploy/edge/gateway.toml").read_text()
    assert parse(text).group.name == "press-shop"


def test_the_example_in_the_docs_is_legal() -> None:
    page = (Path(__file__).parents[2] / "docs/config.md").read_text()
    (block,) = [b.partition("```")[0] for b in page.split("```toml\n")[1:]]
    assert parse(block).source[0].device[0].sampling_ms == 100.0
