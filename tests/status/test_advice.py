"""`reconcile` alone says what to do next, in each situation; exit 0 only if nothing is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from reconciler.database import locks
from tests.harness.names import ACCOUNT, TOKEN

SIGNED = {"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN}


@pytest.fixture
def advised(run):
    """Return its advice with credentials: (exit code, situation, step)."""

    def ask(**env: str) -> tuple[int, str, str]:
        done = run(**{**SIGNED, **env})
        if done.code == 0:
            assert done.err == ""
            return 0, done.out.strip(), ""
        situation, step, *more = done.err.splitlines()
        assert (done.out, more[-1]) == ("", "  All commands: reconcile --help")
        return done.code, situation.removeprefix("reconcile: "), step.removeprefix("  → ")

    return ask


@pytest.fixture
def ran(conn):
    """A job that ran just now, with other values where they are given."""

    def insert(job: str = "hot", *, error: str | None = None) -> None:
        now = datetime.now(UTC)
        conn.execute(
            "INSERT INTO sync_state (job_name, last_success_at, last_error_at, last_error) VALUES (%s, %s, %s, %s)",
            (job, now - timedelta(seconds=2), now if error else None, error),
        )

    return insert


@pytest.fixture
def leader(connect, database_url):
    """A daemon that leads."""
    assert locks.try_advisory_lock(connect(database_url), "daemon")


def test_nothing_configured(advised):
    """The demo first, and what to set."""
    code, situation, step = advised(DATABASE_URL="", TWILIO_ACCOUNT_SID="", TWILIO_AUTH_TOKEN="")
    assert (code, situation) == (64, "neither a database nor a Twilio account is configured")
    assert "`reconcile demo`" in step and "DATABASE_URL" in step


def test_no_database(advised):
    """Its setting, and the way without it."""
    code, situation, step = advised(DATABASE_URL="")
    assert (code, situation) == (64, "DATABASE_URL is not set")
    assert "`reconcile --since 7d`" in step


def test_no_credentials(advised):
    """The settings that are missing."""
    code, situation, _ = advised(TWILIO_AUTH_TOKEN="")
    assert code == 78
    assert "TWILIO_AUTH_TOKEN" in situation


def test_a_setting_that_cannot_be_read(advised):
    """Named, before anything is connected to."""
    code, situation, _ = advised(RECONCILER_OVERLAP="soon")
    assert code == 78
    assert situation.startswith("RECONCILER_OVERLAP")


def test_a_database_that_is_away(advised):
    """The advice has the server's reason."""
    code, situation, step = advised(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (code, situation.partition(":")[0]) == (69, "the database is unavailable")
    assert "DATABASE_URL" in step


def test_behind_on_migrations(advised, empty_database_url):
    """The advice is to look first, then to apply. To ask migrates nothing."""
    for _ in range(2):
        code, situation, step = advised(DATABASE_URL=empty_database_url)
        assert code == 1
        assert situation.endswith("not applied yet")
        assert "`reconcile migrate --dry-run`" in step


def test_never_run(advised):
    """A backfill that only shows what it would do."""
    code, situation, step = advised()
    assert (code, situation) == (1, "daemon: none leads: jobs run only when somebody starts them")
    assert "`reconcile --since 7d --dry-run`" in step


def test_no_daemon(advised, ran):
    """Jobs have run only because somebody started them."""
    ran()
    code, _, step = advised()
    assert (code, step) == (1, "start it: `systemctl start reconciler`, or `reconcile run`")


def test_credentials_that_were_refused(advised, ran):
    """The refusal comes before "no daemon leads": a new start would lock the account."""
    ran(error="Twilio refused the credentials (HTTP 401, Twilio error 20003: Authenticate)")
    code, situation, step = advised()
    assert code == 1
    assert "Twilio refused the credentials" in situation
    assert "start it" not in step and "`reconcile check`" in step


@pytest.mark.usefixtures("leader")
def test_a_job_that_fails(advised, ran):
    """The advice has its reason, with numbers masked."""
    ran()
    ran("warm", error="no word from +15005550100")
    code, situation, _ = advised()
    assert (code, situation) == (1, "jobs: warm failed 0 s ago: no word from ***00")


@pytest.mark.usefixtures("leader")
def test_dead_letters(advised, ran, conn):
    """Where to see them, and how to read them again."""
    ran()
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, processing_status)"
        " VALUES ('twilio_voice', 'call-status', '1', '{}', 'dead_letter')"
    )
    code, situation, step = advised()
    assert (code, situation) == (1, "inbox: 1 dead letter could not be read")
    assert "`reconcile inbox list`" in step


@pytest.mark.usefixtures("leader")
def test_what_waits_behind_the_first_thing(run, ran, conn):
    """Is counted: a call that is stuck is no "all is well", and a day that is not complete comes before it."""
    ran()
    conn.execute(
        "INSERT INTO account_days (account_sid, day, listed, held, digest, differences, is_complete, verified_at)"
        " VALUES (%s, (now() - interval '2 days')::date, 2, 1, '', '{}', false, now())",
        (ACCOUNT,),
    )
    conn.execute(
        "INSERT INTO messages (twilio_sid, account_sid, direction, status, from_number, to_number, date_created)"
        " VALUES ('CA11111111111111111111111111111111', %s, 'inbound', 'queued', '', '', now() - interval '3 days')",
        (ACCOUNT,),
    )
    done = run(**SIGNED)
    assert done.code == 1
    assert done.err.splitlines()[0].startswith("reconcile: days: 1 account day not proven complete, the newest 2")
    assert "  And 1 other thing: `reconcile check` lists all." in done.err.splitlines()


@pytest.mark.usefixtures("leader")
def test_all_is_well(advised, ran):
    """Said on stdout, with exit code 0."""
    ran()
    code, said, _ = advised()
    assert code == 0
    assert re.match(r"All is well: database process \d+ leads, and a job ended \d s ago\.", said)


def test_options_alone_are_still_no_command(run):
    """`--dry-run` without a window does nothing, and looks at nothing."""
    done = run("--dry-run", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (done.code, done.out) == (64, "")
    assert "neither a command nor --since was given" in done.err
