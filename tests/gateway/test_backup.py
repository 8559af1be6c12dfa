"""A backup brings an empty box to where the dead one was, or says what is in the way and touches nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.config import parse, settings
from gateway.io import backup, datadir
from gateway.io.journal import Journal
from gateway.io.keys import signing_key
from mirror.errors import ConfigError, Corrupt
from mirror.header import public_hex

CONFIG = """
[group]
name = "press-shop"
[replica]
name = "a"
data_dir = "{box}/var/edgemirror"
[[source]]
name = "press7"
endpoint = "opc.tcp://192.0.2.7:4840"
security = "Basic256Sha256:SignAndEncrypt"
certificate_file = "{box}/etc/pki/own.der"
key_file = "{box}/etc/pki/own.pem"
trust_dir = "{box}/etc/pki/trusted"
user = "mirror"
password_file = "{box}/etc/secrets/press7"
[[source.device]]
name = "press7"
browse = ["ns=2;s=Press7/**"]
[[source]]
name = "press8"
endpoint = "opc.tcp://192.0.2.8:4840"
security = "Basic256Sha256:SignAndEncrypt"
certificate_file = "{box}/etc/pki/own.der"
key_file = "{box}/etc/pki/own.pem"
trust_dir = "{box}/etc/pki/trusted"
user_certificate_file = "{box}/etc/pki/user.der"
user_key_file = "{box}/etc/pki/user.pem"
[[source.device]]
name = "press8"
browse = ["ns=2;s=Press8/**"]
[sync]
bucket = "s3://acme/plantA"
access_key_file = "{box}/etc/secrets/s3-access"
secret_key_file = "{box}/etc/secrets/s3-secret"
ca_file = "{box}/etc/pki/bucket-ca.pem"
proxy = "http://proxy.plant:3128"
proxy_user = "edge"
proxy_password_file = "{box}/etc/secrets/proxy"
[mqtt]
url = "mqtts://broker.plant:8883"
user = "mirror"
password_file = "{box}/etc/secrets/mqtt"
ca_file = "{box}/etc/pki/plant-ca.pem"
certificate_file = "{box}/etc/pki/mqtt.pem"
key_file = "{box}/etc/pki/mqtt.key"
[http]
token_file = "{box}/etc/secrets/http"
certificate_file = "{box}/etc/pki/http.pem"
key_file = "{box}/etc/pki/http.key"
"""


class Box:
    """An edge box below a folder, with everything that a configuration can name and a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "etc" / "gateway.toml"
        self.data_dir = folder / "var" / "edgemirror"
        (folder / "etc" / "secrets").mkdir(parents=True)
        (folder / "etc" / "pki" / "trusted" / "ca").mkdir(parents=True)
        self.config.write_text(CONFIG.format(box=folder))
        for name in ("press7", "s3-access", "s3-secret", "proxy", "mqtt", "http"):
            path = folder / "etc" / "secrets" / name
            path.write_text(f"secret of {name}\n")
            path.chmod(0o640)
        for name in (
            "own.der", "own.pem", "bucket-ca.pem", "plant-ca.pem", "mqtt.pem", "mqtt.key", "http.pem", "http.key",
            "user.der", "user.pem", "trusted/plc.der", "trusted/ca/root.der",
        ):  # fmt: skip
            (folder / "etc" / "pki" / name).write_bytes(name.encode() + b"\0\xff")
        (folder / "etc" / "secrets").chmod(0o750)
        (folder / "etc" / "pki" / "own.pem").chmod(0o600)
        journal = Journal.open(self.data_dir / "mirror.db", replica="a")
        with journal.transaction():
            journal.save_epoch(41, "x")
        journal.close()
        self.key = public_hex(signing_key(self.data_dir))
        datadir.key(self.data_dir, make=True)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Return everything but the journal and its lock: bytes and mode by path."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("mirror.db") and path.name != "lock":
                found[str(path)] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        return found

    def die(self) -> None:
        """Leave nothing but its place."""
        self.folder.rename(self.folder.with_name("dead"))
        self.folder.mkdir()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def made(box: Box, out: Path) -> Path:
    backup.write(box.config, parse(box.config.read_text()), out, version="1.0")
    return out


def test_a_dead_box_comes_back_with_every_file_and_mode(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = box.files(), tmp_path / "a.backup"
    code, text, _ = run(capsys, "backup", "--config", box.config, out)
    assert code == 0 and "in the clear" in text and str(box.data_dir / "signing.pem") in text
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    folders = {p: stat.S_IMODE(p.stat().st_mode) for p in (box.data_dir, box.folder / "etc" / "secrets")}
    box.die()
    code, text, _ = run(capsys, "restore-config", out)
    assert code == 0 and f"edgemirror run --config {box.config}" in text
    assert box.files() == before
    assert {p: stat.S_IMODE(p.stat().st_mode) for p in folders} == folders == {
        box.data_dir: 0o700, box.folder / "etc" / "secrets": 0o750,
    }  # fmt: skip
    assert public_hex(signing_key(box.data_dir)) == box.key
    Journal.open(box.data_dir / "mirror.db", replica="a").close()  # the directory is one that a gateway can use


def test_the_facts_of_a_backup_are_json_too(box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "backup", "--json", "--config", box.config, tmp_path / "a.backup")
    facts = json.loads(text)
    assert code == 0 and (facts["replica"], facts["epoch"], facts["public_key"]) == ("a", 41, box.key)
    assert facts["files"] == len(box.files())
    box.die()
    code, text, _ = run(capsys, "restore-config", "--json", tmp_path / "a.backup")
    assert code == 0 and json.loads(text)["next"] == f"edgemirror run --config {box.config}"


def test_every_setting_that_names_files_is_in_the_backup(box: Box, tmp_path: Path) -> None:
    config = parse(box.config.read_text())
    named = {s for s in settings() if s.endswith(("_file", "_dir"))} - {"replica.data_dir"}
    text = box.config.read_text()
    assert [s for s in named if f"{s.rpartition('.')[2]} = " not in text] == []  # the box above uses each of them
    manifest = backup.write(box.config, config, tmp_path / "a.backup", version="1.0")
    assert {entry.path for entry in manifest.files} == set(box.files())


def test_no_sample_is_in_a_backup_and_any_tar_reads_it(box: Box, tmp_path: Path) -> None:
    with tarfile.open(made(box, tmp_path / "a.backup")) as tar:
        names = tar.getnames()
        pem = tar.extractfile(f"files{box.data_dir}/signing.pem")
        assert pem is not None and pem.read() == (box.data_dir / "signing.pem").read_bytes()
    assert not [name for name in names if "mirror.db" in name]


def test_a_gateway_that_never_ran_can_be_backed_up(box: Box, tmp_path: Path) -> None:
    box.data_dir.rename(tmp_path / "elsewhere")
    manifest = backup.write(box.config, parse(box.config.read_text()), tmp_path / "a.backup", version="1.0")
    assert (manifest.epoch, manifest.public_key) == (None, None)


def test_a_damaged_journal_keeps_nobody_from_a_backup(box: Box, tmp_path: Path) -> None:
    (box.data_dir / "mirror.db").write_bytes(b"x" * 9000)
    manifest = backup.write(box.config, parse(box.config.read_text()), tmp_path / "a.backup", version="1.0")
    assert (manifest.epoch, manifest.public_key) == (None, box.key)


@pytest.mark.parametrize("name", ["secrets/press7", "pki/own.pem", "pki/plant-ca.pem"])
def test_a_named_file_that_is_missing_is_an_error_and_leaves_no_backup(box: Box, tmp_path: Path, name: str) -> None:
    (box.folder / "etc" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        made(box, tmp_path / "a.backup")
    assert list(tmp_path.glob("a.backup*")) == []


def test_a_trust_folder_with_something_huge_in_it_is_refused(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "BYTES_MAX", 10_000)
    (box.folder / "etc" / "pki" / "trusted" / "export.db").write_bytes(bytes(20_000))
    with pytest.raises(ConfigError, match=r"export\.db"):
        made(box, tmp_path / "a.backup")


def test_a_backup_never_replaces_another_file(box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.backup"
    out.write_text("mine")
    code, _, err = run(capsys, "backup", "--config", box.config, out)
    assert code == 2 and "exists" in err and "try:" in err and out.read_text() == "mine"
    code, _, err = run(capsys, "backup", "--config", box.config, tmp_path / "nowhere" / "a.backup")
    assert code == 3 and "cannot be written" in err


def test_what_the_environment_sets_is_named_because_it_is_not_in_the_file(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMIRROR__MQTT__WINDOW", "5")
    code, _, err = run(capsys, "backup", "--config", box.config, tmp_path / "a.backup")
    assert code == 0 and "EDGEMIRROR__MQTT__WINDOW" in err


@pytest.mark.parametrize("there", ["etc/gateway.toml", "etc/secrets/mqtt", "var/edgemirror/mirror.db"])
def test_a_box_that_is_not_empty_is_left_as_it_is(
    box: Box, tmp_path: Path, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(box, tmp_path / "a.backup")
    box.die()
    path = box.folder / there
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    code, _, err = run(capsys, "restore-config", out)
    assert code == 2 and f"{path} exists" in err and "try:" in err
    assert [p for p in box.folder.rglob("*") if p.is_file()] == [path] and path.read_text() == "mine"


def test_a_restore_that_cannot_write_everything_leaves_nothing(box: Box, tmp_path: Path) -> None:
    out = made(box, tmp_path / "a.backup")
    box.die()
    (box.folder / "var").write_text("a file where a folder must be")
    with pytest.raises(ConfigError, match="nothing was restored"):
        backup.restore(out)
    assert [p.name for p in box.folder.rglob("*")] == ["var"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_go_back_to_their_owner_by_name_and_an_unknown_one_is_told(box: Box, tmp_path: Path) -> None:
    secret = box.folder / "etc" / "secrets" / "mqtt"
    os.chown(secret, 1, 1)
    out = made(box, tmp_path / "a.backup")
    box.die()
    backup.restore(out)
    assert (secret.stat().st_uid, secret.stat().st_gid) == (1, 1)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o640
    other = rewritten(out, tmp_path / "b.backup", lambda head: head.replace(b'"daemon"', b'"nobody-here"'))
    box.folder.rename(tmp_path / "dead again")
    with pytest.raises(ConfigError, match="nobody-here"):
        backup.restore(other)
    assert not box.folder.exists()


def rewritten(source: Path, out: Path, change: object, *, digest: bool = True) -> Path:
    """Write a backup anew with another manifest."""
    assert callable(change)
    with tarfile.open(source) as old, tarfile.open(out, "w") as new:
        bodies = {m.name: handle.read() for m in old if (handle := old.extractfile(m)) is not None}
        bodies[backup.MANIFEST] = change(bodies[backup.MANIFEST])
        if digest:
            bodies[backup.DIGEST] = hashlib.sha256(bodies[backup.MANIFEST]).hexdigest().encode()
        for name, body in bodies.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            new.addfile(member, io.BytesIO(body))
    return out


def test_every_flipped_byte_of_a_file_or_of_the_manifest_is_found(box: Box, tmp_path: Path) -> None:
    out = made(box, tmp_path / "a.backup")
    whole = out.read_bytes()
    with tarfile.open(out) as tar:
        spans = [(m.offset_data, m.size, m.name) for m in tar if m.name != backup.DIGEST]
    box.die()
    for start, size, name in spans:
        at = start + size // 2
        out.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Corrupt, match="damaged"):
            backup.restore(out)
        assert list(box.folder.iterdir()) == [], name


@pytest.mark.parametrize("size", [0, 1, 511, 1500, 20_000])
def test_a_backup_that_was_cut_off_or_is_none_is_told(box: Box, tmp_path: Path, size: int) -> None:
    out = made(box, tmp_path / "a.backup")
    out.write_bytes(out.read_bytes()[:size])
    with pytest.raises(Corrupt):
        backup.read(out)
    out.write_bytes(os.urandom(size))
    with pytest.raises(Corrupt):
        backup.read(out)


def test_a_backup_that_is_not_there_or_a_folder_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError):
            backup.read(path)


def test_a_newer_backup_and_a_configuration_of_a_newer_program_are_told_with_the_next_command(
    box: Box, tmp_path: Path
) -> None:
    out = made(box, tmp_path / "a.backup")
    newer = rewritten(out, tmp_path / "b.backup", lambda head: head.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(ConfigError, match="newer"):
        backup.restore(newer)
    box.config.write_text(box.config.read_text() + '\n[later]\nsetting = "x"\n')
    config = parse(CONFIG.format(box=box.folder))
    backup.write(box.config, config, tmp_path / "c.backup", version="9.0")
    box.die()
    with pytest.raises(ConfigError, match=r"edgemirror 9\.0") as refused:
        backup.restore(tmp_path / "c.backup")
    assert "install edgemirror 9.0" in refused.value.hint and list(box.folder.iterdir()) == []


@pytest.mark.parametrize("path", ["etc/x", "/etc/../etc/x"])
def test_a_path_that_no_backup_has_is_refused(box: Box, tmp_path: Path, path: str) -> None:
    out = made(box, tmp_path / "a.backup")
    old = f"{box.folder}/etc/secrets/mqtt"

    def change(head: bytes) -> bytes:
        return head.replace(old.encode(), path.encode())

    with tarfile.open(rewritten(out, tmp_path / "b.backup", change), "a") as tar:
        body = (box.folder / "etc" / "secrets" / "mqtt").read_bytes()
        member = tarfile.TarInfo(backup.FILES + path)
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
    with pytest.raises(Corrupt, match="no path of a backup"):
        backup.read(tmp_path / "b.backup")
