"""The status page: what `reconcile status` and `report` know, as one HTML document that needs nothing else.

Design rules
- Everything shown goes through `_text`: escaped, and numbers masked. No script, no external asset, no inline style; the
  Content-Security-Policy says so, and allows the one style sheet by its hash.
- A picture never says more than a table beside it: whoever cannot see it reads the table.
- Colours say nothing alone: each is named, or has a sign of its own. Light and dark follow the reader's system.
"""

# ruff: noqa: E501 -- markup is read by its lines

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from html import escape
from importlib.resources import files
from typing import Final

from reconciler import db, report
from reconciler.config import Settings
from reconciler.logs import mask
from reconciler.model import Gap
from reconciler.report import Day, GapsOfHour, JobState, Report, Status

_STYLE: Final = files("reconciler").joinpath("status_page.css").read_text(encoding="utf-8")
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_KINDS: Final = tuple(gap.value for gap in Gap)
_HOUR: Final = timedelta(hours=1)
_CELL: Final = 18  # pixels of a day


def read_page(url: str, settings: Settings, *, state: str, is_well: bool) -> str:
    """The page as the database knows things now.

    Raises:
        Unavailable: the database does not answer; or another ReconcilerError with the reason.

    """
    now = datetime.now(UTC)
    grace = settings.webhook_grace
    conn = db.connect(url, purpose="status page", settings={"statement_timeout": "10s"})
    with closing(conn):
        status = report.status(conn, now=now, stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace)
        days = report.report(conn, since=now - report.DAYS_SHOWN, now=now, webhook_grace=grace)
        hours = report.gaps_by_hour(conn, since=now - 48 * _HOUR, now=now, webhook_grace=grace)
    return render(status, days, hours, state=state, is_well=is_well)


def render(status: Status, completeness: Report, hours: Sequence[GapsOfHour], *, state: str, is_well: bool) -> str:
    """The page: how the daemon is (`state`, in words), and what the database knows at `status.at`."""
    at = f"{status.at:%Y-%m-%d %H:%M:%S} UTC"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{'Working' if is_well else 'Not working'} · reconciler</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>reconciler</h1><span class='state {'good' if is_well else 'bad'}'>",
            f"{'✓ working' if is_well else '✗ not working'}</span><span>{_text(state)}</span>",
            f"<span class='soft'>as of <time datetime='{status.at.isoformat()}'>{at}</time></span></header><main>",
            _tiles(status),
            _jobs(status.jobs),
            _gaps(hours, status.at),
            _completeness(completeness.days, status.at),
            _stuck(status),
            _tables(status),
            f"</main><footer>Schema version {status.schema_version}. Reload for the present.</footer></body></html>",
        )
    )


def _tiles(status: Status) -> str:
    calls, inbox, days = status.calls, status.inbox, status.days
    oldest = "" if inbox.oldest_due_seconds is None else f", oldest {_age(inbox.oldest_due_seconds)}"
    tiles = [
        ("open calls", calls.open, ""),
        ("stuck calls", calls.stuck, "warn"),
        ("ended, not frozen", calls.unfrozen, ""),
        (f"webhooks due{oldest}", inbox.due, "warn"),
        ("webhooks failed", inbox.failed, "warn"),
        ("dead letters", inbox.dead_letters, "bad"),
        ("days proven, of 35", days.verified, ""),
        ("days incomplete", days.incomplete, "bad"),
    ]
    cells = (
        f"<div><dt>{_text(name)}</dt><dd class='{kind if count else ''}'>{'! ' if kind and count else ''}{count:,}</dd></div>"
        for name, count, kind in tiles
    )
    return f"<section aria-label='Numbers'><dl>{''.join(cells)}</dl></section>"


def _jobs(jobs: Sequence[JobState]) -> str:
    rows = []
    for job in jobs:
        is_failing = job.last_error is not None
        state = (
            f"<span class='bad'>✗ failed {_ago(job.last_error_at, job)}</span>"
            if is_failing
            else "<span class='good'>✓</span> running"
            if job.is_running
            else "<span class='good'>✓</span>"
        )
        rows.append(
            f"<tr><th scope='row'>{_text(job.job)}</th><td>{state}</td>"
            f"<td class='n'>{_age(job.age_seconds) or 'never'}</td><td class='n'>{_age(job.lag_seconds)}</td>"
            f"<td class='why'>{_text(job.last_error or '')}</td></tr>"
        )
    return _section(
        "Jobs",
        _table(
            "What each job last did",
            ("job", "state", ("last success, ago", True), ("behind", True), "why it failed"),
            rows or ["<tr><td colspan='5'>No job has run yet.</td></tr>"],
        ),
    )


def _gaps(hours: Sequence[GapsOfHour], now: datetime) -> str:
    """Stacked bars, one an hour of the last two days, and the same as a table."""
    by_hour = {gaps.hour: gaps.kinds for gaps in hours}
    newest = now.replace(minute=0, second=0, microsecond=0)
    shown = [newest - n * _HOUR for n in reversed(range(48))]
    highest = max((sum(kinds.values()) for kinds in by_hour.values()), default=0)
    if not highest:
        return _section("Gaps found in the last 48 hours", "<p>None: webhooks told everything.</p>")
    bars = []
    for place, hour in enumerate(shown):
        top = 120.0
        for kind in _KINDS:
            count = by_hour.get(hour, {}).get(kind, 0)
            if count:
                height = max(1.0, 110 * count / highest)
                top -= height
                bars.append(
                    f"<rect class='{kind}' x='{40 + place * 14}' y='{top:.1f}' width='11' height='{height:.1f}'>"
                    f"<title>{hour:%d %b %H:00}: {count:,} {kind}</title></rect>"
                )
        if hour.hour % 6 == 0:
            bars.append(f"<text x='{40 + place * 14}' y='136'>{hour:%H:00}</text>")
    chart = (
        "<div class='wide' tabindex='0' role='region' aria-label='Chart of gaps by hour'>"
        f"<svg viewBox='0 0 720 142' width='720' height='142' role='img' aria-label='Gaps found by hour, up to {highest:,}'>"
        f"<line class='axis' x1='38' x2='716' y1='120.5' y2='120.5'/><text x='0' y='18'>{highest:,}</text>"
        f"<text x='0' y='124'>0</text>{''.join(bars)}</svg></div>"
    )
    legend = "".join(
        f"<li><svg width='11' height='11' aria-hidden='true'><rect class='{kind}' width='11' height='11'/></svg> {kind}</li>"
        for kind in _KINDS
    )
    rows = [
        f"<tr><th scope='row'>{hour:%Y-%m-%d %H:00}</th>"
        + "".join(f"<td class='n'>{by_hour[hour].get(kind, 0):,}</td>" for kind in _KINDS)
        + "</tr>"
        for hour in reversed(shown)
        if hour in by_hour
    ]
    table = _table("Gaps by the hour they were found in, UTC", ("hour", *((kind, True) for kind in _KINDS)), rows)
    return _section(
        "Gaps found in the last 48 hours",
        f"{chart}<ul class='legend'>{legend}</ul><details><summary>As a table</summary>{table}</details>",
    )


def _completeness(days: Sequence[Day], now: datetime) -> str:
    """A calendar for each account: the last 35 days that are over, proven, incomplete or not proven."""
    by_account: dict[str, dict[date, Day]] = {}
    for day in days:
        by_account.setdefault(day.account_sid, {})[day.day] = day
    if not by_account:
        return _section("Completeness", "<p>No day is proven yet: the cold job does it, once a day.</p>")
    shown = [now.date() - timedelta(days=n) for n in range(35, 0, -1)]
    parts = [f"<h3>{_text(account)}</h3>{_calendar(known, shown)}" for account, known in by_account.items()]
    rows = [
        f"<tr><th scope='row'>{_text(day.account_sid)}</th><td>{day.day.isoformat()}</td><td class='n'>{day.listed:,}</td>"
        f"<td class='n'>{day.held:,}</td><td class='why'>{_text(_differences(day.differences))}</td></tr>"
        for day in days
        if not day.is_complete
    ]
    table = _table(
        "Days that are not complete", ("account", "day", ("listed", True), ("held", True), "what differs"), rows
    )
    legend = (
        "<ul class='legend'>"
        + "".join(f"<li>{_swatch(kind, sign)} {name}</li>" for kind, sign, name in _DAY_KINDS)
        + "</ul>"
    )
    return _section("Completeness", legend + "".join(parts) + (table if rows else ""))


_DAY_KINDS: Final = (
    ("proven", "✓", "every call that Twilio lists is held"),
    ("broken", "!", "incomplete"),
    ("unproven", "", "not proven"),
)


def _calendar(known: Mapping[date, Day], shown: Sequence[date]) -> str:
    cells = []
    for place, day in enumerate(shown):
        found = known.get(day)
        kind, sign, name = _DAY_KINDS[2 if found is None else 0 if found.is_complete else 1]
        said = "" if found is None else f", {found.held:,} of {found.listed:,} held"
        x = place * (_CELL + 2)
        cells.append(
            f"<g><title>{day:%a %d %b}: {name}{said}</title>"
            f"<rect class='{kind}' x='{x}' y='0' width='{_CELL}' height='{_CELL}' rx='3'/>"
            f"<text class='sign' x='{x + 5}' y='13'>{sign}</text></g>"
        )
        if day.weekday() == 0:
            cells.append(f"<text x='{x}' y='34'>{day:%d %b}</text>")
    width = len(shown) * (_CELL + 2)
    proven = sum(1 for day in shown if day in known and known[day].is_complete)
    label = f"{proven} of the last {len(shown)} days proven complete"
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{label}'>"
        f"<svg viewBox='0 0 {width} 40' width='{width}' height='40' role='img' aria-label='{label}'>{''.join(cells)}</svg></div>"
    )


def _swatch(kind: str, sign: str) -> str:
    return (
        f"<svg width='14' height='14' aria-hidden='true'><rect class='{kind}' x='0' y='0' width='14' height='14' rx='3'/>"
        f"<text class='sign' x='3' y='11'>{sign}</text></svg>"
    )


def _stuck(status: Status) -> str:
    rows = [
        f"<tr><th scope='row'>{_text(call.call_sid)}</th><td>{_text(call.status)}</td><td>{_text(call.account_sid or '')}</td>"
        f"<td class='n'>{_age((status.at - call.began_at).total_seconds())}</td></tr>"
        for call in status.calls.stuck_calls
    ]
    if not rows:
        return ""
    caption = f"The oldest {len(rows)} of {status.calls.stuck:,}"
    return _section("Stuck calls", _table(caption, ("call", "status", "account", ("open for", True)), rows))


def _tables(status: Status) -> str:
    rows = [
        f"<tr><th scope='row'>{_text(table.table)}</th><td class='n'>{_size(table.bytes)}</td>"
        f"<td class='n'>{'?' if table.rows is None else f'{table.rows:,}'}</td></tr>"
        for table in status.tables
    ]
    return _section(
        "Tables", _table("With indexes; rows as estimated", ("table", ("size", True), ("rows", True)), rows)
    )


def _section(title: str, body: str) -> str:
    name = title.split(maxsplit=1)[0].lower()
    return f"<section aria-labelledby='{name}'><h2 id='{name}'>{title}</h2>{body}</section>"


def _table(caption: str, headings: Iterable[str | tuple[str, bool]], rows: Iterable[str]) -> str:
    cells = "".join(
        f"<th scope='col'>{heading}</th>"
        if isinstance(heading, str)
        else f"<th scope='col' class='n'>{heading[0]}</th>"
        for heading in headings
    )
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{escape(caption)}'><table><caption>{escape(caption)}"
        f"</caption><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _text(value: str) -> str:
    return escape(mask(value))


def _differences(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in counts.items())


def _ago(then: datetime | None, job: JobState) -> str:
    if then is None or job.age_seconds is None or job.last_success_at is None:
        return ""
    return f"{_age(job.age_seconds - (then - job.last_success_at).total_seconds())} ago"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
