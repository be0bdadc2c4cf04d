"""The status page: the facts of `reconcile status`, `check` and `report` in one self-contained HTML document.

Design rules
- The page begins with what to do: the lines of `check` on the work that are not OK, each with the command to type.
- There is no script, no external asset and no inline style. The Content-Security-Policy demands that, and allows the
  one
  style sheet by its hash. A page served by a daemon reloads itself (meta refresh).
- Everything in a chart is also in a table beside it, for readers who cannot see it.
- Colour is never the only sign: each colour has a name or a sign of its own. Light and dark follow the reader's system.
- Of many accounts, those with trouble come first, and the rest is counted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Final

from reconciler.database import connection as db
from reconciler.settings import Settings
from reconciler.status import charts
from reconciler.status.check_line import Check
from reconciler.status.check_work import troubles
from reconciler.status.dead_letters import Letter, list_newest
from reconciler.status.html_fleet import show_fleet
from reconciler.status.html_parts import code, number, row, section, table
from reconciler.status.markup import Content, Markup, advice, element
from reconciler.status.overview import NAMED, accounts_shown, jobs_shown
from reconciler.status.report import Cost, GapsOfHour, Report, costs, read_gaps_by_hour, read_report
from reconciler.status.snapshot import DAYS_SHOWN, AccountDay, JobState, Snapshot, read_snapshot
from reconciler.status.verdict import Verdict
from reconciler.status.why import Why, next_step, read_why, title
from reconciler.wording import byte_size, counted, differences, rough

_STYLE: Final = files("reconciler.status").joinpath("html_page.css").read_text(encoding="utf-8")
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_REFRESH: Final = 15  # seconds
_HOUR: Final = timedelta(hours=1)
_HOURS: Final = 48
_SIGNS: Final = {
    Verdict.WORKING: ("✓ ", "good"), Verdict.WAITING: ("! ", "warn"), Verdict.STANDING_BY: ("○ ", "soft"),
    Verdict.NOT_WORKING: ("✗ ", "bad"), None: ("", ""),
}  # fmt: skip


def read_page(url: str, settings: Settings, *, state: str, verdict: Verdict | None) -> str:
    """Read the database and return the page; see `render`.

    Raises:
        Unavailable: the database does not answer; or another ReconcilerError with the reason.

    """
    now = datetime.now(UTC)
    grace = settings.webhook_grace
    conn = db.connect(url, purpose="status page", settings={"statement_timeout": "10s"})
    with closing(conn):
        snapshot = read_snapshot(conn, settings, now=now)
        report = read_report(conn, since=now - DAYS_SHOWN, now=now, webhook_grace=grace)
        hours = read_gaps_by_hour(conn, since=now - _HOURS * _HOUR, now=now, webhook_grace=grace)
        why = read_why(conn, since=now - _HOURS * _HOUR, now=now, webhook_grace=grace)
        letters, _ = list_newest(conn, limit=NAMED)
    todo = troubles(snapshot, settings)
    return render(snapshot, report, hours, why=why, letters=letters, todo=todo, state=state, verdict=verdict)


def render(
    snapshot: Snapshot,
    report: Report,
    hours: Sequence[GapsOfHour],
    *,
    why: Why | None = None,
    letters: Sequence[Letter] = (),
    todo: Sequence[Check] = (),
    state: str,
    verdict: Verdict | None,
) -> str:
    """Return the page: the daemon's `state` in words, what to do, and the facts at `snapshot.at`.

    Without a `verdict` the page is a file that no daemon serves.
    """
    return _document(
        state, verdict, snapshot.at,
        (
            _todo(todo, letters),
            _tiles(snapshot),
            _daemons(snapshot),
            show_fleet(snapshot.fleet),
            _jobs(snapshot),
            _gaps(hours, snapshot.at),
            _why(why),
            _completeness(report.days, snapshot.at),
            _recordings(snapshot),
            _stuck(snapshot),
            _tables(snapshot),
        ),
        f"Schema version {snapshot.schema_version}.",
    )  # fmt: skip


def render_failure(reason: str, hint: str | None, *, state: str, verdict: Verdict) -> str:
    """Return the page for a database that does not answer: the daemon's state and the reason."""
    found = [element("p", element("strong", "database"), f": {reason}")]
    if hint:
        found.append(element("p", advice(hint), class_="step"))
    body = section("What to do", element("div", found, class_="todo"))
    return _document(state, verdict, datetime.now(UTC), (body,), "The numbers are in the database.")


def _document(state: str, verdict: Verdict | None, at: datetime, body: Content, foot: str) -> str:
    name, (sign, kind) = verdict or "status", _SIGNS[verdict]
    refresh = None if verdict is None else element("meta", http_equiv="refresh", content=_REFRESH)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        refresh,
        element("title", f"reconciler: {name}"),
        element("style", Markup(_STYLE)),
    )
    time = element("time", f"{at:%Y-%m-%d %H:%M:%S} UTC", datetime=at.isoformat())
    header = element(
        "header",
        element("h1", "reconciler"),
        element("strong", f"{sign}{name}", class_=kind),
        element("span", state),
        element("span", "as of ", time, class_="soft"),
    )
    often = "" if verdict is None else f" This page loads itself again every {_REFRESH} seconds."
    page = element(
        "html", head, element("body", header, element("main", body), element("footer", foot, often)), lang="en"
    )
    return f"<!doctype html>{page}\n"


def _todo(lines: Sequence[Check], letters: Sequence[Letter]) -> Markup | None:
    """Return the section with the warnings of `check`, and the dead letters with their reasons."""
    if not lines:
        return None
    found: list[Content] = []
    for line in lines:
        found.append(element("p", element("strong", line.name), f": {line.detail}"))
        if line.hint:
            found.append(element("p", advice(line.hint), class_="step"))
    rows = [
        row(str(letter.id), (code(letter.call_sid or ""), element("span", letter.reason or "", class_="fit")))
        for letter in letters
    ]
    newest = table("The newest dead letters; reconcile inbox show ID", ("id", "call", "reason"), rows) if rows else None
    return section("What to do", element("div", found, class_="todo"), newest)


def _tiles(snapshot: Snapshot) -> Markup:
    calls, inbox, days = snapshot.calls, snapshot.inbox, snapshot.days
    oldest = "" if inbox.oldest_due_seconds is None else f"oldest {rough(inbox.oldest_due_seconds)}"
    tiles = (
        ("open calls", calls.open, "", ""),
        ("stuck calls", calls.stuck, "warn", ""),
        ("ended, not frozen", calls.unfrozen, "", ""),
        ("webhooks due", inbox.due, "warn", oldest),
        ("webhooks failed", inbox.failed, "warn", ""),
        ("dead letters", inbox.dead_letters, "bad", ""),
        ("account days proven", days.verified, "", f"in {DAYS_SHOWN.days} days"),
        ("account days incomplete", days.incomplete, "bad", ""),
    )
    cells = [
        element(
            "div",
            element("dt", name),
            element(
                "dd",
                f"{'! ' if kind and count else ''}{count:,} ",
                element("small", note),
                class_=kind if count else "",
            ),
        )
        for name, count, kind, note in tiles
    ]
    return element("section", element("dl", cells), aria_label="Numbers")


def _daemons(snapshot: Snapshot) -> Markup:
    leader = snapshot.leader
    lines = ["No daemon leads." if leader is None else f"{leader.name} leads{_since(leader.since)}."]
    if snapshot.fleet is None:
        lines += [f"{standby.name} stands by{_since(standby.since)}." for standby in snapshot.standbys]
    if snapshot.next_runs:
        due = (f"{kind} in {rough(at - snapshot.at)}" for kind, at in snapshot.next_runs.items())
        lines.append(f"Next: {', '.join(due)}.")
    return section("Daemons", [element("p", line) for line in lines])


def _since(moment: datetime | None) -> str:
    return "" if moment is None else f", connected since {moment:%Y-%m-%d %H:%M:%S} UTC"


def _jobs(snapshot: Snapshot) -> Markup:
    shown = jobs_shown(snapshot.jobs)
    rows: list[Content] = [row for job in shown.named for row in _job(job, snapshot.at)]
    if shown.failing_unnamed:
        rows.append(element("tr", element("td", f"and {shown.failing_unnamed:,} more that fail", colspan=4)))
    for group in shown.groups:
        running = f", {group.running:,} running" if group.running else ""
        state = element("td", element("span", "✓ ok", class_="good"), f", {counted(group.jobs, 'account')}{running}")
        oldest = group.oldest_success_seconds
        ago = "never" if oldest is None else f"{rough(oldest)} ago at most"
        rows.append(row(code(group.kind), (), state, number(ago), number("")))
    if not rows:
        rows = [element("tr", element("td", "No job has run yet.", colspan=4))]
    caption = "What each job last did, and how old the newest it has read is"
    return section("Jobs", table(caption, ("job", "state", ("last success",), ("behind",)), rows))


def _job(job: JobState, now: datetime) -> Iterable[Markup]:
    state: Content = element("span", "✓ ok", class_="good")
    if job.last_error_at is not None:
        state = element("span", f"✗ failed {rough(now - job.last_error_at)} ago", class_="bad")
    elif job.last_success_at is None:
        state = "not yet"
    success = "never" if job.age_seconds is None else f"{rough(job.age_seconds)} ago"
    yield element(
        "tr",
        element("th", code(job.job), scope="row"),
        element("td", state, ", running" if job.is_running else ""),
        number(success),
        number("" if job.lag_seconds is None else rough(job.lag_seconds)),
        class_="failed" if job.last_error_at is not None else "",
    )
    if job.last_error_at is not None:
        yield element("tr", element("td", element("div", job.last_error or "", class_="soft fit"), colspan=4))


def _gaps(hours: Sequence[GapsOfHour], now: datetime) -> Markup:
    """Return the gaps of the last two days: stacked bars by hour, and the same as a table."""
    by_hour = {gaps.hour: gaps.kinds for gaps in hours}
    newest = now.replace(minute=0, second=0, microsecond=0)
    shown = [newest - n * _HOUR for n in reversed(range(_HOURS))]
    highest = max((sum(kinds.values()) for kinds in by_hour.values()), default=0)
    title = f"Gaps found in the last {_HOURS} hours"
    if not highest:
        return section(title, element("p", "None was found."))
    totals = {kind: sum(kinds.get(kind, 0) for kinds in by_hour.values()) for kind in charts.KINDS}
    legend = [element("li", charts.swatch(kind), f" {kind} {totals[kind]:,}") for kind in charts.KINDS]
    legend.append(element("li", f"at most {highest:,} an hour", class_="soft"))
    rows = [
        row(f"{hour:%Y-%m-%d %H:00}", (), *(number(f"{by_hour[hour].get(kind, 0):,}") for kind in charts.KINDS))
        for hour in reversed(shown)
        if hour in by_hour
    ]
    caption = "Gaps by the hour they were found in, UTC"
    listed = table(caption, ("hour", *((kind,) for kind in charts.KINDS)), rows)
    return section(
        title,
        element("ul", legend, class_="legend"),
        charts.gaps_by_hour(shown, by_hour, highest),
        element("details", element("summary", "As a table"), listed),
    )


def _why(why: Why | None) -> Markup | None:
    """The causes of lost webhooks, most frequent first, each with the next step."""
    if why is None or not why.causes:
        return None
    rows: list[Content] = [
        row(
            cause.cause.value, (), number(f"{cause.gaps:,}"),
            element("td", title(cause), element("div", advice(next_step(cause)), class_="soft"), class_="why"),
        )
        for cause in why.causes[:NAMED]
    ]  # fmt: skip
    if len(why.causes) > NAMED:
        more = f"and {len(why.causes) - NAMED:,} more causes: reconcile why --since {_HOURS}h"
        rows.append(element("tr", element("td", more, colspan=3)))
    caption = f"{counted(why.gaps, 'call')} by cause, each counted once; reconcile why --since {_HOURS}h"
    unread = [element("p", f"! {line}.", class_="soft") for line in why.unread]
    return section("Why webhooks lost them", table(caption, ("cause", ("calls",), "what to do"), rows), unread)


def _completeness(days: Sequence[AccountDay], now: datetime) -> Markup:
    """Return a calendar for each account: each of the last 35 days is proven, incomplete or not proven."""
    if not days:
        return section("Completeness", element("p", "No day is proven yet: the cold job does it, once a day."))
    shown = [now.date() - timedelta(days=n) for n in range(DAYS_SHOWN.days, 0, -1)]
    accounts, hidden = accounts_shown(days)
    parts: list[Content] = []
    for account, known in accounts.items():
        proven = sum(1 for day in shown if day in known and known[day].is_complete)
        unproven = [day for day in shown if day not in known]
        label = f"{proven} of the last {len(shown)} days proven complete"
        times = [[", " if n else "", element("time", day.isoformat())] for n, day in enumerate(unproven)]
        listed = element("details", element("summary", f"{len(unproven)} not proven"), element("p", times))
        parts.append(element("h3", element("code", account)))
        parts.append([element("p", f"{label}."), charts.calendar(known, shown, label), listed if unproven else None])
    if hidden:
        parts.append(element("p", f"And {counted(hidden, 'account')} with no more trouble than these."))
    incomplete = sorted((day for day in days if not day.is_complete), key=lambda day: day.day, reverse=True)
    legend = [element("li", charts.swatch(kind, sign), f" {name}") for kind, sign, name in charts.DAY_KINDS]
    return section(
        "Completeness", element("ul", legend, class_="legend"), parts, _incomplete(incomplete), _costs(costs(days))
    )


def _incomplete(days: Sequence[AccountDay]) -> Markup | None:
    if not days:
        return None
    rows: list[Content] = [
        row(
            day.day.isoformat(), (code(day.account_sid),), number(f"{day.listed:,}"), number(f"{day.held:,}"),
            element("td", differences(day.differences), class_="why"),
            element("td", element("code", f"reconcile --since {day.day} --until {day.day + timedelta(days=1)}")),
        )
        for day in days[:NAMED]
    ]  # fmt: skip
    if len(days) > NAMED:
        more = f"and {len(days) - NAMED:,} more: reconcile report --since 35d"
        rows.append(element("tr", element("td", more, colspan=6)))
    headings = ("day", "account", ("listed",), ("held",), "differences", "to read it again")
    return table("Days that are not complete", headings, rows)


def _costs(known: Sequence[Cost]) -> Markup | None:
    """Return what the calls of each account cost; None if Twilio told no price."""
    if not known:
        return None
    rows: list[Content] = [
        row(
            element("code", cost.account_sid), (cost.price_unit,), number(f"{cost.days:,}"),
            number(f"{cost.billed:,f}"), number(f"{cost.held:,f}"), number(f"{len(cost.drifts):,}"),
        )
        for cost in known[:NAMED]
    ]  # fmt: skip
    headings = ("account", "currency", ("days",), ("Twilio billed",), ("our rows",), ("days that differ",))
    return table("What the calls of these days cost; reconcile report names the days that differ", headings, rows)


def _recordings(snapshot: Snapshot) -> Markup | None:
    """Return how many recordings are told, and whose cannot be read; None for accounts without recordings."""
    found = snapshot.recordings
    lines: list[Content] = []
    if found.listed:
        window = f"in the account days of the last {DAYS_SHOWN.days}"
        lines.append(element("p", f"Twilio lists {found.listed:,} {window}; events tell of {found.told:,}."))
    for each in found.refused[:NAMED]:
        ago = f"! Refused {rough(snapshot.at - each.refused_at)} ago: the credentials may not read those of "
        lines.append(element("p", ago, code(each.account_sid), "."))
    if len(found.refused) > NAMED:
        lines.append(element("p", f"And those of {len(found.refused) - NAMED:,} more accounts."))
    return section("Recordings", lines) if lines else None


def _stuck(snapshot: Snapshot) -> Markup | None:
    calls = snapshot.calls
    rows = [
        row(
            element("code", call.call_sid), (call.status,), number(rough(snapshot.at - call.began_at)),
            element("td", code(call.account_sid or "")),
        )
        for call in calls.stuck_calls
    ]  # fmt: skip
    if not rows:
        return None
    caption = f"The oldest {len(rows)} of {calls.stuck:,}; reconcile call SID shows one from both sides"
    return section("Stuck calls", table(caption, ("call", "status", ("open for",), "account"), rows))


def _tables(snapshot: Snapshot) -> Markup:
    rows = [
        row(table.table, (), number(byte_size(table.bytes)), number("?" if table.rows is None else f"{table.rows:,}"))
        for table in snapshot.tables
    ]
    return section("Tables", table("With indexes; rows as estimated", ("table", ("size",), ("rows",)), rows))
