"""Settings: their sources, the refused values, and that no secret is shown."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import ConfigError
from reconciler.settings import Credentials, Settings
from tests.harness.names import ACCOUNT

KEY = f"SK{2:032x}"
TOKEN, SECRET, PASSWORD = "0123456789abcdef-token", "s3cr3t-of-the-key", "p4ssw0rd-of-the-base"
URL = f"postgresql://viewer:{PASSWORD}@db.example/viewer"

BASIC = {"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": TOKEN, "DATABASE_URL": URL}


def errors_of(**environ: str) -> list[str]:
    """The lines of the error that reading these settings raises."""
    with pytest.raises(ConfigError) as caught:
        Settings.read(environ)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path):
    """Writes a file, by default for its owner's eyes, and returns its path as text."""

    def write_one(name: str, text: str, mode: int = 0o600) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return str(path)

    return write_one


def test_an_empty_environment_is_a_valid_one():
    """Everything has a default or may be missing; the defaults are those of docs/reference.md."""
    settings = Settings.read({})
    assert None is settings.database_url
    assert ("this",) == settings.accounts
    assert timedelta(minutes=1) == settings.hot_interval
    assert timedelta(minutes=15) == settings.warm_interval
    assert timedelta(days=1) == settings.cold_interval
    assert timedelta(minutes=10) == settings.freeze_interval
    assert timedelta(seconds=30) == settings.inbox_interval
    assert timedelta(seconds=60) == settings.webhook_grace
    assert timedelta(hours=24) == settings.freeze_after == settings.stuck_after
    assert timedelta(minutes=5) == settings.inbox_grace
    assert (None, None, None) == (settings.inbox_retention, settings.http_listen, settings.notify_channel)
    assert ("auto", "auto", "masked") == (settings.log_format, settings.log_level, settings.log_pii)


def test_the_environment_is_an_argument(monkeypatch):
    """The environment of the process itself is not read."""
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", ACCOUNT)
    assert None is Settings.read({}).twilio_account_sid


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("RECONCILER_HOT_INTERVAL", "90s", "hot_interval", timedelta(seconds=90)),
        ("RECONCILER_INBOX_RETENTION", "2w", "inbox_retention", timedelta(weeks=2)),
        ("RECONCILER_EVENTS_RETENTION", "5w", "events_retention", timedelta(days=35)),
        ("RECONCILER_INBOX_GRACE", "0s", "inbox_grace", timedelta(0)),
        ("RECONCILER_MAX_CONCURRENCY", "100", "max_concurrency", 100),
        ("RECONCILER_ACCOUNTS", "all", "accounts", ("all",)),
        ("RECONCILER_ACCOUNTS", f"{ACCOUNT}, {ACCOUNT[:-1]}2", "accounts", (ACCOUNT, f"{ACCOUNT[:-1]}2")),
        ("RECONCILER_HTTP_LISTEN", "[::1]:9464", "http_listen", ("::1", 9464)),
        ("RECONCILER_HTTP_LISTEN", ":9464", "http_listen", ("127.0.0.1", 9464)),
        ("RECONCILER_LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("TWILIO_BASE_URL", "http://127.0.0.1:8080/", "twilio_base_url", "http://127.0.0.1:8080"),
        ("DATABASE_URL", "host=/run/postgresql dbname=viewer", "database_url", "host=/run/postgresql dbname=viewer"),
    ],
)
def test_values_are_parsed_at_the_border(name, text, field, value):
    """Durations are timedeltas, lists are tuples, and a trailing slash does not matter."""
    assert value == getattr(Settings.read({name: text}), field)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("RECONCILER_HOT_INTERVAL", "soon", "must be a number and one of"),
        ("RECONCILER_HOT_INTERVAL", "0s", "must be longer than nothing"),
        ("RECONCILER_FREEZE_AFTER", "999999999w", "must be shorter"),
        ("RECONCILER_MAX_CONCURRENCY", "0", "must be a whole number from 1 to 100"),
        ("RECONCILER_MAX_CONCURRENCY", "-1", "must be a whole number from 1 to 100"),
        ("RECONCILER_ACCOUNTS", "AC1", "must be `this`, `all`, or account SIDs"),
        ("RECONCILER_ACCOUNTS", ",", "must be `this`, `all`, or account SIDs"),
        ("RECONCILER_HTTP_LISTEN", "9464", "must be host:port"),
        ("RECONCILER_HTTP_LISTEN", "localhost:99999", "must be host:port"),
        ("RECONCILER_LOG_FORMAT", "xml", "must be one of json, console, auto"),
        ("RECONCILER_LOG_PII", "no", "must be one of masked, plain"),
        ("RECONCILER_NOTIFY_CHANNEL", "Calls; drop", "must be a plain PostgreSQL identifier"),
        ("TWILIO_ACCOUNT_SID", KEY, "must be AC and 32 hexadecimal digits"),
        ("TWILIO_ACCOUNT_SID", "AC" + "x" * 32, "must be AC and 32 hexadecimal digits"),
        ("TWILIO_BASE_URL", "api.twilio.com", "must be http:// or https://"),
        ("TWILIO_BASE_URL", "https://user:pass@api.twilio.com", "must be http:// or https:// and a host, without cred"),
        ("TWILIO_BASE_URL", "http://localhost:99999", "must be http"),
        ("TWILIO_BASE_URL", "http://localhost/#top", "must be http:// or https://"),
        ("TWILIO_BASE_URL", "http://[::1", "Invalid IPv6 URL"),
        ("DATABASE_URL", "mysql://localhost", "must be postgresql://"),
    ],
)
def test_a_bad_value_is_refused_by_its_rule(name, text, rule):
    """One line: the setting's name, then the rule."""
    [line] = errors_of(**{name: text})
    assert line.startswith(f"{name} {rule}")


def test_all_errors_are_reported_at_once():
    """One start shows five mistakes. One mistake counts once."""
    lines = errors_of(
        TWILIO_ACCOUNT_SID="nobody",
        TWILIO_API_KEY="no key",
        TWILIO_API_SECRET=SECRET,
        TWILIO_BASE_URL="http://127.0.0.1",
        TWILIO_REGION="ie1",
        RECONCILER_OVERLAP="much",
        RECONCILER_OVERLAPS="10m",
        RECONCILER_CONFIG="/nonexistent/file",
    )
    assert {
        "RECONCILER_CONFIG", "RECONCILER_OVERLAPS", "TWILIO_ACCOUNT_SID", "TWILIO_API_KEY", "RECONCILER_OVERLAP",
        "TWILIO_BASE_URL",
    } == {line.split()[0] for line in lines}  # fmt: skip
    assert 6 == len(lines)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("RECONCILER_HOT_INTERVALL", "; did you mean RECONCILER_HOT_INTERVAL?"),
        ("RECONCILER_CONCURRENCY", "; did you mean RECONCILER_MAX_CONCURRENCY?"),
        ("RECONCILER_CONF", "; did you mean RECONCILER_CONFIG?"),
        ("RECONCILER_", ""),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_one(name, suggestion):
    """A misspelt setting would else be a default in silence."""
    [line] = errors_of(**{name: "1"})
    assert f"{name} is not a setting" == line.split(";")[0]
    assert line.endswith(suggestion)


def test_an_unknown_name_in_the_file_is_an_error_too(write):
    """It is the same mistake there."""
    path = write("reconciler.env", "RECONCILER_OVERLAPP=10m\n")
    [line] = errors_of(RECONCILER_CONFIG=path)
    assert "RECONCILER_OVERLAPP is not a setting; did you mean RECONCILER_OVERLAP?" == line


def test_what_kubernetes_names_after_a_service_is_left_alone():
    """A Service of our name must not keep the pods beside it from starting."""
    port = {f"RECONCILER_PORT_9464_TCP{name}": "x" for name in ("", "_PROTO", "_PORT", "_ADDR")}
    service = {f"RECONCILER_SERVICE_{name}": "x" for name in ("HOST", "PORT", "PORT_METRICS")}
    assert Settings.read({**port, **service, "RECONCILER_PORT": "tcp://10.0.0.1:9464"}) == Settings.read({})


def test_other_peoples_names_are_left_alone():
    """Environments hold more than ours."""
    Settings.read({"PATH": "/bin", "TWILIO_SOMETHING": "x", "RECONCILERX": "y"})


def test_an_api_key_needs_its_secret():
    """A secret needs its key."""
    rule = "TWILIO_API_KEY and TWILIO_API_SECRET go together: one of them is not set"
    assert [rule] == errors_of(TWILIO_API_KEY=KEY) == errors_of(TWILIO_API_SECRET=SECRET)


@pytest.mark.parametrize("name", ["TWILIO_REGION", "TWILIO_EDGE"])
def test_a_base_url_excludes_region_and_edge(name):
    """It names the host already."""
    [line] = errors_of(TWILIO_BASE_URL="http://127.0.0.1", **{name: "ie1"})
    assert line.startswith("TWILIO_BASE_URL excludes TWILIO_REGION")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_value_is_not_set(empty):
    """Compose files pass on empty variables."""
    assert Settings.read({}) == Settings.read(dict.fromkeys(("DATABASE_URL", "RECONCILER_OVERLAP"), empty))


def test_the_sources_of_a_secret_in_their_order(write, tmp_path):
    """Environment, NAME_FILE, systemd's directory, our file; each counts only without the ones before."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    write("credentials/twilio_auth_token", "from systemd\n", 0o400)
    environ = {
        "RECONCILER_CONFIG": write("reconciler.env", "TWILIO_AUTH_TOKEN=from config\n"),
        "CREDENTIALS_DIRECTORY": str(credentials),
        "TWILIO_AUTH_TOKEN_FILE": write("token", "from file\n"),
        "TWILIO_AUTH_TOKEN": "from environment",
    }
    found = []
    for name in ("TWILIO_AUTH_TOKEN", "TWILIO_AUTH_TOKEN_FILE", "CREDENTIALS_DIRECTORY", "RECONCILER_CONFIG"):
        found.append(Settings.read(environ).twilio_auth_token)
        del environ[name]
    assert ["from environment", "from file", "from systemd", "from config"] == found
    assert None is Settings.read(environ).twilio_auth_token


def test_systemd_credentials_may_have_either_case(tmp_path, write):
    """The user chooses the names of LoadCredential=. A credential that is not there is not set."""
    write("TWILIO_API_SECRET", SECRET, 0o440)
    settings = Settings.read({"CREDENTIALS_DIRECTORY": str(tmp_path), "TWILIO_API_KEY": KEY})
    assert (SECRET, None) == (settings.twilio_api_secret, settings.database_url)


def test_what_is_no_secret_has_no_file():
    """NAME_FILE for another setting is not read, so that there is one way to say it."""
    assert None is Settings.read({"TWILIO_ACCOUNT_SID_FILE": "/nonexistent"}).twilio_account_sid


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file or directory"), (b"\xff\xfe", "UnicodeDecodeError"), (b" \n", "it is empty")],
)
def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path, content, why):
    """The setting and the reason, not the contents."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    line = f"TWILIO_AUTH_TOKEN cannot be read from its file: {why}"
    assert [line] == errors_of(TWILIO_AUTH_TOKEN_FILE=str(path))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444, 0o777])
@pytest.mark.parametrize(
    ("name", "value"), [("TWILIO_AUTH_TOKEN", TOKEN), ("TWILIO_API_SECRET", SECRET), ("DATABASE_URL", URL)]
)
def test_a_secret_that_everybody_may_read_is_refused(write, tmp_path, mode, name, value):
    """Whichever way it came; setting, mode and what to do are named, the value is not."""
    path = write(name, value, mode)
    told = f"{name} is in a file that everybody may read (mode {mode:04o}): chmod o-r it"
    assert told in errors_of(**{f"{name}_FILE": path, "TWILIO_API_KEY": KEY})
    assert told in errors_of(CREDENTIALS_DIRECTORY=str(tmp_path), TWILIO_API_KEY=KEY)
    config = write("reconciler.env", f"RECONCILER_OVERLAP=5m\n{name}='{value}'\n", mode)
    told = (
        f"RECONCILER_CONFIG names a file that holds {name}, and everybody may read it (mode {mode:04o}): chmod o-r it"
    )
    assert told in errors_of(RECONCILER_CONFIG=config, TWILIO_API_KEY=KEY)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640, 0o660])
def test_a_secret_for_owner_and_group_is_read(write, mode):
    """systemd's credentials are 0400 or 0440, and in containers the group is often the only way."""
    config = write("reconciler.env", f"TWILIO_AUTH_TOKEN={TOKEN}\n", mode)
    assert TOKEN == Settings.read({"TWILIO_AUTH_TOKEN_FILE": write("token", TOKEN, mode)}).twilio_auth_token
    assert TOKEN == Settings.read({"RECONCILER_CONFIG": config}).twilio_auth_token


def test_what_is_no_secret_may_be_read_by_everybody(write):
    """Intervals and names, empty secrets, an address without a password, the name of a file that has one."""
    url = "postgresql:///viewer?host=/run/postgresql"
    text = f"RECONCILER_OVERLAP=5m\nTWILIO_ACCOUNT_SID={ACCOUNT}\nTWILIO_API_SECRET=\nDATABASE_URL={url}\n"
    token = f"TWILIO_AUTH_TOKEN_FILE={write('token', TOKEN)}\n"
    settings = Settings.read({"RECONCILER_CONFIG": write("reconciler.env", text + token, 0o644)})
    assert (url, TOKEN) == (settings.database_url, settings.twilio_auth_token)
    assert url == Settings.read({"DATABASE_URL_FILE": write("url", url, 0o644)}).database_url


def test_an_unreadable_credentials_directory_is_an_error():
    """The error names it, and there is no crash."""
    [first, *_] = errors_of(CREDENTIALS_DIRECTORY="x" * 5_000)
    assert "DATABASE_URL cannot be read from its file: File name too long" == first


def test_the_config_file(write):
    """NAME=value, comments, blank lines and matching quotes; the environment wins, unless it is empty there."""
    path = write(
        "reconciler.env",
        "# ours\n\n RECONCILER_OVERLAP = 20m\nTWILIO_AUTH_TOKEN=\"quote'\"\nRECONCILER_HOT_INTERVAL='2m'\n"
        "TWILIO_REGION=ie1\nOTHER_PROGRAMS=too\nTWILIO_EDGE='dublin\n",
    )
    settings = Settings.read({"RECONCILER_CONFIG": path, "RECONCILER_HOT_INTERVAL": "3m", "TWILIO_REGION": ""})
    assert timedelta(minutes=20) == settings.overlap
    assert timedelta(minutes=3) == settings.hot_interval
    assert "quote'" == settings.twilio_auth_token
    assert ("ie1", "'dublin") == (settings.twilio_region, settings.twilio_edge)


def test_the_config_file_may_name_files_too(write):
    """The same names mean the same there."""
    path = write("reconciler.env", f"TWILIO_AUTH_TOKEN_FILE={write('token', TOKEN)}\n")
    assert TOKEN == Settings.read({"RECONCILER_CONFIG": path}).twilio_auth_token


def test_a_bad_line_of_the_config_file_is_named_by_its_number(write):
    """The error does not quote it: it may hold a secret."""
    path = write("reconciler.env", f"RECONCILER_OVERLAP=5m\nexport TOKEN={TOKEN}\n{TOKEN}\n")
    assert [
        "RECONCILER_CONFIG, line 2: must be NAME=value",
        "RECONCILER_CONFIG, line 3: must be NAME=value",
    ] == errors_of(RECONCILER_CONFIG=path)


def test_secrets_are_in_no_repr():
    """No way to turn settings or credentials into text shows one."""
    settings = Settings.read({**BASIC, "TWILIO_API_KEY": KEY, "TWILIO_API_SECRET": SECRET})
    credentials = settings.credentials()
    shown = f"{settings} {settings!r} {credentials} {credentials!r} {[credentials]}"
    assert not [secret for secret in (TOKEN, SECRET, PASSWORD) if secret in shown]
    assert ACCOUNT in shown


@given(st.sampled_from([field.metadata["name"] for field in dataclasses.fields(Settings)]), st.integers(0, 10**9))
def test_no_error_repeats_the_value(name, number):
    """A secret in the wrong variable must not be printed."""
    value = f"!?{number:010}-secret"
    try:
        Settings.read({name: value})
    except ConfigError as exc:
        said = f"{exc} {exc.hint}"
    else:
        said = ""
    assert value not in said


def test_credentials_of_the_account():
    """Account SID and auth token."""
    assert Credentials(ACCOUNT, ACCOUNT, TOKEN) == Settings.read(BASIC).credentials()


def test_credentials_of_an_api_key():
    """The key signs in, the path still needs the account; it is preferred to the token."""
    environ = {
        **BASIC,
        "TWILIO_API_KEY": KEY,
        "TWILIO_API_SECRET": SECRET,
        "TWILIO_REGION": "ie1",
        "TWILIO_EDGE": "dublin",
    }
    assert Credentials(ACCOUNT, KEY, SECRET, "ie1", "dublin") == Settings.read(environ).credentials()


def test_missing_credentials_are_named_together():
    """The error has both lines, and says what to do without any."""
    with pytest.raises(ConfigError, match=r"^TWILIO_ACCOUNT_SID is not set\nTWILIO_AUTH_TOKEN is not set") as caught:
        Settings.read({}).credentials()
    assert "reconcile demo" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("postgresql://viewer@db/viewer", set()),
        ("postgresql://viewer:hunter22@db/viewer", {"hunter22"}),
        ("postgres://viewer:p%40ss%2Fw@db/viewer", {"p%40ss%2Fw", "p@ss/w"}),
        ("postgresql://viewer:p:w@db/viewer", {"p:w"}),
        ("postgresql://db/viewer?user=x&password=p%26w&sslmode=require", {"p%26w", "p&w"}),
        ("host=db password=hunter22 user=x", {"hunter22"}),
        (r"host=db password = 'it\'s me' user=x", {r"it\'s me", "it's me"}),
        ("host=db sslpassword=hunter22", {"hunter22"}),
    ],
)
def test_the_databases_password_is_a_secret(url, secrets):
    """Both forms are: as the URL writes it, and as libpq understands it."""
    assert secrets == set(Settings.read({"DATABASE_URL": url}).secrets())


def test_all_secrets_are_named_for_the_logs():
    """The logs leave out every setting that the table marks as a secret."""
    settings = Settings.read({**BASIC, "TWILIO_API_KEY": KEY, "TWILIO_API_SECRET": SECRET})
    assert {TOKEN, SECRET, PASSWORD} == set(settings.secrets())


def test_every_setting_says_what_it_means():
    """The table in docs/reference.md is made of these; names are unique."""
    metadata = [field.metadata for field in dataclasses.fields(Settings)]
    assert all(each["meaning"] for each in metadata)
    assert len(metadata) == len({each["name"] for each in metadata})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWILIO_BASE_URL", "http://user:pa/ss@host"),
        ("DATABASE_URL", "postgresql://user:secret/w0rd@host/db"),
        ("DATABASE_URL", "postgresql://localhost:port/db"),
        ("DATABASE_URL", "mysql://user:secret@host/db?a=b"),
    ],
)
def test_an_address_that_cannot_be_one_is_named_and_not_quoted(name, value):
    """A part of a password may stand where a port should: nothing of the value is said."""
    with pytest.raises(ConfigError) as refused:
        Settings.read({name: value})
    assert str(refused.value).startswith(name)
    assert not any(part in str(refused.value) for part in ("pa/", "ss@", "secret", "w0rd"))


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "127.8.0.1:1", "[::1]:9", "twilio.localhost"])
def test_plain_http_may_stay_on_this_machine(host):
    """A simulator or a recording proxy beside us."""
    assert f"http://{host}" == Settings.read({"TWILIO_BASE_URL": f"http://{host}"}).twilio_base_url


@pytest.mark.parametrize("host", ["api.twilio.com", "10.0.0.7:8080", "[fe80::1]", "localhost.example"])
def test_plain_http_to_another_machine_is_refused_unless_allowed(host):
    """It would send the credentials unencrypted; https and the explicit setting are allowed."""
    [line] = errors_of(TWILIO_BASE_URL=f"http://{host}")
    assert line.startswith("TWILIO_BASE_URL sends the credentials in the open")
    assert "RECONCILER_PLAIN_HTTP=allowed" in line
    Settings.read({"TWILIO_BASE_URL": f"https://{host}"})
    Settings.read({"TWILIO_BASE_URL": f"http://{host}", "RECONCILER_PLAIN_HTTP": "allowed"})
