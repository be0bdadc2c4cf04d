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

from reconciler.database import connection as db
from reconciler.masking import mask
from reconciler.model import Gap
from reconciler.settings import Settings
from reconciler.status.report import GapsOfHour, Report, read_gaps_by_hour, read_report
from reconciler.status.snapshot import DAYS_SHOWN, AccountDay, JobState, Snapshot, take_snapshot
from reconciler.wording import byte_size, differences, rough, short_sids

_STYLE: Final = files("reconciler.status").joinpath("html_page.css").read_text(encoding="utf-8")
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_KINDS: Final = tuple(gap.value for gap in Gap)
_HOUR: Final = timedelta(hours=1)
_HOURS: Final = 48
_BAR: Final = 15  # units of the chart for an hour
_CELL: Final = 18  # pixels of a day


def read_page(url: str, settings: Settings, *, state: str, is_well: bool | None) -> str:
    """The page as the database knows things now; see `render`.

    Raises:
        Unavailable: the database does not answer; or another ReconcilerError with the reason.

    """
    now = datetime.now(UTC)
    grace = settings.webhook_grace
    conn = db.connect(url, purpose="status page", settings={"statement_timeout": "10s"})
    with closing(conn):
        status = take_snapshot(conn, now=now, stuck_after=settings.stuck_after, inbox_grace=settings.inbox_grace)
        days = read_report(conn, since=now - DAYS_SHOWN, now=now, webhook_grace=grace)
        hours = read_gaps_by_hour(conn, since=now - _HOURS * _HOUR, now=now, webhook_grace=grace)
    return render(status, days, hours, state=state, is_well=is_well)


def render(
    status: Snapshot, completeness: Report, hours: Sequence[GapsOfHour], *, state: str, is_well: bool | None
) -> str:
    """The page: how the daemon is (`state`, in words; None if nobody asked it), and what is known at `status.at`."""
    verdict, sign, kind = {
        True: ("working", "✓ ", "good"), False: ("not working", "✗ ", "bad"), None: ("status", "", "")
    }[is_well]  # fmt: skip
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>reconciler: {verdict}</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>reconciler</h1><strong class='{kind}'>{sign}{verdict}</strong><span>{_text(state)}</span>",
            f"<span class='soft'>as of <time datetime='{status.at.isoformat()}'>{status.at:%Y-%m-%d %H:%M:%S} UTC</time>",
            "</span></header><main>",
            _tiles(status),
            _jobs(status.jobs, status.at),
            _gaps(hours, status.at),
            _completeness(completeness.days, status.at),
            _stuck(status),
            _tables(status),
            f"</main><footer>Schema version {status.schema_version}. {'' if is_well is None else 'Reload for the present.'}</footer></body></html>\n",
        )
    )


def _tiles(status: Snapshot) -> str:
    calls, inbox, days = status.calls, status.inbox, status.days
    oldest = "" if inbox.oldest_due_seconds is None else f"oldest {rough(inbox.oldest_due_seconds)}"
    tiles = [
        ("open calls", calls.open, "", ""),
        ("stuck calls", calls.stuck, "warn", ""),
        ("ended, not frozen", calls.unfrozen, "", ""),
        ("webhooks due", inbox.due, "warn", oldest),
        ("webhooks failed", inbox.failed, "warn", ""),
        ("dead letters", inbox.dead_letters, "bad", ""),
        ("account days proven", days.verified, "", f"in {DAYS_SHOWN.days} days"),
        ("account days incomplete", days.incomplete, "bad", ""),
    ]
    cells = (
        f"<div><dt>{name}</dt><dd class='{kind if count else ''}'>{'! ' if kind and count else ''}{count:,}"
        f" <small>{note}</small></dd></div>"
        for name, count, kind, note in tiles
    )
    return f"<section aria-label='Numbers'><dl>{''.join(cells)}</dl></section>"


def _jobs(jobs: Sequence[JobState], now: datetime) -> str:
    rows = []
    for job in jobs:
        has_failed = job.last_error_at is not None
        state = "<span class='good'>✓ ok</span>"
        if job.last_error_at is not None:
            state = f"<span class='bad'>✗ failed {rough(now - job.last_error_at)} ago</span>"
        elif job.last_success_at is None:
            state = "not yet"
        if job.is_running:
            state += ", running"
        success = "never" if job.age_seconds is None else f"{rough(job.age_seconds)} ago"
        rows.append(
            f"<tr class='{'failed' if has_failed else ''}'><th scope='row'>{_code(job.job)}</th><td>{state}</td>"
            f"<td class='n'>{success}</td><td class='n'>{'' if job.lag_seconds is None else rough(job.lag_seconds)}</td></tr>"
        )
        if has_failed:
            rows.append(f"<tr><td colspan='4'><div class='soft fit'>{_text(job.last_error or '')}</div></td></tr>")
    return _section(
        "Jobs",
        _table(
            "What each job last did, and how old the newest it has read is",
            ("job", "state", ("last success", True), ("behind", True)),
            rows or ["<tr><td colspan='4'>No job has run yet.</td></tr>"],
        ),
    )


def _gaps(hours: Sequence[GapsOfHour], now: datetime) -> str:
    """Stacked bars, one an hour of the last two days, and the same as a table."""
    by_hour = {gaps.hour: gaps.kinds for gaps in hours}
    newest = now.replace(minute=0, second=0, microsecond=0)
    shown = [newest - n * _HOUR for n in reversed(range(_HOURS))]
    highest = max((sum(kinds.values()) for kinds in by_hour.values()), default=0)
    title = f"Gaps found in the last {_HOURS} hours"
    if not highest:
        return _section(title, "<p>None was found.</p>")
    width = _BAR * (_HOURS + 1)
    bars = []
    for place, hour in enumerate(shown):
        left, top = place * _BAR, 120.0
        for kind in _KINDS:
            if count := by_hour.get(hour, {}).get(kind, 0):
                height = max(1.5, 106 * count / highest)
                top -= height
                bars.append(
                    f"<rect class='{kind}' x='{left}' y='{top:.1f}' width='{_BAR - 3}' height='{height:.1f}'>"
                    f"<title>{hour:%d %b %H:00}: {count:,} {kind}</title></rect>"
                )
        if hour.hour % 6 == 0:
            # The first one's middle lies too near the edge for its text.
            bars.append(
                f"<text class='hour' x='{max(14, left + _BAR // 2)}' y='137'>{hour:{'%H:00' if hour.hour else '%d %b'}}</text>"
            )
    chart = _picture(
        f"Gaps found by hour, up to {highest:,} in one",
        (width, 142),
        f"<line class='axis' x1='0' x2='{width}' y1='120.5' y2='120.5'/>{''.join(bars)}",
        kind="chart",
    )
    totals = {kind: sum(kinds.get(kind, 0) for kinds in by_hour.values()) for kind in _KINDS}
    legend = "".join(f"<li>{_swatch(kind)} {kind} {totals[kind]:,}</li>" for kind in _KINDS)
    rows = [
        f"<tr><th scope='row'>{hour:%Y-%m-%d %H:00}</th>"
        + "".join(f"<td class='n'>{by_hour[hour].get(kind, 0):,}</td>" for kind in _KINDS)
        + "</tr>"
        for hour in reversed(shown)
        if hour in by_hour
    ]
    table = _table("Gaps by the hour they were found in, UTC", ("hour", *((kind, True) for kind in _KINDS)), rows)
    return _section(
        title,
        f"<ul class='legend'>{legend}<li class='soft'>at most {highest:,} an hour</li></ul>{chart}"
        f"<details><summary>As a table</summary>{table}</details>",
    )


def _completeness(days: Sequence[AccountDay], now: datetime) -> str:
    """A calendar for each account: the last 35 days that are over, proven, incomplete or not proven."""
    by_account: dict[str, dict[date, AccountDay]] = {}
    for day in days:
        by_account.setdefault(day.account_sid, {})[day.day] = day
    if not by_account:
        return _section("Completeness", "<p>No day is proven yet: the cold job does it, once a day.</p>")
    shown = [now.date() - timedelta(days=n) for n in range(DAYS_SHOWN.days, 0, -1)]
    parts = [
        f"<h3><code>{_text(account)}</code></h3>{_calendar(known, shown)}" for account, known in by_account.items()
    ]
    rows = [
        f"<tr><th scope='row'>{day.day.isoformat()}</th><td>{_code(day.account_sid)}</td><td class='n'>{day.listed:,}</td>"
        f"<td class='n'>{day.held:,}</td><td class='why'>{_text(differences(day.differences))}</td></tr>"
        for day in days
        if not day.is_complete
    ]
    table = _table(
        "Days that are not complete", ("day", "account", ("listed", True), ("held", True), "what differs"), rows
    )
    legend = "".join(f"<li>{_swatch(kind, sign)} {name}</li>" for kind, sign, name in _DAY_KINDS)
    return _section("Completeness", f"<ul class='legend'>{legend}</ul>{''.join(parts)}{table if rows else ''}")


_DAY_KINDS: Final = (
    ("proven", "✓", "every call that Twilio lists is held"),
    ("broken", "!", "incomplete"),
    ("unproven", "", "not proven"),
)


def _calendar(known: Mapping[date, AccountDay], shown: Sequence[date]) -> str:
    """A square a day, and below in words what a square cannot say: which days nothing is proven of."""
    cells = []
    for place, day in enumerate(shown):
        found = known.get(day)
        kind, sign, name = _DAY_KINDS[2 if found is None else 0 if found.is_complete else 1]
        said = "" if found is None else f", {found.held:,} of {found.listed:,} held"
        x = place * (_CELL + 2)
        cells.append(
            f"<g><title>{day:%a %d %b}: {name}{said}</title>"
            f"<rect class='{kind}' x='{x}' y='0' width='{_CELL}' height='{_CELL}' rx='3'/>"
            f"<text class='sign' x='{x + _CELL // 2}' y='13'>{sign}</text></g>"
        )
        if day.weekday() == 0:
            cells.append(f"<text x='{x}' y='34'>{day:%d %b}</text>")
    proven = sum(1 for day in shown if day in known and known[day].is_complete)
    unproven = [f"<time>{day.isoformat()}</time>" for day in shown if day not in known]
    label = f"{proven} of the last {len(shown)} days proven complete"
    listed = f"<details><summary>{len(unproven)} not proven</summary><p>{', '.join(unproven)}</p></details>"
    size = (len(shown) * (_CELL + 2), 40)
    return f"<p>{label}.</p>{_picture(label, size, ''.join(cells))}{listed if unproven else ''}"


def _picture(label: str, size: tuple[int, int], shapes: str, *, kind: str = "") -> str:
    """Drawn shapes; where there is no room for all of them, the newest, on the right, are seen first."""
    width, height = size
    return (
        f"<div class='wide newest' tabindex='0' role='region' aria-label='{label}'>"
        f"<svg class='{kind}' viewBox='0 0 {width} {height}' width='{width}' height='{height}' role='img' aria-label='{label}'>"
        f"{shapes}</svg></div>"
    )


def _swatch(kind: str, sign: str = "") -> str:
    return (
        f"<svg width='14' height='14' aria-hidden='true'><rect class='{kind}' width='14' height='14' rx='3'/>"
        f"<text class='sign' x='7' y='11'>{sign}</text></svg>"
    )


def _stuck(status: Snapshot) -> str:
    rows = [
        f"<tr><th scope='row'><code>{_text(call.call_sid)}</code></th><td>{_text(call.status)}</td>"
        f"<td class='n'>{rough(status.at - call.began_at)}</td><td>{_code(call.account_sid or '')}</td></tr>"
        for call in status.calls.stuck_calls
    ]
    if not rows:
        return ""
    caption = f"The oldest {len(rows)} of {status.calls.stuck:,}; reconcile call SID shows one from both sides"
    return _section("Stuck calls", _table(caption, ("call", "status", ("open for", True), "account"), rows))


def _tables(status: Snapshot) -> str:
    rows = [
        f"<tr><th scope='row'>{_text(table.table)}</th><td class='n'>{byte_size(table.bytes)}</td>"
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
        f"<div class='wide' tabindex='0' role='region' aria-label='{escape(caption)}'><table><caption><div class='soft fit'>{escape(caption)}"
        f"</div></caption><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _text(value: str) -> str:
    return escape(mask(value))


def _code(value: str) -> str:
    """A name; of an account's SID in it beginning and end, the whole of it where one points."""
    whole, short = _text(value), _text(short_sids(value))
    return f"<code>{whole}</code>" if whole == short else f"<code title='{whole}'>{short}</code>"
