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
from reconciler.database.budgets import Budgets
from reconciler.database.engine_schema import shares_work
from reconciler.errors import ExitCode, LoginRefused, ReconcilerError, Retriable, Unavailable
from reconciler.logs import get_logger
from reconciler.service.daemon import SYSTEMD_WAITS, Daemon
from reconciler.service.database_outage import DatabaseOutage
from reconciler.service.http_server import Health, StatusPage, Web
from reconciler.service.login_attempts import LoginAttempts
from reconciler.service.runner import Setup
from reconciler.service.systemd import Notifier
from reconciler.settings import Settings
from reconciler.status.html_page import CONTENT_SECURITY_POLICY, read_page, render_failure
from reconciler.status.verdict import Verdict
from reconciler.twilio.accounts import named_accounts
from reconciler.twilio.client import TwilioClient

log = get_logger(__name__)


def serve(read_settings: Callable[[], Settings], prepare: Callable[[Settings], str], notifier: Notifier) -> ExitCode:
    """Run the daemon until a signal or an error that does not heal; return its exit code.

    `read_settings` is called again for a reload and after a refused login; it also reads the files that the settings
    name. `prepare` migrates the database and returns its URL.

    Raises:
        ConfigError: the settings cannot be used, or the address cannot be bound.
        Refused: the database refused the login, or the privileges do not suffice for the migrations.
        SchemaError: this version cannot work with the schema.

    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    # The default action does nothing if we are the first process of a container.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = read_settings()
    # Missing credentials or a missing package are an error at once, not after the database has answered.
    settings.credentials()
    shares_work(settings)
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
        with _systemd_waiting(notifier):
            settings, url = _until_prepared(settings, read_settings, prepare, notifier)
        credentials, client = settings.credentials(), TwilioClient.from_settings(settings)
        client.pacer.share_through(Budgets(url))
        setup = Setup(settings, url, client, named_accounts(settings, credentials.account_sid))
        daemon = Daemon(setup, read_settings, prepare, notifier)
        code = daemon.run()
    except KeyboardInterrupt:  # no run was under way, and the next start finishes an interrupted migration
        notifier.stopping("told to, while waiting for the database")
        log.info("daemon.stopped", exit_code=0, unfinished=[], uptime_seconds=0)
        code = ExitCode.DONE
    if web is not None:
        web.close()
    if daemon is not None and daemon.unfinished:
        # The interpreter would wait for the threads of these jobs.
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
def _systemd_waiting(notifier: Notifier) -> Iterator[None]:
    """Ask systemd to go on waiting, again and again, also during a long migration."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(SYSTEMD_WAITS.total_seconds() / 5):
            notifier.extend_timeout(SYSTEMD_WAITS)

    notifier.extend_timeout(SYSTEMD_WAITS)
    threading.Thread(target=ask, name="systemd", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _until_prepared(
    settings: Settings, read_settings: Callable[[], Settings], prepare: Callable[[Settings], str], notifier: Notifier
) -> tuple[Settings, str]:
    """Wait for the database; a refused login is tried a few times more, each time with settings read again.

    Raises:
        LoginRefused: all tries were refused.

    """
    attempts, outage = LoginAttempts(), DatabaseOutage()
    while True:
        try:
            url = prepare(settings)
        except Retriable as exc:
            notifier.status(f"waiting for the database: {exc}")
            outage.lasts(exc)
            time.sleep(2)
        except LoginRefused as exc:
            wait = attempts.count_refusal()
            if wait is None:
                raise
            notifier.status(f"waiting for the database: {exc}")
            log.warning("login.refused", error=str(exc), hint=exc.hint, wait_seconds=wait)
            time.sleep(wait)
            settings = read_settings()
        else:
            outage.is_over()
            return settings, url
