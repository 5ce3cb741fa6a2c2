"""Mapping files: which can be used, and what is said of those that cannot."""

import re
from pathlib import Path

import pytest

from service.errors import MappingFileError
from service.mapping.mapping_file import compile_mapping, load_mapping
from service.mapping.rules import Row, Rules

ROW = '[[track]]\nfrom = "properties"\nto = "labels"\n'


def refusal(text: str) -> str:
    with pytest.raises(MappingFileError) as caught:
        compile_mapping(text, "mapping.toml")
    return str(caught.value)


def test_the_built_in_mapping_is_segments_table() -> None:
    assert load_mapping(None).describe() == (
        'event_source = "Segment"\nactor_class = "Customer"\ntime_format = "iso8601"\nnumbers = "string"\n\n'
        '[[track]]\nfrom = "context.location"\nto = "labels"\nprefix = "location_"\n\n'
        '[[track]]\nfrom = "context.campaign"\nto = "labels"\nprefix = "campaign_"\n\n'
        '[[track]]\nfrom = "context.traits"\nto = "labels"\n\n'
        '[[track]]\nfrom = "context.device"\nto = "labels"\nprefix = "device_"\n\n'
        '[[track]]\nfrom = "properties"\nto = "labels_and_numbers"\n\n'
        '[[identify]]\nfrom = "traits"\nto = "labels_and_numbers"\n'
    )


def test_an_operators_file_replaces_the_built_in_mapping(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'\ufeffevent_source = "Zürich"\n{ROW}', encoding="utf-8")

    description = load_mapping(file).describe()

    assert 'event_source = "Zürich"' in description
    assert "[[identify]]" not in description


def test_a_file_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"

    with pytest.raises(MappingFileError, match=re.escape(f"{file}: cannot be read: No such file")):
        load_mapping(file)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin1.toml"
    file.write_bytes(b'event_source = "Z\xfcrich"')

    with pytest.raises(MappingFileError, match=r"latin1\.toml: byte 17 is not UTF-8"):
        load_mapping(file)


def test_every_fault_of_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("numbers = 1", encoding="utf-8")

    with pytest.raises(MappingFileError, match=re.escape(f"{file}: numbers is an integer; expected a string")):
        load_mapping(file)


def test_text_that_is_not_toml_is_refused_with_its_line() -> None:
    assert re.fullmatch(r"mapping\.toml: is not TOML: .*line 2.*", refusal('event_source = "x"\nnumbers = \n'))


def test_toml_too_deep_to_read_is_refused() -> None:
    assert refusal(f"numbers = {'[' * 5000}").startswith("mapping.toml: is not TOML")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('event_sorce = "x"', 'unknown key "event_sorce"; expected "event_source"'),
        ('zzz = "x"', 'unknown key "zzz"; expected event_source, actor_class, time_format, numbers, track or identify'),
        ('event_source = ""', "event_source is empty; expected a string of one character or more"),
        ("actor_class = 1.5", "actor_class is a float; expected a string"),
        ("actor_class = 2026-01-01", "actor_class is a date or time; expected a string"),
        ('numbers = "strings"', 'numbers is "strings"; expected "string" or "json"'),
        ("numbers = true", "numbers is a boolean; expected a string"),
        ('time_format = "ISO"', 'time_format is "ISO"; expected "iso8601" or an strftime pattern'),
        ('time_format = "100%%"', 'time_format is "100%%"; expected "iso8601" or an strftime pattern'),
        ('[track]\nfrom = "properties"', "track is a table; expected rows, each of which begins [[track]]"),
        ("identify = [1]", "identify is an array; expected rows, each of which begins [[identify]]"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_what_was_expected(text: str, message: str) -> None:
    assert refusal(text).startswith("mapping.toml: ")
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('to = "labels"', "has no from; expected a path in the event"),
        ('from = "properties"', "has no to; expected labels, numbers, labels_and_numbers or actors.<Class>.<Id>"),
        ('from = "properties"\nto = "labels"\nprefx = "x"', 'unknown key "prefx"; expected "prefix"'),
        ('from = 1\nto = "labels"', "from is an integer; expected a string"),
        ('from = ""\nto = "labels"', "from is empty"),
        (
            'from = "propertys"\nto = "labels"',
            'from is "propertys", which is no path in track messages; expected one that begins with "properties"',
        ),
        ('from = "Context.ip"\nto = "labels"', 'begins with "context"'),
        (
            'from = "zzz"\nto = "labels"',
            "begins with userId, anonymousId, messageId, event, properties, context, integrations, timestamp, original",
        ),
        ('from = "user_id"\nto = "labels"', 'begins with "userId"'),
        ('from = "context..ip"\nto = "labels"', 'from is "context..ip", which has an empty name in it'),
        ('from = "userId.x"\nto = "labels"', 'userId is one value with nothing below it; expected "userId"'),
        ('from = "timestamp.seconds"\nto = "labels"', "timestamp is one value with nothing below it"),
        ('from = "properties"\nto = "label"', 'to is "label"; expected labels, numbers, labels_and_numbers or actors.'),
        ('from = "properties"\nto = ["labels"]', "to is an array; expected a string"),
        ('from = "properties.a"\nto = "actors"', 'to is "actors"; expected actors.<Class>.<Id>'),
        ('from = "properties.a"\nto = "actors.Order"', 'to is "actors.Order"; expected actors.<Class>.<Id>'),
        ('from = "properties.a"\nto = "actors..id"', 'to is "actors..id"; expected actors.<Class>.<Id>'),
        ('from = "properties.a"\nto = "actors.A.b.c"', 'to is "actors.A.b.c"; expected actors.<Class>.<Id>'),
        ('from = "properties"\nto = "actors.A.b"', "an object, and an identifier is one value; expected a path below"),
        ('from = "context.device"\nto = "actors.A.b"', "an object, and an identifier is one value"),
        ('from = "properties.a"\nto = "actors.A.b"\nprefix = "x"', "expected none of them in a row to actors.A.b"),
        ('from = "properties"\nto = "labels"\nprefix = 1', "prefix is an integer; expected a string"),
        ('from = "properties"\nto = "labels"\nkeep = "email"', "keep is a string; expected an array of paths"),
        ('from = "properties"\nto = "labels"\ndrop = ["a", 1]', "drop[1] is an integer; expected a string"),
        ('from = "properties"\nto = "labels"\ndrop = [""]', "drop[0] is empty"),
        ('from = "properties"\nto = "labels"\ndrop = ["a."]', 'drop[0] is "a.", which has an empty name in it'),
        ('from = "properties"\nto = "labels"\nrename = ["a"]', "rename is an array; expected a table"),
        ('from = "properties"\nto = "labels"\nrename = {a = 1}', "rename: a is an integer; expected a string"),
        ('from = "properties"\nto = "labels"\nrename = {a = ""}', "rename: a is empty"),
        ('from = "properties"\nto = "labels"\nrename = {a.b = "x", "a.b" = "y"}', 'rename names "a.b" twice'),
        ('from = "properties"\nto = "labels"\nkeep = ["a"]\ndrop = ["a"]', 'keep names "a", which drop = ["a"] leaves'),
        ('from = "properties"\nto = "labels"\nkeep = ["a.b"]\ndrop = ["a"]', 'keep names "a.b", which drop = ["a"]'),
        ('from = "properties"\nto = "labels"\nrename = {a = "b"}\ndrop = ["a"]', 'rename names "a", which drop'),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_place_and_what_was_expected(row: str, message: str) -> None:
    text = f"{ROW}[[track]]\n{row}"

    assert refusal(text).startswith("mapping.toml: row 2 of [[track]]: ")
    assert message in refusal(text)


def test_a_row_of_identify_cannot_name_what_only_a_track_has() -> None:
    assert refusal('[[identify]]\nfrom = "properties"\nto = "labels"').startswith(
        'mapping.toml: row 1 of [[identify]]: from is "properties", which is no path in identify messages'
    )


def test_two_rows_for_one_identifier_are_refused() -> None:
    row = '[[track]]\nfrom = "properties.a"\nto = "actors.Order.id"\n'

    assert refusal(row + ROW + row) == (
        "mapping.toml: row 3 of [[track]]: actors.Order.id is made by row 1 already; expected one row for an identifier"
    )


@pytest.mark.parametrize("name", ["userId", "anonymousId"])
def test_a_row_for_an_identifier_that_every_mapping_makes_is_refused(name: str) -> None:
    text = f'actor_class = "Account"\n[[identify]]\nfrom = "traits.id"\nto = "actors.Account.{name}"\n'

    assert "is made by every mapping already" in refusal(text)
    compile_mapping(text.replace('"Account"', '"Customer"'), "mapping.toml")  # of another class it is another one


def test_a_track_row_and_an_identify_row_can_make_one_identifier() -> None:
    compile_mapping(
        '[[track]]\nfrom = "properties.a"\nto = "actors.A.b"\n[[identify]]\nfrom = "traits.a"\nto = "actors.A.b"\n',
        "mapping.toml",
    )


def test_what_a_mapping_describes_reads_back_as_the_same_mapping() -> None:
    row = Row('context.a b".c', "numbers", 'p\\"\x7f\n', ("k",), ("d.e", "ü"), (("x y", 'n"'), ("a.b", "c")))
    rules = Rules(
        'S"', "C\u0001", "%Y\t", "json", (row, Row("properties.id", "actors.Order.id")), (Row("traits", "labels"),)
    )

    assert compile_mapping(rules.as_toml(), "test").describe() == rules.as_toml()
    assert load_mapping(None).describe() == compile_mapping(load_mapping(None).describe(), "test").describe()


def test_a_file_of_settings_alone_has_no_rows() -> None:
    assert compile_mapping("track = []", "mapping.toml").describe() == Rules().as_toml()
