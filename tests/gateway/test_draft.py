"""The file that `init` writes is legal and safe to look at, whatever a server calls its things."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Device, Source, parse
from gateway.draft import Heading, SourceDraft, comments, security_notes, text, toml_value
from gateway.offer import Offer, Offered
from gateway.propose import DeviceDraft

HEADING = Heading("plant", "acme", "site", "a", "/var/lib/edgemirror")
ANY = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200)


def source(**more: object) -> Source:
    fields = {"name": "s", "endpoint": "opc.tcp://h:4840", "security": "none", "device": [], **more}
    return Source(**fields)  # type: ignore[arg-type]


@given(ANY, ANY, ANY)
def test_any_name_of_a_node_gives_a_file_that_means_it(identifier: str, namespace: str, note: str) -> None:
    root = f"nsu={namespace.replace('%', '%25').replace(';', '%3B')};s={identifier}/**"
    draft = SourceDraft(source(), (DeviceDraft(Device(name="d", browse=[root]), (note,)),), (note, note * 100))
    written = text(HEADING, [draft])
    assert parse(written).source[0].device[0].browse == [root]
    assert {unicodedata.category(c) for c in written.replace("\n", "")} & {"Cc", "Cf", "Zl", "Zp"} == set()


def test_only_what_differs_from_its_default_is_written() -> None:
    device = Device(name="d", browse=["i=85/**"], queue_size=7, exclude=["**/x"], sampling_ms=12.5)
    secured = source(
        security="Basic256Sha256:Sign", certificate_file="/c", key_file="/k", trust_dir="/t", history=False
    )
    written = text(HEADING, [SourceDraft(secured, (DeviceDraft(device),))])
    read = parse(written).source[0]
    assert read.device == [device] and read.history is False and read.trust_dir == "/t"
    lines = [line.split(" = ")[0] for line in written.splitlines() if not line.startswith("#")]
    assert "request_timeout_s" not in lines and "queue_size" in lines and "history" in lines


def test_security_none_is_written_out_with_what_it_means_and_what_is_better() -> None:
    good = Offered("P", "urn:p", "", (Offer("Basic256Sha256:Sign", ()), Offer("none", ())), None)
    written = text(HEADING, [SourceDraft(source(), (DeviceDraft(Device(name="d", browse=["i=85"])),),
                                         tuple(security_notes(source(), good)))])  # fmt: skip
    assert 'security = "none"' in written and "anybody on the network" in written
    assert "--security Basic256Sha256:Sign" in written
    assert security_notes(source(security="Basic256Sha256:Sign"), good) == []


def test_long_notes_are_broken_into_lines_and_end() -> None:
    lines = comments("word " * 10_000)
    assert len(lines) < 20 and all(line.startswith("# ") and len(line) <= 120 for line in lines)


def test_a_value_that_no_setting_has_is_refused() -> None:
    assert [toml_value(v) for v in (True, 3, 2.0, 0.25, ["a"])] == ["true", "3", "2", "0.25", '["a"]']
    with pytest.raises(TypeError):
        toml_value({})
