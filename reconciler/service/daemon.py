"""The daemon: it holds the lead, starts the worker pool, and reports its state to systemd and monitoring.

Design rules
- This module has no business rule. A job decides what it does; the workers decide what its failure means.
- The main thread only watches: the lead, signals, hung jobs, the watchdog. It blocks for at most one tick. Questions
  to Twilio run in another thread (`_await`) while the main thread goes on watching.
- The daemon waits where a fault heals by itself. While the database or Twilio is away, runs fail; later ones succeed.
- Other faults end the process with their exit code: credentials, privileges, a schema that is not ours. A refusal
  may pass. Before it counts, the daemon reads the settings again and tries the login three times.
- APScheduler plans by the wall clock. When that clock is set, the schedule moves with it (`ClockWatch`).
- Ready means: the database is there and migrated, and Twilio accepted the credentials.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from reconciler import __version__, metrics
from reconciler.database.budgets import Budgets
from reconciler.errors import ConfigError, ExitCode, LoginRefused, ReconcilerError, Refused, Retriable
from reconciler.jobs.registry import Kind
from reconciler.logs import get_logger
from reconciler.masking import mask, redact
from reconciler.service.clock import ClockWatch
from reconciler.service.database_outage import DatabaseOutage
from reconciler.service.http_server import Health
from reconciler.service.leadership import Leadership
from reconciler.service.login_attempts import LoginAttempts
from reconciler.service.runner import Setup, Waits
from reconciler.service.systemd import Notifier
from reconciler.service.workers import make_workers
from reconciler.settings import Settings
from reconciler.status.verdict import Verdict
from reconciler.twilio.accounts import find_accounts, named_accounts
from reconciler.twilio.client import TwilioClient
from reconciler.twilio.listing import Listing

TICK: Final = 1.0  # seconds between two rounds of the main thread
GRACE_TO_STOP: Final = 8.0  # seconds for the pages in hand; systemd waits 15
STATUS_EVERY: Final = 10.0  # seconds
NOTE_EVERY: Final = 3.0  # seconds between two notes of the leader for other processes
ACCOUNTS_READ_EVERY: Final = 1800.0  # seconds: the jobs of a new subaccount start within the hour
TRIED_AGAIN_AFTER: Final = 5.0  # seconds after a question of the main thread that Twilio did not answer
STEP_SHOWN_FOR: Final = 600.0  # seconds for which /readyz mentions a step of the clock
ACCOUNTS_WAIT_GROWS: Final = 2.0  # factor, each time the accounts could not be read
SYSTEMD_WAITS: Final = timedelta(minutes=5)  # the extension asked of systemd, renewed long before it is over
# Settings that a reload cannot change.
SET_BY_RESTART: Final = ("TWILIO_ACCOUNT_SID", "RECONCILER_HTTP_LISTEN", "RECONCILER_ENGINE", "RECONCILER_WORKERS")
_ONCE: Final = threading.Event()  # the `stop` of a session that repeats nothing: the next tick asks again
_ONCE.set()

log = get_logger(__name__)

T = TypeVar("T")
Handler = Callable[[int, Any], None]


class _Stopping(Exception):
    """The daemon was asked to stop while the main thread waited for an answer."""


class Daemon:
    """One daemon; `run` belongs in the main thread. `unfinished` names the jobs still running when `run` returned."""

    def __init__(
        self,
        setup: Setup,
        read_settings: Callable[[], Settings],
        prepare: Callable[[Settings], str],
        notifier: Notifier,
        *,
        kinds: Mapping[str, Kind] | None = None,
        waits: Waits | None = None,
        clock: ClockWatch | None = None,
    ) -> None:
        self._setup = setup
        self._read_settings = read_settings
        self._prepare = prepare
        self._notifier = notifier
        # A signal handler may interrupt `put`, but not an Event's `set`.
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._lead = Leadership(setup.url)
        # Refusals from any thread, with the seconds until the next try; None if that was the last one.
        self._refusals: SimpleQueue[tuple[ReconcilerError, float | None]] = SimpleQueue()
        self._database_login, self._twilio_login = LoginAttempts(), LoginAttempts()
        self._database_outage = DatabaseOutage()
        self._lead_due = 0.0
        self._clock = clock or ClockWatch()
        self._step, self._stepped_at = timedelta(0), -math.inf
        self._workers = make_workers(
            self.setup, on_fatal=lambda error: self._refusals.put((error, None)), kinds=kinds, waits=waits
        )
        self._exit_code: ExitCode | None = None
        self._is_ready = False
        self._lead_trouble = self._twilio_trouble = ""
        self._ticked_at = time.monotonic()
        self._alive_sent_at = self._status_sent_at = self._note_saved_at = 0.0
        self._ready_sent = False
        self._accounts_due = self._credentials_due = 0.0
        self._accounts_wait = TRIED_AGAIN_AFTER
        self.unfinished: list[str] = []

    def setup(self) -> Setup:
        """Return the setup that the current settings lead to."""
        return self._setup

    def run(self, hear: Callable[[int, Handler], object] = signal.signal) -> ExitCode:
        """Serve until a signal or an error that does not heal; let runs finish their pages; return the exit code."""
        started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            hear(number, self._on_signal)
        try:
            while self._exit_code is None:
                self._watch()
                self._handle_refusal()
                self._ask_twilio()
                if self._next_signal(wait=TICK) == signal.SIGHUP:
                    self._reload()
        except _Stopping:
            pass
        except Exception as exc:
            log.exception("program.failed", kind=type(exc).__name__)
            self._exit_code = ExitCode.BUG
        return self._shut_down(started)

    def health(self) -> Health:
        """Return the daemon's health, from memory: no database and no Twilio is asked."""
        health = self._health()
        if time.monotonic() - self._stepped_at > STEP_SHOWN_FOR:
            return health
        remark = f"this machine's clock was set by {self._step.total_seconds():+,.0f} s"
        return health._replace(reason=f"{health.reason}; {remark}")

    def _health(self) -> Health:
        is_alive = time.monotonic() - self._ticked_at < 60
        outage = self._setup.client.outage.current()
        waiting = "" if outage is None else outage.in_words(datetime.now(UTC))
        if (stalled := self._workers.stalled()) is not None:
            return Health(is_alive=False, is_ready=False, reason=f"{stalled} makes no progress")
        if not self._is_ready:
            trouble = self._lead_trouble or waiting or self._twilio_trouble or "asking Twilio"
            verdict = Verdict.WAITING if self._lead_trouble or waiting else Verdict.NOT_WORKING
            return Health(is_alive, False, f"not ready: {trouble}", verdict)
        if not self._lead.leads:
            if self._lead_trouble:
                return Health(is_alive, False, f"waiting for the database: {self._lead_trouble}", Verdict.WAITING)
            return Health(is_alive, *self._workers.state_beside(self._lead.leader))
        if self._workers.hot_at is None:
            verdict = Verdict.WAITING if waiting else Verdict.NOT_WORKING
            return Health(is_alive, False, "; ".join(filter(None, ("hot has not succeeded yet", waiting))), verdict)
        ago = time.monotonic() - self._workers.hot_at
        tolerated = 3 * self._setup.settings.hot_interval + timedelta(seconds=30)
        if ago > tolerated.total_seconds():
            return Health(is_alive, False, "; ".join(filter(None, (f"hot has not succeeded for {ago:.0f} s", waiting))))
        if waiting:
            return Health(is_alive, True, f"{waiting}; hot succeeded {ago:.0f} s ago", Verdict.WAITING)
        return Health(is_alive, True, f"leading, hot {ago:.0f} s ago", Verdict.WORKING)

    # Every tick

    def _watch(self) -> None:
        """Check the clock and the lead; notify the watchdog; update the line of status and the leader's note."""
        self._ticked_at = now = time.monotonic()
        if (step := self._clock.step()) is not None:
            log.warning("clock.stepped", seconds=round(step.total_seconds(), 1))
            self._step, self._stepped_at = step, now
            self._workers.shift(step)
        if now >= self._lead_due:
            self._check_lead()
        watchdog = self._notifier.watchdog
        is_due = watchdog is not None and now - self._alive_sent_at > watchdog.total_seconds() / 3
        if is_due and self._workers.stalled() is None:
            self._alive_sent_at = now
            self._notifier.alive()
        health = self.health()
        if health.is_ready != self._ready_sent or now - self._status_sent_at > STATUS_EVERY:
            self._ready_sent, self._status_sent_at = health.is_ready, now
            self._notifier.status(health.reason)
        if self._lead.leads and now - self._note_saved_at > NOTE_EVERY:
            self._note_saved_at = now
            self._lead.save_note(self._leader_note())

    def _leader_note(self) -> dict[str, Any]:
        """Return the facts that only the leader has: the outage it waits out, and when each job runs next."""
        outage = self._setup.client.outage.current()
        waiting = None
        if outage is not None:
            waiting = {
                "service": "Twilio", "reason": mask(redact(outage.reason)), "attempt": outage.attempt,
                "next_at": outage.next_at.isoformat(), "since": outage.since.isoformat(),
            }  # fmt: skip
        return {"version": __version__, "waiting": waiting, "next_runs": self._workers.next_runs()}

    def _check_lead(self) -> None:
        led, self._lead_trouble = self._lead.leads, ""
        try:
            leads = self._lead.check()
            self._database_login.reset()
            self._database_outage.is_over()
        except Retriable as exc:
            leads, self._lead_trouble = False, str(exc)
            self._database_outage.lasts(exc)
        except LoginRefused as exc:
            leads, self._lead_trouble = False, str(exc)
            pause = self._database_login.count_refusal()
            self._lead_due = time.monotonic() + (pause or 0)
            self._refusals.put((exc, pause))
        except ReconcilerError as exc:
            self._end(exc)
            return
        metrics.leading.set(leads)
        if leads and not led:
            log.info("lead.acquired")
            self._accounts_due = 0.0
            self._workers.start()
        elif led and not leads:
            log.warning("lead.dropped", error=self._lead_trouble)
            self._workers.pause()

    def _await(self, question: Callable[[], T]) -> T:
        """Ask in another thread while watching; raise what `question` raises, or _Stopping when asked to stop."""
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as exc:
                answer.set_exception(exc)

        threading.Thread(target=ask, name="asking", daemon=True).start()
        while self._exit_code is None:
            if wait([answer], TICK).done:
                return answer.result()
            self._watch()
        raise _Stopping

    # Between ticks

    def _ask_twilio(self) -> None:
        now = time.monotonic()
        if (self._lead.leads or self._workers.shares) and now >= self._accounts_due:
            if self._read_accounts():
                self._accounts_wait, self._accounts_due = TRIED_AGAIN_AFTER, now + ACCOUNTS_READ_EVERY
            else:
                self._accounts_due = now + self._accounts_wait
                self._accounts_wait = min(ACCOUNTS_READ_EVERY, self._accounts_wait * ACCOUNTS_WAIT_GROWS)
        if self._is_ready:
            return
        setup = self._setup
        self._notifier.extend_timeout(SYSTEMD_WAITS)
        # A leader that runs hot for the main account needs no extra request: the first run tries the credentials.
        # In a fleet that run may happen elsewhere.
        main = setup.accounts.main
        tried_by_hot = self._lead.leads and main in setup.accounts.sids and not self._workers.shares
        if not setup.client.has_worked and not tried_by_hot and now >= self._credentials_due:
            self._credentials_due = now + TRIED_AGAIN_AFTER
            try:
                self._await(lambda: _try_credentials(setup.client, main))
            except Retriable as exc:
                self._twilio_trouble = str(exc)
            except Refused as exc:
                self._twilio_trouble, pause = str(exc), self._twilio_login.count_refusal()
                self._credentials_due = time.monotonic() + (pause or 0)
                self._refusals.put((exc, pause))
            except ReconcilerError as exc:
                self._end(exc)
        if setup.client.has_worked:
            self._is_ready = True
            self._workers.work()
            self._notifier.ready(self.health().reason)
            log.info("daemon.readied", leads=self._lead.leads)

    def _read_accounts(self) -> bool:
        """Ask Twilio for the accounts if the setting is `all`; return False if Twilio did not answer."""
        setup = self._setup
        if setup.settings.accounts != ("all",):
            return True
        try:
            accounts = self._await(lambda: find_accounts(setup.client.session(_ONCE), setup.accounts.main))
        except ReconcilerError as exc:
            log.error("accounts.failed", error=str(exc), hint=exc.hint)
            return not isinstance(exc, Retriable)
        self._setup = replace(setup, accounts=accounts)
        self._workers.reschedule()
        return True

    def _handle_refusal(self) -> None:
        """After a refusal read the secrets again, since they may have changed. The last refusal ends the daemon."""
        try:
            error, pause = self._refusals.get_nowait()
        except Empty:
            return
        if self._take_settings(only_other_logins=True):
            self._lead_due = self._credentials_due = 0.0
        elif pause is None:
            self._end(error)
        else:
            log.warning("login.refused", error=str(error), hint=error.hint, wait_seconds=pause)

    def _reload(self) -> None:
        """Read the settings again, and report the reload to systemd."""
        self._notifier.reloading()
        self._take_settings()
        self._notifier.ready(self.health().reason)

    def _take_settings(self, *, only_other_logins: bool = False) -> bool:
        """Read the settings again and use them. False: they cannot be used, or no login changed (if one must)."""
        before = self._setup
        client: TwilioClient | None = None
        try:
            settings = self._read_settings()
            if only_other_logins and settings.logins() == before.settings.logins():
                return False
            settings.credentials()
            for name in settings.changed_since(before.settings):
                if name in SET_BY_RESTART:
                    raise ConfigError(f"{name} has changed", hint="only a restart can change it")
            client = TwilioClient.from_settings(settings)
            with suppress(Retriable):  # a Twilio that is away does not mean that the credentials are wrong
                self._await(lambda: _try_credentials(client, before.accounts.main))
            url = before.url
            if settings.database_url != before.settings.database_url:
                url = self._await(lambda: self._prepare(settings))
        except ReconcilerError as exc:
            if client is not None:
                client.close()
            log.error("configuration.refused", error=str(exc), hint=exc.hint)
            return False
        client.pacer.share_through(Budgets(url))
        self._use(settings, url, client)
        return True

    def _use(self, settings: Settings, url: str, client: TwilioClient) -> None:
        """Use these settings from now on."""
        before = self._setup
        is_same = settings.accounts == before.settings.accounts
        accounts = before.accounts if is_same else named_accounts(settings, before.accounts.main)
        self._setup = Setup(settings, url, client, accounts)
        before.client.close()  # a run that still uses it opens a new connection
        self._workers.clear_failures()
        for login in (self._database_login, self._twilio_login):
            login.reset()
        log.info("configuration.reloaded", changed=settings.changed_since(before.settings))
        if url != before.url:
            self._workers.pause()
            self._lead.resign()
            self._lead = Leadership(url)
        elif self._lead.leads:
            self._accounts_due = 0.0
            self._workers.reschedule()

    # The end

    def _shut_down(self, started: float) -> ExitCode:
        """Let the runs finish their current pages, give up the lead, and return the exit code."""
        code = self._exit_code or ExitCode.DONE
        self._notifier.stopping("finishing the pages in hand")
        log.info("daemon.stopping", exit_code=int(code), running=[str(job) for job in self._workers.running()])
        self.unfinished = [str(job) for job in self._workers.stop(within=GRACE_TO_STOP)]
        self._lead.resign()
        log.info(
            "daemon.stopped", exit_code=int(code), unfinished=self.unfinished,
            uptime_seconds=round(time.monotonic() - started),
        )  # fmt: skip
        return code

    def _end(self, error: ReconcilerError) -> None:
        """End the daemon with the exit code of `error`; from any thread. The first error counts."""
        if self._exit_code is None:
            self._exit_code = error.exit_code
            log.error("daemon.failed", error=str(error), kind=type(error).__name__, hint=error.hint)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGHUP:
            if self._exit_code is not None:
                os._exit(self._exit_code or ExitCode.INTERRUPTED)  # a second signal: end at once
            self._exit_code = ExitCode.DONE
        self._signals.put(number)

    def _next_signal(self, *, wait: float) -> int | None:
        try:
            return self._signals.get(timeout=wait)
        except Empty:
            return None


def _try_credentials(client: TwilioClient, account_sid: str) -> None:
    """Try the credentials with one request; raise the error that Twilio's answer means."""
    client.session(_ONCE).page(Listing(account_sid, page_size=1))
