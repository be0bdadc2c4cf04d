"""`reconcile check`: settings, secrets, Twilio, the database and the work, one line each."""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import TypeVar

from reconciler.database import connection as db
from reconciler.errors import ExitCode, ReconcilerError, Unavailable
from reconciler.settings import SecretFile, Settings, secret_files
from reconciler.status.check_database import check_database
from reconciler.status.check_line import Check, Severity, failed, ok, warn
from reconciler.status.check_twilio import check_twilio
from reconciler.status.check_work import check_work
from reconciler.status.snapshot import read_snapshot

T = TypeVar("T")


def check(
    settings: Settings, *, database_url: Callable[[], str], environ: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """Run one check after another and yield their lines; a failure does not stop the later checks.

    `environ` is the environment that the settings were read from. Without it, the files of secrets are not checked.
    """
    yield ok("settings", "can be read, and do not contradict each other")
    if environ is not None:
        yield check_secrets(secret_files(environ))
    # The work comes last: while Twilio refuses the credentials, nobody should first read that a daemon does not run.
    is_readable = yield from _guarded("database", lambda: check_database(database_url(), settings))
    is_refused = False
    for line in _guarded("Twilio", lambda: check_twilio(settings)):
        is_refused = is_refused or line.exit_code is ExitCode.REFUSED
        yield line
    if is_readable:
        yield from _guarded("work", lambda: _check_work(database_url(), settings, is_refused=is_refused))


def _check_work(url: str, settings: Settings, *, is_refused: bool) -> Generator[Check, None, None]:
    with closing(db.connect(url, purpose="check")) as conn:
        snapshot = read_snapshot(conn, settings, now=datetime.now(UTC))
    yield from check_work(snapshot, settings, is_refused=is_refused)


def exit_code(checks: Iterable[Check]) -> ExitCode:
    """Return the exit code of the first failure, else of the first warning that has one."""
    found = sorted(checks, key=lambda check: check.severity is not Severity.FAIL)
    return next((check.exit_code for check in found if check.exit_code), ExitCode.DONE)


def check_secrets(files: list[SecretFile]) -> Check:
    """Warn about secret files that others may write. World-readable ones were already refused with the settings."""
    open_files = [file for file in files if file.mode & (stat.S_IWGRP | stat.S_IWOTH)]
    if open_files:
        detail = ", ".join(f"{file.path} (mode {file.mode:04o})" for file in open_files)
        return warn("secrets", f"others may write {detail}", f"chmod go-w {' '.join(str(f.path) for f in open_files)}")
    if not files:
        return ok("secrets", "none is in a file")
    return ok("secrets", f"{', '.join(file.name for file in files)} in files that only their owner may write")


def _guarded(name: str, look: Callable[[], Generator[Check, None, T]]) -> Generator[Check, None, T | None]:
    """Yield the lines of `look`, the last one about the error that ended it; return what it returns."""
    try:
        return (yield from look())
    except ReconcilerError as exc:
        line = failed(name, exc)
        if name == "Twilio" and isinstance(exc, Unavailable):
            hint = line.hint or "nothing is lost, jobs go on by themselves; https://status.twilio.com"
            line = line._replace(detail=f"does not answer: {exc}", hint=hint)
        yield line
        return None
