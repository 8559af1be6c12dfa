"""A list of servers and templates: one definition, many instances, and mistakes named by row and column."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inventory import COLUMNS, Row, check_names, instances, read_list, read_template
from mirror.errors import ConfigError

TEMPLATE = '[[device]]\nname = "{name}"\nbrowse = ["nsu=urn:press;s={name}/**"]\nsampling_ms = 50\n'


def test_a_list_is_read_with_all_its_columns() -> None:
    text = (
        ",".join(COLUMNS) + "\npress7,opc.tcp://192.0.2.7:4840,stamping,line1,Basic256Sha256:Sign,op,/s/p,press.toml\n"
    )
    (row,) = read_list(text, "servers.csv")
    assert row == Row(2, "press7", "opc.tcp://192.0.2.7:4840", "stamping", "line1", "Basic256Sha256:Sign", "op", "/s/p",
                      "press.toml")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "name,endpoint\na,opc.tcp://h:1\n", "\ufeffname;endpoint\r\na;opc.tcp://h:1\r\n", "NAME\tEndpoint\na\topc.tcp://h:1",
        'endpoint,name\n"opc.tcp://h:1", a \n\n , \n',
    ],
)  # fmt: skip
def test_spreadsheets_of_all_countries_are_read(text: str) -> None:
    (row,) = read_list(text, "s.csv", security="none", template="t.toml")
    assert (row.name, row.endpoint, row.template, row.area) == ("a", "opc.tcp://h:1", "t.toml", "area")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("press 7,opc.tcp://h:1,,,,", "row 2, column name: 'press 7' is no name"),
        (",opc.tcp://h:1,,,,", "row 2, column name"),
        ("a,http://h:1,,,,", "row 2, column endpoint: 'http://h:1' is no address; use opc.tcp://host:port"),
        ("a,opc.tcp://h,,,,", "column endpoint"),
        ("a,opc.tcp://[::1,,,,", "column endpoint"),
        ("a,opc.tcp://h:1,Basic256,,,", "column security: 'Basic256' is not known; use none, Basic256Sha256:Sign"),
        ("a,opc.tcp://h:1,,op,,", "row 2, column password_file"),
        ("a,opc.tcp://h:1,,,/p,", "row 2, column user"),
        ("a,opc.tcp://h:1,,,,a b", "row 2, column area"),
        ("a,opc.tcp://h:1,,,,,more", "row 2 has 7 cells"),
        ("a,opc.tcp://h:1,,,,\na,opc.tcp://h:2,,,,", "row 3, column name: 'a' stands in two rows"),
        ("", "no row below the heading"),
        ('"a,opc.tcp', "not CSV"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_row_and_column_with_a_legal_value(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_list(f"name,endpoint,security,user,password_file,area\n{line}\n", "servers.csv")
    assert complaint in str(error.value) and "servers.csv" in str(error.value)


def test_all_mistakes_are_told_at_once_and_not_without_end() -> None:
    rows = "\n".join(f"bad name {i},nowhere" for i in range(100))
    with pytest.raises(ConfigError) as error:
        read_list(f"name,endpoint\n{rows}", "s.csv")
    lines = str(error.value).splitlines()
    assert lines[0] == "s.csv: 200 mistakes" and len(lines) == 22 and lines[-1].strip() == "and 180 more"


@pytest.mark.parametrize(
    ("heading", "complaint"),
    [("name,endpoint,colour", "unknown column 'colour'"), ("name", "no column 'endpoint'"), ("", "no column 'name'"),
     ("name,name,endpoint", "column 'name' twice")],
)  # fmt: skip
def test_a_wrong_heading_is_named_with_the_columns_that_there_are(heading: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        read_list(f"{heading}\na,b,c\n", "s.csv")
    assert "password_file" in str(error.value)


def test_one_template_makes_a_device_for_each_row() -> None:
    template = read_template(TEMPLATE, "press.toml")
    made = [instances(template, Row(2 + i, f"press{i}", "opc.tcp://h:1", "stamping", "line1")) for i in range(40)]
    assert [d.name for (d,) in made] == [f"press{i}" for i in range(40)]
    assert made[7][0].browse == ["nsu=urn:press;s=press7/**"] and made[7][0].sampling_ms == 50.0
    assert (made[7][0].area, made[7][0].line) == ("stamping", "line1")


def test_braces_that_are_meant_are_doubled() -> None:
    template = read_template(TEMPLATE.replace("s={name}", "s={{x}}.{line}"), "t")
    assert instances(template, Row(2, "a", "e", "area", "l1"))[0].browse == ["nsu=urn:press;s={x}.l1/**"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=50))
def test_no_value_of_a_row_can_become_anything_but_a_string(value: str) -> None:
    template = read_template('[[device]]\nname = "d"\nbrowse = ["i=85"]\nexclude = ["{endpoint}"]\n', "t")
    (device,) = instances(template, Row(2, "a", value))
    assert device.exclude == [value] and device.sampling_ms == 0.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[device", "not TOML"), ("", "no [[device]] table"), ("device = 3", "no [[device]] table"),
        (TEMPLATE + "[mqtt]\n", "unknown table 'mqtt'"), (TEMPLATE + "sampling = 3\n", "unknown field `sampling`"),
        (TEMPLATE.replace("{name}/", "{nmae}/"), "{nmae} stands for nothing"),
        (TEMPLATE.replace("nsu=urn:press;s", "x"), "names no node"),
        (TEMPLATE.replace("50", "-1"), "sampling_ms"), (TEMPLATE.replace('name = "{name}"\n', ""), "name"),
    ],
)  # fmt: skip
def test_a_template_that_is_wrong_is_refused_before_any_row(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_template(text, "press.toml")
    assert complaint in str(error.value) and "press.toml" in str(error.value)


def test_two_rows_that_make_the_same_device_are_named() -> None:
    template = read_template(TEMPLATE.replace('"{name}"', '"press"'), "t")
    rows = [Row(2, "a", "e"), Row(3, "b", "e")]
    with pytest.raises(ConfigError, match="row 3, column template: device 'press' exists by row 2"):
        check_names([(row, d) for row in rows for d in instances(template, row)], "s.csv")


def test_the_list_and_the_template_in_the_docs_are_legal() -> None:
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    (listed,) = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)
    (fragment,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    rows, template = read_list(listed, "servers.csv"), read_template(fragment, "press.toml")
    assert [r.name for r in rows] == ["press1", "robot1"]
    assert instances(template, rows[0])[0].browse == ["nsu=urn:press;s=press1/**"]
