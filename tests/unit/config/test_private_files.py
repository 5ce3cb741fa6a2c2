"""Files that others can read are told of: at the start, and by doctor."""

from pathlib import Path

import pytest

from service.config.private_files import open_to_others
from service.config.settings import load_settings


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o440, 0o604, 0o602, 0o644])
def test_files_that_any_user_can_read_or_write_are_given_with_their_setting(tmp_path: Path, mode: int) -> None:
    # given
    files = {
        "POINTILLIST_API_TOKEN_FILE": tmp_path / "token",
        "POINTILLIST_CALLERS_FILE": tmp_path / "callers.toml",
        "POINTILLIST_OUTBOX_URL": tmp_path / "outbox.db",
    }
    for path in files.values():
        path.write_text("x")
        path.chmod(mode)
    environ = {setting: str(path) for setting, path in files.items()}
    environ["POINTILLIST_OUTBOX_URL"] = f"sqlite:///{files['POINTILLIST_OUTBOX_URL']}"

    # when
    found = list(open_to_others(load_settings(environ)))

    # then
    expected = [(setting, path, f"{mode:04o}") for setting, path in files.items()] if mode & 0o006 else []
    assert found == expected
