"""The token: where it comes from, how it is renewed, and that it is never shown."""

from pathlib import Path

import pytest

from service.config.settings import load_settings
from service.config.token import FixedToken, watch_token
from service.errors import SettingsError

TOKEN = "sup3r-s3cret-t0ken"


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_token_in_the_environment_is_the_one_that_is_sent() -> None:
    assert load_settings({"POINTILLIST_API_TOKEN": f" {TOKEN}\n"}).require_token().current() == TOKEN


def test_a_token_in_a_file_is_the_one_that_is_sent(tmp_path: Path) -> None:
    file = write(tmp_path / "token", f"{TOKEN}\n")
    assert load_settings({"POINTILLIST_API_TOKEN_FILE": file}).require_token().current() == TOKEN


def test_serving_without_a_token_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="no token for Pointillist: set POINTILLIST_API_TOKEN, or POINTILLIST_API_TOKEN"
    ):
        load_settings({}).require_token()


def test_two_tokens_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "token", TOKEN)
    assert refusal({"POINTILLIST_API_TOKEN": "other", "POINTILLIST_API_TOKEN_FILE": file}) == (
        "POINTILLIST_API_TOKEN and POINTILLIST_API_TOKEN_FILE are both set: set one of them"
    )


@pytest.mark.parametrize("bad", ["\n", "\x00", "\x7f", "é", "\N{ZERO WIDTH SPACE}", "x" * 8192])
def test_a_token_that_no_header_can_carry_is_refused_and_not_repeated(bad: str, tmp_path: Path) -> None:
    in_environment = refusal({"POINTILLIST_API_TOKEN": f"{TOKEN}{bad}{TOKEN}"})
    in_file = refusal({"POINTILLIST_API_TOKEN_FILE": write(tmp_path / "token", f"{TOKEN}{bad}{TOKEN}")})
    assert in_environment.startswith("POINTILLIST_API_TOKEN: holds something that no HTTP header can carry")
    assert in_file.startswith(
        f"POINTILLIST_API_TOKEN_FILE: '{tmp_path}/token' holds something that no HTTP header can carry"
    )
    assert TOKEN not in in_environment + in_file


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), (" \n", "is empty"), (None, "cannot be read: No such")]
)
def test_a_token_file_without_a_token_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        write(file, content)
    refused = refusal({"POINTILLIST_API_TOKEN_FILE": str(file)})
    assert refused.startswith(f"POINTILLIST_API_TOKEN_FILE: '{file}' ")
    assert message in refused


def test_a_token_file_that_goes_away_before_serving_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    settings = load_settings({"POINTILLIST_API_TOKEN_FILE": write(file, TOKEN)})
    file.unlink()
    with pytest.raises(SettingsError, match=f"POINTILLIST_API_TOKEN_FILE: '{file}' cannot be read"):
        settings.require_token()


def test_a_rewritten_token_file_is_noticed(tmp_path: Path) -> None:
    # Given a token that was read
    source = watch_token(Path(write(tmp_path / "token", "old")))
    assert not source.has_changed()
    # When the file gets another one
    write(tmp_path / "token", "new\n")
    # Then that is the token, and it counts as a change once
    assert source.has_changed()
    assert source.reload()
    assert source.current() == "new"
    assert not source.has_changed()


def test_a_token_file_that_is_unusable_for_the_moment_leaves_the_old_token(tmp_path: Path) -> None:
    # Given a token that was read
    file = tmp_path / "token"
    source = watch_token(Path(write(file, TOKEN)))
    # When the file is emptied, and then removed
    write(file, "")
    emptied = source.has_changed(), source.reload(), source.problem, source.current()
    file.unlink()
    removed = source.has_changed(), source.reload(), source.problem, source.current()
    # Then the old token stays, with a line for the log
    assert emptied == (True, False, f"POINTILLIST_API_TOKEN_FILE: '{file}' holds no token: it is empty", TOKEN)
    missing = f"POINTILLIST_API_TOKEN_FILE: '{file}' cannot be read: No such file or directory"
    assert removed == (True, False, missing, TOKEN)
    # And once it is back the problem is gone
    write(file, TOKEN)
    assert (source.has_changed(), source.reload(), source.problem) == (True, True, None)


def test_a_token_file_that_becomes_readable_again_is_read_though_nobody_wrote_to_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    source = watch_token(Path(write(file, TOKEN)))
    file.chmod(0o000)
    assert source.has_changed()
    source.reload()
    file.chmod(0o600)
    assert source.has_changed()
    assert source.reload()


def test_a_token_source_does_not_show_its_token(tmp_path: Path) -> None:
    source = watch_token(Path(write(tmp_path / "token", TOKEN)))
    fixed = FixedToken(TOKEN)
    assert TOKEN not in f"{source!r} {source} {fixed!r} {fixed}"
