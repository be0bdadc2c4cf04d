"""The embedded server, and the folder that it keeps its lock in, on a machine with other users."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from contextlib import closing
from pathlib import Path

import platformdirs
import pytest

from reconciler.database import connection as db
from reconciler.database import embedded
from reconciler.errors import Unavailable


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files, where every user may lay something; HOME is beside it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def mode(path: Path) -> int:
    """Its permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_of_ours_is_private_and_accepted(temporary: Path) -> None:
    """So is one that an earlier version, or the library, left open to others."""
    folder = temporary / f"reconciler-{os.getuid()}"
    folder.mkdir(mode=0o755)
    (folder / "python_PostgresServer").mkdir(mode=0o711)
    with embedded._surroundings(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert platformdirs.user_runtime_path("python_PostgresServer") == folder / "python_PostgresServer"
    assert mode(folder) == mode(folder / "python_PostgresServer") == 0o700
    assert "XDG_RUNTIME_DIR" not in os.environ


@pytest.mark.parametrize("target", ["folder", "nowhere"])
def test_a_link_that_somebody_laid_is_not_followed(temporary: Path, tmp_path: Path, target: str) -> None:
    """The target of the link does not change; the user's own folder is used."""
    victim = tmp_path / "folder"
    victim.mkdir(mode=0o755)
    (temporary / f"reconciler-{os.getuid()}").symlink_to(tmp_path / target)
    assert embedded._private_folder() == tmp_path / "home" / ".local" / "share" / "reconciler" / "run"
    assert mode(victim) == 0o755
    assert list(victim.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_no_folder(temporary: Path, tmp_path: Path) -> None:
    """The server does not overwrite it. The last error names the folders tried, and the setting."""
    (temporary / f"reconciler-{os.getuid()}").touch()
    (tmp_path / "home").touch()
    with pytest.raises(Unavailable, match=r"reconciler-\d+ and .*run belong to others") as refused:
        embedded._private_folder()
    assert "TMPDIR" in str(refused.value.hint)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_left_alone(temporary: Path, tmp_path: Path) -> None:
    """Its owner could exchange the lock."""
    folder = temporary / f"reconciler-{os.getuid()}"
    folder.mkdir(mode=0o777)
    os.chown(folder, 65534, 65534)
    before = mode(folder)
    assert embedded._private_folder() == tmp_path / "home" / ".local" / "share" / "reconciler" / "run"
    assert mode(folder) == before


def test_a_server_that_was_stopped_starts_again() -> None:
    """Its URL stays, and what it holds."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "pg", keep=False)
        try:
            with closing(db.connect(server.url, purpose="test")) as conn:
                conn.execute("CREATE TABLE kept AS SELECT 1 AS one")
            server.stop()
            with pytest.raises(Unavailable):
                db.connect(server.url, purpose="test")
            server.start_again()
            with closing(db.connect(server.url, purpose="test")) as conn:
                assert conn.execute("SELECT one FROM kept").fetchall() == [(1,)]
        finally:
            server.stop()
