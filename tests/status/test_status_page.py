"""The status page shows the state, nothing of a stranger's gets into it, and everybody can read it."""

from __future__ import annotations

import base64
import hashlib
import re
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from email.message import Message
from html.parser import HTMLParser
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from reconciler.errors import ReconcilerError
from reconciler.model import Gap
from reconciler.service.http_server import Health, StatusPage, Web
from reconciler.settings import Settings
from reconciler.status.check_line import warn
from reconciler.status.dead_letters import Letter
from reconciler.status.html_page import CONTENT_SECURITY_POLICY, read_page, render, render_failure
from reconciler.status.snapshot import Calls, StuckCall, TableSize
from reconciler.status.verdict import Verdict
from tests.harness.names import ACCOUNT, NOW, sid
from tests.programs.browser import CHROMIUM, browser

from .pages import LONG, OTHER, failing_states, make_day, make_job, make_report, make_status, troubled

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(1)> &amp; call +15005550123"""
VOID = {"meta", "link", "img", "br", "hr", "input"}

SCREEN = 800  # pixels that a browser shows at once, at both widths
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Page(HTMLParser):
    """A page as its tags: `elements` of (tag, attributes, text in it); fails where tags do not balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        element: tuple[str, dict[str, str | None], list[str]] = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        """Return the texts in the elements of a tag with these attributes."""
        return [
            " ".join("".join(text).split())
            for name, attrs, text in self.elements
            if name == tag and attributes.items() <= attrs.items()
        ]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Of each element of a tag."""
        return [attrs for name, attrs, _ in self.elements if name == tag]


def page_of(
    status=None, days=None, hours=(), *, state="leading, hot 12 s ago", verdict=Verdict.WORKING, **more
) -> Page:
    return Page(render(status or make_status(), days or make_report(), hours, state=state, verdict=verdict, **more))


TODO = [warn("days", "1 account day not proven complete", "`reconcile once cold`")]
LETTERS = [Letter(7, None, "twilio_voice", "call-status", sid(7), "unknown status odd")]


@pytest.fixture(scope="module")
def trouble() -> Page:
    return page_of(*troubled(), verdict=Verdict.NOT_WORKING, todo=TODO, letters=LETTERS)


# The page's content


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict.WORKING, "✓ working"), (Verdict.WAITING, "! waiting"), (Verdict.STANDING_BY, "○ standing by"),
        (Verdict.NOT_WORKING, "✗ not working"), (None, "status"),
    ],
)  # fmt: skip
def test_its_first_line_is_the_verdict(verdict, said):
    """The title has it too, in words and not by a colour alone. A file has no verdict and does not refresh."""
    page = page_of(verdict=verdict)
    assert page.texts("strong") == [said]
    assert page.texts("title")[0] == f"reconciler: {said.lstrip('✓!○✗ ')}"
    refresh = [attrs["content"] for attrs in page.attributes("meta") if attrs.get("http-equiv") == "refresh"]
    assert refresh == ([] if verdict is None else ["15"])
    assert "leading, hot 12 s ago" in page.texts("header")[0]
    assert page.texts("time", datetime=NOW.isoformat()) == ["2026-06-10 12:00:00 UTC"]
    assert page.texts("h1") == ["reconciler"]


def test_numbers_of_trouble_have_a_sign(trouble):
    """Numbers that are zero have none."""
    numbers = dict(zip(trouble.texts("dt"), trouble.texts("dd"), strict=True))
    assert numbers == {
        "open calls": "41", "stuck calls": "! 3", "ended, not frozen": "212", "webhooks due": "! 19 oldest 20 min",
        "webhooks failed": "! 2", "dead letters": "! 4", "account days proven": "54 in 35 days",
        "account days incomplete": "! 2",
    }  # fmt: skip
    assert not any("!" in text for text in page_of().texts("dd"))


def test_a_job_that_failed_says_why(trouble):
    """When, and the reason below in full; the others are well, running or never ran."""
    rows = trouble.texts("tr")
    place = next(n for n, row in enumerate(rows) if row.startswith("hot✗"))
    assert rows[place] == "hot✗ failed 70 s ago66 min ago68 min"
    assert rows[place + 1].startswith("the database is unavailable: connection to server")
    assert "hot:AC2222…2222✗ failed 30 s agonever" in rows
    assert "inbox✓ ok, running9 s ago" in rows
    assert "freeze✓ ok4 min ago" in rows
    new = page_of(make_status(jobs=[make_job("cold", None, None)]))
    assert "coldnot yetnever" in new.texts("tr")
    assert "No job has run yet." in page_of(make_status(jobs=[])).texts("td")


def test_gaps_as_bars_and_as_a_table(trouble):
    """A bar for each kind and hour, whose sum stands in the legend; the hours without gaps are no rows."""
    *_, hours = troubled()
    legend = " ".join(trouble.texts("li"))
    bars = [attrs for attrs in trouble.attributes("rect") if attrs["class"] in {gap.value for gap in Gap}]
    for kind in (gap.value for gap in Gap):
        assert f"{kind} {sum(gaps.kinds[kind] for gaps in hours):,}" in legend
        drawn = sum(1 for gaps in hours if gaps.kinds[kind]) + 1  # and its swatch
        assert sum(1 for attrs in bars if attrs["class"] == kind) == drawn
    assert all(float(attrs.get("y") or 0) >= 0 and float(attrs["height"]) > 0 for attrs in bars)
    assert [text for text in trouble.texts("th", scope="row") if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:00", text)] == [
        f"{gaps.hour:%Y-%m-%d %H:00}" for gaps in reversed(hours)
    ]
    newest = hours[-1]
    assert f"{newest.hour:%Y-%m-%d %H:00}" + "".join(str(n) for n in newest.kinds.values()) in trouble.texts("tr")
    assert "None was found." in page_of().texts("p")


def test_days_as_squares_and_in_words(trouble):
    """35 squares an account, each with its day; which days differ, and which nothing is proven of, also in words."""
    assert len([t for t in trouble.texts("title") if "held" in t or "not proven" in t]) == 2 * 35
    assert "Mon 01 Jun: incomplete, 4,207 of 4,210 held" in trouble.texts("title")
    assert trouble.texts("h3") == [ACCOUNT, OTHER]
    assert "31 of the last 35 days proven complete." in trouble.texts("p")
    assert "2026-05-06, 2026-05-25, 2026-05-26" in trouble.texts("p")
    assert "2026-06-01AC1111…11114,2104,2073 missingreconcile --since 2026-06-01 --until 2026-06-02" in trouble.texts(
        "tr"
    )
    assert (
        "2026-05-20AC2222…22223103102 billed not held, 1 changedreconcile --since 2026-05-20 --until 2026-05-21"
        in trouble.texts("tr")
    )
    assert "No day is proven yet: the cold job does it, once a day." in page_of().texts("p")
    assert "Days that are not complete" not in page_of(days=make_report(make_day(1))).texts("caption")


def test_what_the_calls_cost():
    """Of each account and currency, by Twilio and by our rows; nothing where Twilio told no price."""
    cost: dict[str, Any] = {"price_unit": "USD", "billed_price": Decimal("1000.5"), "held_price": Decimal("1000.25000")}
    days = make_report(make_day(2, **cost), make_day(3, **cost, differences={"price_drift": 1}), make_day(4))
    assert f"{ACCOUNT}USD22,001.02,000.500001" in page_of(days=days).texts("tr")
    assert "cost" not in "".join(page_of(days=make_report(make_day(1))).texts("caption"))


def test_stuck_calls_and_tables(trouble):
    """A SID to copy, and sizes in units of a thousand."""
    assert f"{sid(1)}ringing35 hAC1111…1111" in trouble.texts("tr")
    assert "call_events2.4 GB6,120,221" in trouble.texts("tr")
    assert "twilio_webhook_inbox96.0 kB?" in trouble.texts("tr")
    assert "Stuck calls" not in page_of().texts("h2")


# Other readers than eyes


def test_for_a_screen_reader(trouble):
    """A language, one first heading, captions, headed columns and rows, named pictures, and no name twice."""
    assert trouble.attributes("html") == [{"lang": "en"}]
    assert len(trouble.texts("h1")) == 1
    assert len(trouble.texts("caption")) == len(trouble.texts("table")) == 6
    assert all(trouble.texts("caption"))
    assert {attrs["scope"] for attrs in trouble.attributes("th")} == {"col", "row"}
    for attrs in trouble.attributes("svg"):
        assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
    names = [attrs["id"] for _, attrs, _ in trouble.elements if "id" in attrs]
    assert len(names) == len(set(names))
    assert {attrs["aria-labelledby"] for attrs in trouble.attributes("section") if "aria-labelledby" in attrs} == {
        *names
    }
    for attrs in trouble.attributes("div"):
        # Areas that scroll can be reached by the keyboard, and have a label.
        assert "wide" not in (attrs.get("class") or "") or (attrs["tabindex"] == "0" and attrs["aria-label"])


# Foreign text


def test_nothing_strange_becomes_markup():
    """Foreign text stays text with masked numbers, in every place."""
    status = make_status(
        jobs=[make_job(HOSTILE, last_error=HOSTILE, last_error_at=NOW)],
        calls=Calls(1, 1, 0, [StuckCall(HOSTILE, HOSTILE, HOSTILE, NOW)]),
        tables=[TableSize(HOSTILE, 1, 1)],
    )  # fmt: skip
    days = make_report(make_day(1, HOSTILE, differences={HOSTILE: 1}, is_complete=False))
    calm = make_status(
        jobs=[make_job("hot", last_error="x", last_error_at=NOW)],
        calls=Calls(1, 1, 0, [StuckCall("CA", "AC", "ringing", NOW)]),
    )  # fmt: skip
    html = render(status, days, [], state=HOSTILE, verdict=Verdict.WORKING)
    page = Page(html)
    quiet = page_of(calm, make_report(make_day(1, "AC", differences={"x": 1}, is_complete=False)))
    assert [(tag, sorted(attrs)) for tag, attrs, _ in page.elements if tag != "code"] == [
        (tag, sorted(attrs)) for tag, attrs, _ in quiet.elements if tag != "code"
    ]
    assert {name for attrs in page.attributes("code") for name in attrs} <= {"title"}
    assert html.count("&lt;script&gt;") == 10
    assert "15005550123" not in html
    assert "call ***23" in page.texts("header")[0]


def test_it_needs_nothing_else(trouble):
    """No script, no style but its own, nothing fetched, no link away."""
    tags = {tag for tag, _, _ in trouble.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "a", "image", "use", "foreignobject"}
    for _, attrs, _ in trouble.elements:
        assert not {name for name in attrs if name.startswith("on")} | ({"style", "src", "href"} & attrs.keys())
    (style,) = ("".join(text) for tag, _, text in trouble.elements if tag == "style")
    assert not re.search(r"url\(|@import", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none';")


# Over HTTP


@contextmanager
def served(read, **options):
    """The address of a server whose page `read` makes."""
    health = Health(is_alive=True, is_ready=True, reason="leading")
    page = StatusPage(
        read,
        CONTENT_SECURITY_POLICY,
        lambda exc: render_failure(str(exc), exc.hint, state="waiting", verdict=Verdict.WAITING),
        **options,
    )
    with closing(Web(("127.0.0.1", 0), health=lambda: health, status_page=page)) as server:
        server.start()
        yield f"http://127.0.0.1:{server.port}/"


def get(url: str) -> tuple[int, Message, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers, answer.read().decode()


def read_from(url: str) -> str:
    return read_page(url, Settings.read({}), state="leading", verdict=Verdict.WORKING)


def test_served_from_the_database(database_url, conn, add_call, add_day):
    """Its headers keep all other sources out. Hostile rows are text."""
    conn.execute("INSERT INTO sync_state (job_name, last_error_at, last_error) VALUES ('hot', now(), %s)", (HOSTILE,))
    add_call(1, date_created=NOW - timedelta(days=3), account_sid=ACCOUNT)
    conn.execute(
        "INSERT INTO account_days (account_sid, day, listed, held, digest, differences, is_complete, verified_at)"
        " VALUES (%s, (now() - interval '2 days')::date, 2, 1, '', %s, false, now())",
        (ACCOUNT, Jsonb({"missing": 1})),
    )
    with served(lambda: read_from(database_url)) as url:
        status, headers, html = get(url)
    page = Page(html)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert headers["Cache-Control"] == "no-store"
    assert page.texts("h3") == [ACCOUNT]
    assert "hot✗ failed 0 s agonever" in page.texts("tr")
    assert "15005550123" not in html


def test_a_database_that_is_away(database_url):
    """503, and the page in full style: the reason, what to do, and no password of its address."""
    away = "postgresql://viewer:hidden-word@127.0.0.1:1/calls"
    with served(lambda: read_from(away)) as url:
        status, headers, html = get(url)
    assert (status, headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    page = Page(html)
    assert page.texts("strong") == ["! waiting", "database"]
    assert page.texts("p")[0].startswith("database: the database is unavailable: ")
    assert page.texts("p")[1] == "→ is the server in DATABASE_URL up?"
    assert "hidden-word" not in html


def test_an_old_schema_is_said(empty_database_url):
    """The answer says why there is no page."""
    with served(lambda: read_from(empty_database_url)) as url:
        status, _, html = get(url)
    assert status == 503
    assert Page(html).texts("p")[0].startswith("database: the schema is not up to date")


def test_what_to_do_comes_first(trouble):
    """The lines of `check` with their commands, and dead letters with their reasons, before any number."""
    assert trouble.texts("h2")[0] == "What to do"
    assert trouble.texts("p")[:2] == ["days: 1 account day not proven complete", "→ reconcile once cold"]
    assert "reconcile once cold" in trouble.texts("code")
    assert f"7{sid(7)[:6]}…{sid(7)[-4:]}unknown status odd" in trouble.texts("tr")
    assert "What to do" not in page_of().texts("h2")


def test_a_thousand_accounts(database_url):
    """Those that fail by name and the others counted: a page that a phone loads."""
    accounts = [f"AC{number:032x}" for number in range(1_000)]
    failing = [make_job(f"hot:{account}", last_error=LONG, last_error_at=NOW) for account in accounts[:3]]
    jobs = failing + [make_job(f"{kind}:{account}") for account in accounts[3:] for kind in ("hot", "warm", "cold")]
    days = [make_day(ago, account, is_complete=(account, ago) != (accounts[500], 3)) for account in accounts
            for ago in range(1, 36)]  # fmt: skip
    html = render(make_status(jobs=jobs), make_report(*days), [], state="", verdict=Verdict.WORKING)
    assert len(html.encode()) < 200_000
    page = Page(html)
    assert page.texts("h3")[0] == accounts[500]
    rows = page.texts("tr")
    assert sum("failed" in row for row in rows) == 3
    assert "hot✓ ok, 997 accounts12 s ago at most" in rows
    assert "And 988 accounts with no more trouble than these." in page.texts("p")


def test_a_bug_is_no_silence(capsys):
    """500, and what it was in the log alone."""

    def read() -> str:
        raise ValueError("of the inside")

    with served(read) as url:
        status, _, text = get(url)
    assert (status, text) == (500, "a bug; the log says more\n")


@pytest.mark.parametrize("error", [None, ReconcilerError("away")])
def test_reloading_is_no_load(error):
    """A page, and the reason why there is none, last for a few seconds; then there is another."""
    reads: list[Any] = []

    def read() -> str:
        reads.append(len(reads))
        if error:
            raise error
        return "page"

    with served(read) as url:
        first, again = get(url)[::2], get(url)[::2]
        assert first == again if error is None else (first[0], again[0]) == (503, 503)
        assert "away" in first[1] if error else first == (200, "page")
        assert reads == [0]
    with served(read, lasts=-1.0) as url:
        get(url)
        get(url)
    assert reads == [0, 1, 2]


# As a file


def test_written_by_the_report(run, tmp_path, add_day):
    """The same page, to a file or stdout, that says where it comes from."""
    file = tmp_path / "status.html"
    done = run("report", "--html", str(file))
    assert (done.code, done.out, done.err) == (0, "", "")
    page = Page(file.read_text(encoding="utf-8"))
    assert "as a file, made by reconcile report" in page.texts("header")[0]
    assert page.texts("strong")[0] == "status"
    printed = run("report", "--html", "-")
    assert printed.code == 0
    assert [tag for tag, _, _ in Page(printed.out).elements] == [tag for tag, _, _ in page.elements]


def test_a_file_that_cannot_be_written(run, tmp_path):
    """Names the option; and JSON and HTML are not had at once."""
    done = run("report", "--html", str(tmp_path / "none" / "status.html"))
    assert done.code == 64
    assert "--html" in done.err and "No such file or directory" in done.err
    assert run("report", "--html", "-", "--json").code == 64


# In a browser


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("state", failing_states())
def test_what_failed_is_seen_without_scrolling(state):
    """Phone and desktop show the verdict, the first cause, and the first step with its command."""
    html = failing_states()[state]
    with served(lambda: html) as url, browser() as chromium:
        for width, dark in ((390, False), (390, True), (1_200, False), (1_200, True)):
            chromium.open(url, width=width, dark=dark)
            assert chromium.complaints == []
            assert chromium.value("document.documentElement.scrollWidth") == width
            assert chromium.value(LEAST_CONTRAST) >= 4.5
            for first in ("header strong", *(() if state == "standing by" else (".todo p", ".todo .step"))):
                box = f"document.querySelector({first!r}).getBoundingClientRect()"
                assert 0 <= chromium.value(f"{box}.top") < chromium.value(f"{box}.bottom") <= SCREEN


@needs_chromium
@pytest.mark.slow
def test_in_a_browser():
    """The browser refuses nothing and reports nothing. The page fits a phone, light and dark, and a keyboard."""
    html = render(*troubled(), state="leading", verdict=Verdict.NOT_WORKING)
    with served(lambda: html) as url, browser() as chromium:
        grounds = []
        for dark in (False, True):
            for width in (360, 1_200):
                chromium.open(url, width=width, dark=dark)
                assert chromium.complaints == []
                assert chromium.value("document.documentElement.scrollWidth") == width
                # The style was let in, and the newest hour is in sight.
                assert chromium.value("getComputedStyle(document.querySelector('dl')).display") == "grid"
                chart = "document.querySelector('.newest')"
                assert abs(chromium.value(f"{chart}.scrollLeft")) == 0
                assert chromium.value(
                    f"[...{chart}.querySelectorAll('rect')].at(-1).getBoundingClientRect().right <= innerWidth"
                )
            grounds.append(chromium.value("getComputedStyle(document.body).backgroundColor"))
            assert chromium.value(LEAST_CONTRAST) >= 4.5
        assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
        chromium.press("Tab")
        assert chromium.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


# The least contrast of any text with its background (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
LEAST_CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number)
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0)
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor
    return numbers(colour)[3] === 0 ? ground(element.parentElement) : colour
  }
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
  const ratios = []
  for (const element of document.querySelectorAll('body *')) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    if (!says || element.closest('style, title')) continue
    const behind = element.matches('.sign') && element.parentElement.querySelector('rect')
    const style = getComputedStyle(element)
    const ink = element.closest('svg') ? style.fill : style.color
    ratios.push(ratio(light(ink), light(behind ? getComputedStyle(behind).fill : ground(element))))
  }
  return Math.min(...ratios)
})()"""
