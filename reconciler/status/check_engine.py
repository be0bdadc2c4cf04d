"""`reconcile check` on the engine: whether it is there, as this version needs it, and whether anybody works with it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from reconciler.database import connection as db
from reconciler.database import engine_schema
from reconciler.database.engine_schema import Queue, Worker
from reconciler.errors import ConfigError, ExitCode, Refused, SchemaError
from reconciler.settings import Settings
from reconciler.status.check_line import Check, fail, failed, ok, warn
from reconciler.wording import counted, rough

WAITED_LONG: Final = timedelta(minutes=5)  # a run that is due waits for a worker


def check_engine(conn: db.Connection, settings: Settings) -> Iterator[Check]:
    """Yield the lines about the engine; none if neither this machine nor another uses one."""
    try:
        if engine_schema.shares_work(settings):
            yield from _check_schema(conn)
        else:
            yield from _check_others(conn)
    except (ConfigError, SchemaError, Refused) as exc:
        yield failed("engine", exc)


def _check_schema(conn: db.Connection) -> Iterator[Check]:
    if not engine_schema.is_there(conn):
        yield fail("engine", "its schema is missing", "run `reconcile migrate`", ExitCode.CONFIG)
        return
    if lacking := engine_schema.lacking_privileges(conn):
        detail = f"{conn.info.user} lacks {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}"
        yield fail("engine", detail, "as the owner of messages, run deploy/grants.sql again", ExitCode.REFUSED)
        return
    if missing := engine_schema.behind(conn):
        yield warn("engine", f"its schema is behind: {', '.join(missing)}", "run `reconcile migrate`")
        return
    findings = engine_schema.verify(conn)
    for finding in findings:
        yield fail("engine", f"{finding.subject} {finding.problem}", finding.hint, ExitCode.CONFIG)
    if not findings:
        yield judge(engine_schema.read_workers(conn), engine_schema.read_queues(conn))


def _check_others(conn: db.Connection) -> Iterator[Check]:
    """Warn if other machines work as a fleet: this one would take the lead, and run all jobs alone."""
    if not engine_schema.is_there(conn) or engine_schema.lacking_privileges(conn):
        return
    working = _alive(engine_schema.read_workers(conn))
    if working:
        detail = f"{_names(working)} work as a fleet, and this machine's RECONCILER_ENGINE is local"
        yield warn("engine", detail, "set RECONCILER_ENGINE=procrastinate here too; then `reconcile check`")


def judge(workers: list[Worker], queues: list[Queue]) -> Check:
    """Return the line about workers and queue; pure."""
    due, oldest = sum(queue.due for queue in queues), max((queue.oldest_seconds for queue in queues), default=0.0)
    waiting = f"{counted(due, 'run')} {'waits' if due == 1 else 'wait'} for a worker"
    working = _alive(workers)
    if not working:
        hint = "start a daemon: `systemctl start reconciler`, or `reconcile run`"
        return warn("engine", f"no daemon works; {waiting}", hint)
    if oldest > WAITED_LONG.total_seconds():
        detail = f"{waiting}, the oldest for {rough(timedelta(seconds=oldest))}; {_names(working)} work"
        return warn("engine", detail, "start another daemon, or raise RECONCILER_WORKERS; then `reconcile status`")
    return ok("engine", f"{_names(working)} work; {waiting}")


def _alive(workers: list[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.is_alive]


def _names(workers: list[Worker]) -> str:
    named = [worker.name for worker in workers[:3]]
    rest = [f"{len(workers) - 3} more"] if len(workers) > 3 else []
    return ", ".join([*named, *rest])
