"""The start and the end of `reconcile run`: waits for the database, then hands over to the daemon."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reconciler import __version__, metrics
from reconciler.errors import ExitCode, LoginRefused, ReconcilerError, Retriable, Unavailable
from reconciler.logs import get_logger
from reconciler.service.daemon import A_WHILE, Daemon
from reconciler.service.http_server import Health, StatusPage, Web
from reconciler.service.patience import Patience
from reconciler.service.systemd import Notifier
from reconciler.service.workers import Setup
from reconciler.settings import Settings
from reconciler.status.html_page import CONTENT_SECURITY_POLICY, read_page, render_failure
from reconciler.status.verdict import Verdict
from reconciler.twilio.accounts import named_accounts
from reconciler.twilio.client import TwilioClient

log = get_logger(__name__)


def serve(read_settings: Callable[[], Settings], prepare: Callable[[Settings], str], notifier: Notifier) -> ExitCode:
    """Run until a signal, or something that cannot heal, ends it; returns how it ended.

    `read_settings` is asked again for a reload and after a refused login; it reads the files they name, too. `prepare`
    migrates the database and returns its URL.

    Raises:
        ConfigError: the settings, or an address that cannot be listened on.
        Refused: the database turned us away, or lacks privileges for the migrations.
        SchemaError: the schema is not one that this version can work with.

    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    # The default would end nothing where we are the first process of a container.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = read_settings()
    settings.credentials()  # what is missing is said at once
    daemon: Daemon | None = None
    awaited = Health(True, False, "not ready: waiting for the database", Verdict.WAITING)
    web = None
    if settings.http_listen is not None:
        page = StatusPage(
            lambda: _status_page(daemon), CONTENT_SECURITY_POLICY,
            lambda exc: _failed_page(exc, awaited if daemon is None else daemon.health()),
        )  # fmt: skip
        web = Web(settings.http_listen, health=lambda: awaited if daemon is None else daemon.health(), status_page=page)
        web.start()
    metrics.build.info({"version": __version__, "python": platform.python_version()})
    log.info("daemon.started", version=__version__, http_port=None if web is None else web.port)
    try:
        with _patience_of(notifier):
            settings, url = _until_prepared(settings, read_settings, prepare, notifier)
        credentials, client = settings.credentials(), TwilioClient.from_settings(settings)
        setup = Setup(settings, url, client, named_accounts(settings, credentials.account_sid))
        daemon = Daemon(setup, read_settings, prepare, notifier)
        code = daemon.run()
    except KeyboardInterrupt:  # before there was anything to finish; a migration heals
        notifier.stopping("told to, while waiting for the database")
        log.info("daemon.stopped", exit_code=0, unfinished=[], uptime_seconds=0)
        code = ExitCode.DONE
    if web is not None:
        web.close()
    if daemon is not None and daemon.unfinished:
        # The interpreter would wait for their threads.
        sys.stderr.flush()
        os._exit(code)
    return code


def _status_page(daemon: Daemon | None) -> str:
    if daemon is None:
        raise Unavailable("waiting for the database")
    setup, health = daemon.setup(), daemon.health()
    return read_page(setup.url, setup.settings, state=health.reason, verdict=health.verdict)


def _failed_page(error: ReconcilerError, health: Health) -> str:
    return render_failure(str(error), error.hint, state=health.reason, verdict=health.verdict)


@contextmanager
def _patience_of(notifier: Notifier) -> Iterator[None]:
    """Ask systemd to go on waiting, also in the middle of a long migration."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(A_WHILE.total_seconds() / 5):
            notifier.extend_timeout(A_WHILE)

    notifier.extend_timeout(A_WHILE)
    threading.Thread(target=ask, name="patience", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _until_prepared(
    settings: Settings, read_settings: Callable[[], Settings], prepare: Callable[[Settings], str], notifier: Notifier
) -> tuple[Settings, str]:
    """Wait for the database. A login that is refused is tried a few times more, each time with settings read anew.

    Raises:
        LoginRefused: all tries were refused.

    """
    patience = Patience()
    while True:
        try:
            return settings, prepare(settings)
        except Retriable as exc:
            notifier.status(f"waiting for the database: {exc}")
            log.warning("database.awaited", error=str(exc))
            time.sleep(2)
        except LoginRefused as exc:
            wait = patience.wait()
            if wait is None:
                raise
            notifier.status(f"waiting for the database: {exc}")
            log.warning("login.refused", error=str(exc), hint=exc.hint, wait_seconds=wait)
            time.sleep(wait)
            settings = read_settings()
