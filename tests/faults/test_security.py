"""Secrets go to Twilio's host and nowhere else; SQL is made of no text but ours; a run needs what it is granted."""

from __future__ import annotations

import ast
import io
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

import reconciler
from reconciler import logs, masking
from reconciler.cli.wiring import prepare_schema
from reconciler.database import connection as db
from reconciler.database.store import Store
from reconciler.errors import ExitCode, ReconcilerError, Refused
from reconciler.jobs.backfill import Window
from reconciler.settings import Credentials, Settings
from reconciler.simulator import Clock, Fault, SimulatedAccount, SimulatedTwilio
from reconciler.status.check_database import check_schema
from reconciler.status.check_line import Check, Severity
from reconciler.twilio.account_records import Account
from reconciler.twilio.client import Session, TwilioClient
from reconciler.twilio.concurrency import Pacer
from reconciler.twilio.listing import Listing
from tests.harness.contexts import run_backfill, run_inbox
from tests.harness.equality import differences, records_of
from tests.harness.names import ACCOUNT, NOW, SUBACCOUNT, TOKEN

PACKAGE = Path(reconciler.__file__).parent
GRANTS = Path(__file__).parents[2] / "deploy" / "grants.sql"
SUB_TOKEN, PASSWORD = "token-of-the-subaccount", "p4ssw0rd-of-the-base"
BASE64 = "QUMxMTEx"  # how "AC1111…" begins in an Authorization header
SECRETS = (TOKEN, SUB_TOKEN, PASSWORD, BASE64)


def look_at_schema(url: str) -> list[Check]:
    """What `reconcile check` says of schema and privileges."""
    with db.connect(url, purpose="check") as conn:
        return list(check_schema(conn))


@pytest.fixture
def database_url(planted_database_url: str) -> str:
    """Every test here runs beside a stranger that has planted all that it may in our schema."""
    return planted_database_url


@pytest.fixture
def account() -> SimulatedAccount:
    account = SimulatedAccount(ACCOUNT, TOKEN, seed=3)
    account.generate(20, NOW - timedelta(days=1), NOW - timedelta(hours=1))
    account.call(NOW - timedelta(minutes=2), rings_for=None)
    account.add_subaccount(SUBACCOUNT, SUB_TOKEN)
    return account


@pytest.fixture
def elsewhere() -> Iterator[SimulatedTwilio]:
    """Another host."""
    with SimulatedTwilio([], clock=Clock(NOW)) as twilio:
        yield twilio


@pytest.fixture
def source(twilio: SimulatedTwilio, quick_retries: None) -> Iterator[Session]:
    client = TwilioClient(Credentials(ACCOUNT, ACCOUNT, TOKEN, base_url=twilio.base_url), pacer=Pacer(2))
    yield client.session()
    client.close()


@pytest.fixture(autouse=True)
def only_what_nobody_foresaw() -> None:
    """Hundreds of refusals a test would drown what failed."""
    logs.configure(form="json", level="critical", pii="masked")


@contextmanager
def written() -> Iterator[io.StringIO]:
    """All that is logged at level debug while it lasts, by us and by the libraries; no secret is known to the log."""
    stream = io.StringIO()
    logs.configure(form="json", level="debug", pii="plain", stream=stream)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    yield stream
    logs.configure(form="json", level="critical", pii="masked")


def modules() -> list[Path]:
    """Every module but those of the simulated Twilio, which is no part of a run."""
    return sorted(file for file in PACKAGE.rglob("*.py") if "simulator" not in file.parts)


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


# --- to another host


def test_no_other_host_is_ever_spoken_to(source, twilio, elsewhere, account):
    """Foreign next pages and redirects, of listings, calls, accounts and usage: nobody else hears of us."""
    twilio.switches = replace(twilio.switches, absolute_next_page_uri=elsewhere.base_url)
    source.page(Listing(ACCOUNT, page_size=5))
    (call, *_) = account.calls_at(NOW)
    asked: list[Callable[[], Any]] = [
        lambda: source.page(Listing(ACCOUNT)),
        lambda: source.call(ACCOUNT, call.sid),
        source.accounts,
        lambda: source.usage(ACCOUNT, NOW.date(), NOW.date()),
    ]
    for ask in asked:
        ask()
        for status in (301, 302, 303, 307, 308):
            twilio.faults.next(Fault.redirect(f"{elsewhere.base_url}/2010-04-01/Accounts.json", status))
            with pytest.raises(ReconcilerError):
                ask()
    assert len(elsewhere.requests) == 0
    assert all(entry.authorized for entry in twilio.requests)


# --- in the output


FAULTS = [
    Fault.unauthorized(), Fault.forbidden(), Fault.not_found(), Fault.server_error(500), Fault.reset(),
    Fault.empty_body(), Fault.too_many_requests(0), Fault.html_with_200(), Fault.redirect("https://elsewhere.example/"),
    Fault.error(400, 20001, f"Invalid PageToken for {TOKEN}"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS[:-1], ids=lambda fault: fault.name)
def test_no_error_traceback_or_log_line_holds_a_secret(source, twilio, fault):
    """Level debug holds none either: library lines, causes of errors and reprs of locals."""
    twilio.faults.always(fault)
    with written() as stream, pytest.raises(ReconcilerError) as caught:
        source.page(Listing(ACCOUNT))
    told = traceback.TracebackException.from_exception(caught.value)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    said = "".join(told.format()) + stream.getvalue() + "".join(map(repr, chain)) + str(caught.value.hint)
    assert leaks(said) == []


def test_a_secret_that_twilio_repeats_is_redacted(source, twilio):
    """A secret that Twilio's answer quotes is removed from the error and from the log."""
    twilio.faults.always(FAULTS[-1])
    masking.protect(TOKEN)
    with written() as stream, pytest.raises(ReconcilerError) as caught:
        source.page(Listing(ACCOUNT))
        raise AssertionError
    logs.get_logger("test").error("job.failed", error=str(caught.value))
    assert TOKEN not in stream.getvalue()


def test_no_repr_holds_a_secret(source, database_url):
    """The objects are settings, credentials, the source and its parts, a store, and a connection."""
    url = f"postgresql://me:{PASSWORD}@db.example/calls"
    settings = Settings.read({"DATABASE_URL": url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN})
    parts = [
        settings,
        settings.credentials(),
        source,
        source.client,
        source.client._sdk,
        source.client._transport,
        Store(url),
        source.accounts(),
    ]
    with db.connect(make_conninfo(database_url, password=PASSWORD), purpose="test") as conn:
        parts += [conn, conn.info]
        assert leaks("".join(f"{part!r} {part!s}" for part in parts)) == []


def test_a_database_that_is_away_does_not_show_its_password():
    """The driver's own words in the error and its cause do not show it either."""
    with pytest.raises(ReconcilerError) as caught:
        db.connect(f"postgresql://me:{PASSWORD}@127.0.0.1:1/calls", purpose="test")
    assert leaks("".join(traceback.format_exception(caught.value))) == []


def test_the_auth_tokens_of_a_listing_of_accounts_are_never_read(source):
    """Twilio sends one with each account."""
    accounts = source.accounts()
    assert accounts == [Account(ACCOUNT, "active"), Account(SUBACCOUNT, "active")]
    assert leaks(repr(accounts)) == []


def test_no_option_takes_a_secret():
    """Everybody on the machine may read a process's arguments."""
    source = "".join(file.read_text(encoding="utf-8") for file in modules())
    options = set(re.findall(r'"(--[a-z][a-z-]+)"', source))
    assert {"--since", "--account"} <= options
    assert [
        option for option in options if re.search("token|secret|password|key|url|database|credential", option)
    ] == []


# --- SQL


# Files are handed over whole, as bytes: those of sql/, and those of procrastinate. Module and the text it encodes.
FILES_OF_SQL = {("migrate.py", "script.text"), ("migrate.py", "statement"), ("engine_schema.py", "text")}
RUNS_SQL = {"execute", "executemany", "copy", "stream"}


class Text(NamedTuple):
    """An expression that is handed over as SQL, and where it stands."""

    node: ast.expr
    function: ast.FunctionDef
    module: ast.Module
    file: Path

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}: {ast.unparse(self.node)}"

    def is_ours(self) -> bool:
        """Whether this can be nothing but text of our files; psycopg.sql quotes the names in it."""
        match self.node:
            case ast.Constant(value=str()):
                return True
            case ast.Subscript(value=ast.Name(id=name)):
                return any(name in targets and is_loaded(value) for targets, value in assigned(self.module.body))
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._replace(node=left).is_ours() and self._replace(node=right).is_ours()
            case ast.Call(func=ast.Attribute(value=ast.Name(id="sql"), attr="SQL"), args=[argument]):
                return self._replace(node=argument).is_ours()
            case ast.Call(func=ast.Attribute(value=ast.Call() as value, attr="format")):
                return self._replace(node=value).is_ours()
            case ast.Call(func=ast.Attribute(value=value, attr="encode"), args=[]):
                return (self.file.name, ast.unparse(value)) in FILES_OF_SQL
            case ast.Attribute(attr=name):
                return any(name in declared for declared in literals(self.module).values())
            case ast.Name(id=name):
                return self.is_name_ours(name)
        return False

    def is_name_ours(self, name: str) -> bool:
        """Whether a name holds our text: declared LiteralString, one of the loaded queries, or assigned such text."""
        if name in literals(self.module).get(self.function.name, ()):
            return True
        loops = (loop for loop in ast.walk(self.function) if isinstance(loop, ast.For))
        if any(name in names_of(loop.target) and is_loaded(loop.iter) for loop in loops):
            return True
        given = [value for targets, value in assigned([*self.module.body, *ast.walk(self.function)]) if name in targets]
        return bool(given) and all(self._replace(node=value).is_ours() for value in given)


def is_loaded(node: ast.expr) -> bool:
    """Whether this is `load_queries(…)`, or its items."""
    return re.match(r"(db\.)?load_queries\([^()]*\)(\.items\(\))?$", ast.unparse(node)) is not None


def names_of(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[set[str], ast.expr]]:
    """The names and the value of each assignment among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            yield {name for target in node.targets for name in names_of(target)}, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield names_of(node.target), node.value


def literals(module: ast.Module) -> dict[str, dict[str, int]]:
    """For each function and class of a module: its parameters or fields of type LiteralString, with their places."""
    found: dict[str, dict[str, int]] = {}
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=name, args=ast.arguments(args=parameters)):
                declared = [(a.arg, a.annotation) for a in parameters if a.arg != "self"]
            case ast.ClassDef(name=name, body=body):
                declared = [(ast.unparse(f.target), f.annotation) for f in body if isinstance(f, ast.AnnAssign)]
            case _:
                continue
        places = {
            field: place
            for place, (field, kind) in enumerate(declared)
            if kind is not None and ast.unparse(kind) == "LiteralString"
        }
        if places:
            found[name] = places
    return found


def texts() -> Iterator[Text]:
    """All that the package hands over as SQL: to the driver, and to whatever of ours declares a LiteralString."""
    parsed = {file: ast.parse(file.read_text(encoding="utf-8")) for file in modules()}
    takers = {name: places for module in parsed.values() for name, places in literals(module).items()}
    for file, module in parsed.items():
        for function in ast.walk(module):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                match call:
                    case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]) if name in RUNS_SQL:
                        yield Text(first, function, module, file)
                    case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args) if name in takers:
                        by_name = {keyword.arg: keyword.value for keyword in call.keywords}
                        for field, place in takers[name].items():
                            text = by_name[field] if field in by_name else args[place]
                            yield Text(text, function, module, file)


def test_no_statement_is_made_of_text_that_is_not_ours():
    """No f-string, no %, no str.format: values are parameters. mypy takes LiteralString for str: hence this."""
    found = list(texts())
    assert len(found) > 80
    assert [str(text) for text in found if not text.is_ours()] == []


FOREIGN = {
    "an f-string": "conn.execute(f'SELECT {name}')",
    "a percent sign": "conn.execute('SELECT %s' % name)",
    "str.format": "conn.execute('SELECT {}'.format(name))",
    "a parameter": "conn.execute(name)",
    "an f-string that was given a name": "made = f'SELECT {name}'\n    conn.execute(made)",
    "a mapping that was not loaded": "conn.execute(statements[name])",
    "bytes": "conn.execute(name.encode())",
    "psycopg.sql": "conn.execute(sql.SQL(name))",
}


@pytest.mark.parametrize("line", FOREIGN.values(), ids=FOREIGN.keys())
def test_text_that_is_not_ours_is_found(line):
    """The test above finds it in each way of writing it."""
    module = ast.parse(f"def f(conn, name: str):\n    {line}")
    calls = [
        call for call in ast.walk(module) if isinstance(call, ast.Call) and ast.unparse(call.func) == "conn.execute"
    ]
    (function,) = module.body
    assert isinstance(function, ast.FunctionDef)
    assert [Text(call.args[0], function, module, PACKAGE / "f.py").is_ours() for call in calls] == [False]


def test_queries_make_no_sql_at_run_time():
    """The named statements make none either."""
    files = list((PACKAGE / "database" / "queries").glob("*.sql"))
    assert len(files) > 10
    for file in files:
        text = re.sub(r"--.*", "", file.read_text(encoding="utf-8"))
        assert not re.search(r"\bEXECUTE\s+(format|'|\|\|)|\bquery_to_xml\b|\bdblink", text, re.IGNORECASE), file.name


# --- privileges


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role with what deploy/grants.sql grants and nothing else: everybody's rights were taken away."""
    name = f"runner_{secrets.token_hex(4)}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        database = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        admin.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        admin.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC")
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        try:
            for _ in range(2):
                admin.execute(GRANTS.read_text(encoding="utf-8").replace("TO reconciler", f"TO {name}").encode())
            yield name
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


# Each single privilege of a role: what, on what, as GRANT and REVOKE write it, and as `reconcile check` says it. The
# casts keep the stranger's operators out.
GRANTED = """
SELECT a.privilege_type, 'TABLE '::text || c.relname::text, a.privilege_type || ' on '::text || c.relname::text
FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relkind = 'r' AND a.grantee = %(role)s::regrole
UNION ALL
SELECT a.privilege_type || ' ('::text || t.attname::text || ')'::text, 'TABLE '::text || t.attrelid::regclass::text,
       a.privilege_type || ' on '::text || t.attrelid::regclass::text || ' ('::text || t.attname::text || ')'::text
FROM pg_attribute AS t, aclexplode(t.attacl) AS a
WHERE a.grantee = %(role)s::regrole
UNION ALL
SELECT a.privilege_type, 'SEQUENCE '::text || c.relname::text,
       a.privilege_type || ' on sequence public.'::text || c.relname::text
FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relkind = 'S' AND a.grantee = %(role)s::regrole
UNION ALL
SELECT a.privilege_type, 'FUNCTION '::text || p.oid::regprocedure::text,
       a.privilege_type || ' on function '::text || p.oid::regprocedure::text
FROM pg_proc AS p, aclexplode(p.proacl) AS a
WHERE a.grantee = %(role)s::regrole
UNION ALL
SELECT a.privilege_type, 'SCHEMA '::text || n.nspname::text, a.privilege_type || ' on schema '::text || n.nspname::text
FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
WHERE a.grantee = %(role)s::regrole
UNION ALL
SELECT a.privilege_type, 'DATABASE '::text || d.datname::text,
       CASE a.privilege_type WHEN 'CONNECT' THEN 'permission denied for database'
                             ELSE a.privilege_type || ' on database '::text || d.datname::text END
FROM pg_database AS d, aclexplode(d.datacl) AS a
WHERE d.datname = current_database() AND a.grantee = %(role)s::regrole
"""
# Those of the cold job and the webhooks job, and of commands that share a budget.
NOT_OF_A_BACKFILL = {"account_days", "webhook_alerts", "endpoint_faults", "twilio_budgets"}


def run_everything(url: str, twilio: SimulatedTwilio) -> None:
    """Run the whole command: the schema, a backfill with an unreadable record, the inbox, its replay."""
    clock = twilio.clock.now
    with ExitStack() as stack:
        prepare_schema(url, migrate=True)
        stop = threading.Event()
        client = TwilioClient(
            Credentials(ACCOUNT, ACCOUNT, TOKEN, base_url=twilio.base_url), pacer=Pacer(2), clock=clock
        )
        stack.callback(client.close)
        store = stack.enter_context(Store(url, channel="calls"))
        window = Window(clock() - timedelta(days=2), clock(), {"since": "2d", "until": None})
        summary = run_backfill(ACCOUNT, window, session=client.session(stop), store=store, stop=stop, clock=clock)
        assert summary.exit_code in (ExitCode.DONE, ExitCode.UNRECONCILED)
        run_inbox(store, clock=clock, grace=timedelta(0))


def put_webhooks(conn: db.Connection) -> None:
    """One that can be read, one that cannot, and one that tells of a recording."""
    recording = {
        "CallSid": f"CA{secrets.token_hex(16)}", "RecordingSid": f"RE{secrets.token_hex(16)}",
        "RecordingStatus": "completed", "RecordingUrl": "https://api.twilio.com/recording",
    }  # fmt: skip
    conn.execute(
        "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at)"
        " VALUES ('twilio_recording', 'recording-complete', gen_random_uuid(), %s, %s)",
        (Jsonb(recording), NOW - timedelta(hours=1)),
    )
    for status in ("completed", "on-hold"):
        conn.execute(
            "INSERT INTO twilio_webhook_inbox (source, event_type, dedupe_key, payload, received_at)"
            " VALUES ('twilio_voice', 'call-status', gen_random_uuid(), jsonb_build_object('CallSid', %s::text,"
            " 'CallStatus', %s::text), %s)",
            (f"CA{secrets.token_hex(16)}", status, NOW - timedelta(hours=1)),
        )


def test_the_granted_privileges_are_enough(role, database_url, conn, twilio, account):
    """New calls, changed ones, dead letters, webhooks and cursors, by a role that has nothing but deploy/grants.sql."""
    url = make_conninfo(database_url, user=role)
    not_ok = [check.detail for check in look_at_schema(url) if check.severity is not Severity.OK]
    assert [detail for detail in not_ok if "has the name of a function of ours" not in detail] == []  # the stranger's
    put_webhooks(conn)
    twilio.faults.next(Fault.broken_record("unknown_status"))
    run_everything(url, twilio)
    twilio.faults.clear()
    twilio.clock.advance(timedelta(hours=2))
    run_everything(url, twilio)
    found = differences(conn, records_of(account, twilio.clock.now()))
    assert [line for line in found if "Twilio has no such call" not in line] == []
    assert conn.execute("SELECT count(*) FROM twilio_webhook_inbox WHERE processed_at IS NULL").fetchone() == (0,)


@pytest.mark.slow
def test_every_job_and_report_may_do_its_work(role, database_url, conn, account):
    """The installed command runs one after the other, as that role."""
    url = make_conninfo(database_url, user=role)
    now = datetime.now(UTC)
    account.generate(50, now - timedelta(days=2), now)
    with SimulatedTwilio([account], clock=Clock.running()) as twilio:
        environ = {
            "PATH": os.defpath, "DATABASE_URL": url, "TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN,
            "TWILIO_BASE_URL": twilio.base_url, "PYTHONPATH": str(PACKAGE.parent),
        }  # fmt: skip
        jobs = [
            ["once", job]
            for job in ("hot", "warm", "cold", "freeze", "inbox", "housekeeping", "recordings", "webhooks")
        ]
        for args in [*jobs, ["status"], ["report"], ["why"], ["check"]]:
            done = subprocess.run(
                [sys.executable, "-m", "reconciler", *args], env=environ, capture_output=True, text=True, timeout=60,
                check=False,
            )  # fmt: skip
            assert done.returncode in (ExitCode.DONE, ExitCode.UNRECONCILED), (args, done.stderr)
    assert conn.execute("SELECT count(*) FROM messages").fetchone() >= (50,)
    assert conn.execute("SELECT count(*) > 0 FROM account_days").fetchone() == (True,)


def test_each_granted_privilege_is_needed_and_its_lack_is_named(role, database_url, conn, twilio, quick_retries):
    """If one is missing, PostgreSQL refuses a run, and `reconcile check` names the privilege."""
    url = make_conninfo(database_url, user=role)
    granted = conn.execute(GRANTED, {"role": role}).fetchall()
    assert len(granted) > 40
    unnamed, needless = [], []
    for privilege, target, said in granted:
        parts = sql.SQL(f"{privilege} ON {target}"), sql.Identifier(role)
        conn.execute(sql.SQL("REVOKE {} FROM {}").format(*parts))
        try:
            try:
                failures = [check.detail for check in look_at_schema(url) if check.severity is Severity.FAIL]
            except Refused as refused:
                failures = [str(refused)]
            if not any(said in failure for failure in failures):
                unnamed.append((said, failures))
            if target.split()[-1] in NOT_OF_A_BACKFILL:
                continue
            twilio.clock.advance(timedelta(minutes=1))
            put_webhooks(conn)
            twilio.faults.always(Fault.broken_record("unknown_status"))
            try:
                run_everything(url, twilio)
            except Refused:
                pass
            else:
                needless.append(f"{privilege} ON {target}")
        finally:
            conn.execute(sql.SQL("GRANT {} TO {}").format(*parts))
    assert unnamed == []
    assert needless == []
