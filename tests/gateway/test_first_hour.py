"""`browse`, `init`, `check --online` and `qualify` against servers in this process, hostile ones among them."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.utils import ServiceError

from gateway.__main__ import main
from gateway.config import Config, parse
from gateway.io.opcua import Connection
from gateway.offer import certificate_facts
from tests.conformance.servers import BUCKET, moto
from tests.gateway.opcua_server import PASSWORD, URI, Press, bounded, free_port, make_certificate, press, run

HOSTILE = [
    "<script>alert(1)</script>", 'quo"ted\\', "new\nline", "\x1b[2Jclear\x07", "right\u202eleft\u200f", "x" * 10_000,
    "same", "same", "", " ", "温度", "a/b%c;d", "= [[source]] #", "../../etc/passwd", "a/**", "\ufeffmark\u2028",
]  # fmt: skip


class Cli:
    """Runs verbs in a thread, beside servers of this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, [str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test stands in a folder of its own, as a person does."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


Test = Callable[[Callable[[Press], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def on_press() -> Iterator[Test]:
    """One server for most tests of this file; it runs in the loop in which they run."""
    yield from _shared(press(tags=30))


@pytest.fixture(scope="module")
def on_hostile() -> Iterator[Test]:
    """The same among hostile names."""
    yield from _shared(hostile())


def _shared(server: AbstractAsyncContextManager[Press]) -> Iterator[Test]:
    with asyncio.Runner() as runner:
        made = runner.run(server.__aenter__())
        yield lambda work: runner.run(bounded(work(made)))
        runner.run(server.__aexit__(None, None, None))


@asynccontextmanager
async def hostile() -> AsyncIterator[Press]:
    """A press among objects and variables with hostile names; identifiers are as hostile."""
    async with press() as made:
        objects = made.server.nodes.objects
        for number, name in enumerate(HOSTILE):
            node = await objects.add_object(ua.NodeId(f"{name}#{number}", 2), ua.QualifiedName(name, 2))
            await node.add_variable(ua.NodeId(f"{name}.v#{number}", 2), ua.QualifiedName(name, 2), float(number))
        yield made


def read(path: str | Path = "gateway.toml") -> Config:
    return parse(Path(path).read_text("utf-8"))


def is_safe(text: str) -> bool:
    return not {unicodedata.category(c) for c in text.replace("\n", "")} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


# ---- browse -----------------------------------------------------------------------------------------------


def test_a_tree_shows_types_units_ranges_and_nodes(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        code, out, _ = await cli("browse", made.url, "nsu=urn:press:test;s=Press")
        assert code == 0 and out.splitlines()[0] == "Press"
        (line,) = [line for line in out.splitlines() if "Pressure" in line]
        assert line.startswith("    Pressure") and "Double" in line and "bar 0 to 250" in line
        assert "nsu=urn:press:test;s=Press.Hydraulics.Pressure" in line and "SerialNumber" not in out
        assert "Server" not in (await cli("browse", made.url))[1]

    on_press(work)


def test_json_has_a_line_for_each_variable_up_to_the_limit(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url, "--json", "--max", "8")
        lines = [json.loads(line) for line in out.splitlines()]
        assert code == 0 and len(lines) == 8 and "--max" in err
        assert set(lines[0]) == {"path", "node", "type", "value_rank", "unit", "range", "description"}
        code, out, err = await cli("browse", made.url, "ns=2;s=Press", "--json")
        (pressure,) = [x for x in map(json.loads, out.splitlines()) if x["path"] == "Hydraulics/Pressure"]
        assert (pressure["unit"], pressure["range"], err) == ("bar", [0.0, 250.0], "")
        assert pressure["description"] == "behind the pump"

    on_press(work)


def test_hostile_names_reach_a_terminal_as_plain_text_and_json_as_they_are(cli: Cli, on_hostile: Test) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url)
        assert code == 0 and is_safe(out) and is_safe(err) and max(map(len, out.splitlines())) < 500
        code, out, _ = await cli("browse", made.url, "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        nodes = {line["node"] for line in lines}
        wanted = {f"nsu=urn:press:test;s={name}.v#{number}" for number, name in enumerate(HOSTILE)}
        assert code == 0 and wanted <= nodes and is_safe(out)

    on_hostile(work)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ns=2;s=Nothing"], "has no node"), (["nsu=urn:else;s=x"], "has no namespace"), (["Press"], "names no node"),
        (["i=85/**"], "is a pattern"), (["--max", "0"], "--max is 0"), (["--security", "TLS"], "--security is 'TLS'"),
        (["--security", "Basic256Sha256:Sign"], "needs --certificate-file"), (["--user", "a"], "--password-file"),
    ],
)  # fmt: skip
def test_what_cannot_be_browsed_is_named(cli: Cli, on_press: Test, arguments: list[str], complaint: str) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("browse", made.url, *arguments)
        assert code == 2 and complaint in err and out == ""

    on_press(work)


@pytest.mark.parametrize("verb", ["browse", "init", "qualify"])
def test_a_server_that_is_away_is_unreachable_and_no_address_is_usage(cli: Cli, verb: str, folder: Path) -> None:
    async def work() -> None:
        code, _, err = await cli(verb, f"opc.tcp://127.0.0.1:{free_port()}")
        assert code == 3 and "does not answer" in err and "try:" in err
        code, _, err = await cli(verb, "192.0.2.7")
        assert code == 2 and "opc.tcp://HOST:PORT" in err
        assert list(folder.iterdir()) == []

    run(work())


# ---- init -------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_check_accepts_and_names_the_next_command(
    cli: Cli, on_press: Test, folder: Path
) -> None:
    async def work(made: Press) -> None:
        code, out, err = await cli("init", made.url)
        assert code == 0 and out.splitlines()[-1] == "next: edgemirror check --online" and err == ""
        source = read().source[0]
        assert (source.endpoint, source.security) == (made.url, "none")
        assert [d.browse for d in source.device] == [[f"nsu=urn:press:test;s={n}/**"] for n in ("Press", "Many")]
        assert 'security = "none" means' in Path("gateway.toml").read_text()
        assert read().replica.data_dir == str(folder / "edgemirror-data")
        code, out, _ = await cli("check", "--online", "--json")
        facts = json.loads(out)
        assert code == 0 and facts["ok"] and facts["forecast"]["tags"] == {"Press": 9, "Many": 30}
        before = Path("gateway.toml").read_bytes()
        code, _, err = await cli("init", made.url)
        assert code == 2 and "not written over" in err and Path("gateway.toml").read_bytes() == before

    on_press(work)


def test_hostile_names_give_a_legal_file_whose_devices_find_their_variables(cli: Cli, on_hostile: Test) -> None:
    async def work(made: Press) -> None:
        code, out, _ = await cli("init", made.url)
        assert code == 0 and is_safe(out) and is_safe(Path("gateway.toml").read_text("utf-8"))
        source = read().source[0]
        assert len(source.device) == len(HOSTILE) + 1
        connection = Connection(source)
        await connection.connect()
        found = set()
        for device in source.device:
            tags = await connection.browse(device.name, device.browse)
            assert connection.missing == []
            found |= {tag.identifier for tag in tags}
        await connection.close()
        assert {f"s={name}.v#{number}" for number, name in enumerate(HOSTILE)} <= found
        code, out, _ = await cli("check", "--online")
        assert code == 0 and is_safe(out)

    on_hostile(work)


def test_init_as_json_is_one_document(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        code, out, _ = await cli("init", made.url, "--json", "--out", "x.toml", "--group", "hall-3")
        facts = json.loads(out)
        assert code == 0 and facts["next"] == "edgemirror check --online --config x.toml"
        assert facts["server"]["uri"] == URI and facts["sources"][0]["devices"][0]["name"] == "Press"
        assert read("x.toml").group.name == "hall-3"

    on_press(work)


def test_no_certificate_is_trusted_without_a_person_who_names_it(cli: Cli, folder: Path) -> None:
    async def work() -> None:
        certificate = make_certificate(folder / "device", "device", URI, server=True)
        facts = certificate_facts(certificate[0].read_bytes())
        async with press(certificate=certificate) as made:
            code, out, err = await cli("init", made.url)
            assert code == 2 and "add --security Basic256Sha256:SignAndEncrypt" in err
            secured = ("init", made.url, "--security", "Basic256Sha256:SignAndEncrypt")
            code, out, err = await cli(*secured)
            assert code == 2 and "is not trusted" in err and f"--accept {facts.sha1}" in err
            shown = out.replace(" ", "")
            assert facts.sha1 in shown and facts.sha256 in shown and URI in out and "CN=device" in out
            assert not Path("gateway.toml").exists() and list((folder / "pki/trusted").iterdir()) == []
            code, _, err = await cli(*secured, "--accept", "00" * 20)
            assert code == 2 and "the server's thumbprint is" in err

            async def refuse(_certificate: object, _application: object) -> None:
                raise ServiceError(ua.StatusCodes.BadCertificateUntrusted)

            made.server.set_certificate_validator(refuse)
            code, _, err = await cli(*secured, "--accept", facts.sha1)
            assert code != 0 and f"accept this gateway's certificate {folder / 'pki/own/gateway.der'}" in err
            made.server.set_certificate_validator(None)
            code, out, err = await cli(*secured)
            assert code == 0, err
            assert [p.name for p in (folder / "pki/trusted").iterdir()] == [f"{facts.sha1.lower()}.der"]
            source = read().source[0]
            assert source.security == "Basic256Sha256:SignAndEncrypt" and source.trust_dir == str(
                folder / "pki/trusted"
            )
            assert Path(source.key_file).stat().st_mode & 0o777 == 0o600
            assert (await cli("check", "--online"))[0] == 0

    run(work())


def test_a_user_is_asked_for_where_the_server_lets_nobody_else_in(cli: Cli, folder: Path) -> None:
    async def work() -> None:
        async with press(users=True) as made:
            code, _, err = await cli("init", made.url)
            assert code == 2 and "only by user name" in err and "--user" in err
            Path("secret").write_text(PASSWORD + "\n")
            Path("secret").chmod(0o644)
            login = ("--user", "operator", "--password-file", "secret")
            code, _, err = await cli("init", made.url, *login)
            assert code == 2 and "it was not sent" in err and "--password-in-clear" in err
            code, _, err = await cli("init", made.url, *login, "--password-in-clear")
            made_of = read().source[0]
            assert code == 0 and made_of.password_in_clear and made_of.password_file == str(folder / "secret")
            code, out, _ = await cli("check", "--online")
            assert code == 0 and "chmod 600" in out and "can be intercepted" in out
            Path("secret").write_text("wrong")
            code, out, _ = await cli("check", "--online")
            assert code == 1 and "NOT ready" in out

    run(work())


# ---- a list of servers ------------------------------------------------------------------------------------

TEMPLATE = '[[device]]\nname = "{name}"\nbrowse = ["nsu=urn:press:test;s=Press/**"]\nsampling_ms = 50\n'


def test_a_server_that_is_away_does_not_stop_the_others(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        Path("press.toml").write_text(TEMPLATE)
        Path("servers.csv").write_text(
            f"name,endpoint,area,template\nm1,{made.url},stamping,\nm2,opc.tcp://127.0.0.1:{free_port()},,\n"
            f"m3,{made.url},,press.toml\nm4,opc.tcp://127.0.0.1:{free_port()},,press.toml\n"
        )
        code, out, err = await cli("init", "--from", "servers.csv")
        assert code == 3 and "m2: could not be asked" in err and "m4: could not be asked" in err
        assert "m1:" not in err and out.splitlines()[-1] == "next: edgemirror check --online"
        m1, m2, m3, m4 = read().source
        assert [d.name for d in m1.device] == ["m1-Press", "m1-Many"] and m1.device[0].area == "stamping"
        assert m2.device[0].browse == ["i=85/**"] and "could not be asked" in Path("gateway.toml").read_text()
        assert m3.device[0].sampling_ms == m4.device[0].sampling_ms == 50.0 and m4.device[0].name == "m4"
        code, out, _ = await cli("check", "--online")
        assert code == 3 and out.count("AWAY") == 2 and "somebody does not answer" in out

    on_press(work)


def test_forty_servers_are_written_offline_without_contacting_any(cli: Cli) -> None:
    async def work() -> None:
        Path("press.toml").write_text(TEMPLATE)
        rows = "\n".join(f"press{i},opc.tcp://192.0.2.{i}:4840" for i in range(1, 41))
        Path("servers.csv").write_text(f"name,endpoint\n{rows}\n")
        code, _, _ = await cli("init", "--from", "servers.csv", "--template", "press.toml", "--offline")
        assert code == 0 and [s.device[0].name for s in read().source] == [f"press{i}" for i in range(1, 41)]
        assert (await cli("check"))[0] == 0

    run(work())


def test_a_list_that_is_wrong_writes_nothing_and_names_row_and_column(cli: Cli) -> None:
    async def work() -> None:
        Path("servers.csv").write_text("name,endpoint,template\na,opc.tcp://h:1,none.toml\n")
        code, _, err = await cli("init", "--from", "servers.csv", "--offline")
        assert code == 2 and "row 2, column template" in err
        Path("servers.csv").write_text("name,endpoint\na,h\n")
        code, _, err = await cli("init", "--from", "servers.csv", "--offline")
        assert code == 2 and "row 2, column endpoint" in err
        Path("servers.csv").write_bytes("name,endpoint\nFräse,x\n".encode("cp1252"))
        code, _, err = await cli("init", "--from", "servers.csv", "--offline")
        assert code == 2 and "CSV UTF-8" in err and not Path("gateway.toml").exists()
        for wrong in (["init"], ["init", "opc.tcp://h:1", "--from", "x"], ["init", "opc.tcp://h:1", "--offline"],
                      ["init", "opc.tcp://h:1", "--out", "no/such/folder/x.toml"]):  # fmt: skip
            assert (await cli(*wrong))[0] == 2

    run(work())


def test_an_untrusted_server_of_a_list_is_kept_for_a_person_to_look_at(cli: Cli, folder: Path) -> None:
    async def work() -> None:
        certificate = make_certificate(folder / "device", "device", URI, server=True)
        thumbprint = certificate_facts(certificate[0].read_bytes()).sha1
        async with press(certificate=certificate) as made:
            Path("s.csv").write_text(f"name,endpoint,security\nm1,{made.url},Basic256Sha256:SignAndEncrypt\n")
            code, _, err = await cli("init", "--from", "s.csv")
            kept = folder / "pki/rejected" / f"{thumbprint.lower()}.der"
            assert code == 3 and thumbprint in err and kept.read_bytes() == certificate[0].read_bytes()
            kept.rename(folder / "pki/trusted" / kept.name)
            code, _, err = await cli("init", "--from", "s.csv", "--out", "second.toml")
            assert code == 0 and err == ""

    run(work())


# ---- check --online ---------------------------------------------------------------------------------------


def objects_of(settings: Any) -> list[str]:
    import boto3

    client = boto3.client("s3", endpoint_url=settings.endpoint, region_name="us-east-1", aws_access_key_id="a",
                          aws_secret_access_key="b")  # fmt: skip
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
    client.close()
    return keys


def test_a_bucket_is_probed_and_left_as_it_was(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        with moto() as settings:
            await cli("init", made.url)
            for name in ("access", "secret"):
                Path(name).write_text("a\n" if name == "access" else "b\n")
                Path(name).chmod(0o600)
            file = Path("gateway.toml")
            sync = f'[sync]\nbucket = "s3://{BUCKET}/p"\nendpoint = "{settings.endpoint}"\n'
            keys = 'access_key_file = "access"\nsecret_key_file = "secret"\n'
            file.write_text(file.read_text() + sync + keys)
            before = objects_of(settings)  # of other tests, in the same process
            code, out, _ = await cli("check", "--online")
            assert code == 0 and "conditional writes work" in out and "bucket requests" in out
            assert objects_of(settings) == before
            file.write_text(file.read_text().replace(f"{BUCKET}/p", "elsewhere/p"))
            code, out, _ = await cli("check", "--online")
            assert code == 1 and "does not exist" in out

    on_press(work)


def test_roots_that_the_server_does_not_have_and_stores_that_do_not_answer_are_told(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        await cli("init", made.url)
        file = Path("gateway.toml")
        away = f'[sync]\nbucket = "s3://b/p"\nendpoint = "http://127.0.0.1:{free_port()}"\n'
        away += f'[mqtt]\nurl = "mqtt://127.0.0.1:{free_port()}"\n'
        file.write_text(file.read_text().replace("s=Press/**", "s=Gone/**") + away)
        code, out, _ = await cli("check", "--online", "--json")
        found = {(f["level"], f["part"]): f for f in json.loads(out)["findings"]}
        assert code == 1 and "has no nsu=urn:press:test;s=Gone" in found["failed", "device Press"]["text"]
        assert ("away", "mqtt") in found and found["failed", "device Press"]["hint"].startswith("edgemirror browse")

    on_press(work)


# ---- qualify ----------------------------------------------------------------------------------------------


def test_a_server_that_stamps_at_sampling_is_class_u(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        server = made.server

        def stamped_now(_node: ua.NodeId, _attribute: ua.AttributeIds) -> ua.DataValue:
            now = datetime.now(UTC)
            return ua.DataValue(ua.Variant(1.0, ua.VariantType.Double), SourceTimestamp=now, ServerTimestamp=now)

        index = await server.get_namespace_index("urn:press:test")
        folder = await server.nodes.objects.add_folder(ua.NodeId("U", index), ua.QualifiedName("U", index))
        node = await folder.add_variable(ua.NodeId("U.v", index), ua.QualifiedName("v", index), 1.0)
        server.iserver.isession.aspace.set_attribute_value_callback(node.nodeid, ua.AttributeIds.Value, stamped_now)
        code, out, _ = await cli("qualify", made.url, "ns=2;s=U", "--seconds", "1", "--json")
        facts = json.loads(out)
        assert code == 0 and facts["trial"]["stamping"] == "U" and facts["trial"]["compared"] == 1
        holds = {(p["mode"], p["promise"]): p["holds"] for p in facts["promises"]}
        assert holds["hot", "the copies of both gateways are equal"] == "no"
        assert facts["profile"]["product"] == "asyncua" and facts["trial"]["resume"]["works"] is True
        assert facts["trial"]["transfer"]["works"] is False  # it answers Good and publishes nothing
        assert server.iserver.subscription_service.subscriptions == {}

    on_press(work)


def test_seconds_out_of_bounds_and_nodes_without_variables_are_named(cli: Cli, on_press: Test) -> None:
    async def work(made: Press) -> None:
        assert (await cli("qualify", made.url, "--seconds", "0"))[0] == 2
        code, _, err = await cli("qualify", made.url, "ns=2;s=Empty")
        assert code == 2 and "has no node" in err

    on_press(work)
