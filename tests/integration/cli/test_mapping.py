"""The commands `mapping show` and `mapping check`."""

from pathlib import Path

from tests.support.commands import call
from tests.support.processes import run

ROW = '[[track]]\nfrom = "properties"\nto = "labels_and_numbers"\n'
ACTOR = '[[track]]\nfrom = "properties.order_id"\nto = "actors.Order.orderId"\n'


async def test_the_built_in_mapping_is_shown_as_a_mapping_file_that_can_be_used(tmp_path: Path) -> None:
    # given
    shown = await run("mapping", "show")
    file = tmp_path / "mapping.toml"
    file.write_text(shown.out)

    # when
    checked = await run("mapping", "check", str(file))

    # then
    assert 'event_source = "Segment"' in shown.out_lines
    assert (checked.code, checked.out, checked.err) == (0, f"{file}: can be used\n", "")


def test_the_mapping_that_the_settings_name_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text('event_source = "Ours"\n' + ROW)

    shown = call("mapping", "show", environ={"POINTILLIST_MAPPING_FILE": str(file)})

    assert shown.out_lines[0] == 'event_source = "Ours"'
    assert shown.code == 0


def test_a_file_without_a_row_that_makes_labels_or_numbers_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    for text in ("", ACTOR):
        file.write_text(text)

        checked = call("mapping", "check", str(file))

        assert (checked.code, checked.out) == (0, "")
        assert checked.err == f"{file}: can be used, but no row makes labels or numbers\n"


def test_a_file_that_cannot_be_used_is_said_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    file.write_text('[[track]]\nfrom = "properties"\nto = "nowhere"\n')

    checked = call("mapping", "check", str(file))

    assert (checked.code, checked.out, len(checked.err_lines)) == (2, "", 1)
    assert checked.err.startswith(f"pointillist-destination: {file}: row 1 of [[track]]")
