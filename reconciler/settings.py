"""Settings: every name, meaning, unit and default in one place. They are read once, and all errors reported at once.

A value comes from the first of these that has it:
1. the environment;
2. for secrets: the file that `NAME_FILE` names, then systemd's `$CREDENTIALS_DIRECTORY/NAME`;
3. the file that RECONCILER_CONFIG names (`NAME=value` lines), with the same steps for secrets.

A file that holds a secret and that everybody may read is refused. Its group may read it: systemd's credentials and
files of containers need that. No other module reads the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from reconciler.errors import ConfigError
from reconciler.setting_values import (
    account_list,
    address,
    channel,
    count,
    database_url,
    duration_from,
    http_url,
    is_sent_in_the_open,
    one_of,
    passwords_in,
    positive_duration,
    sid_of_kind,
    text_of,
    workers,
)
from reconciler.times import parse_duration

# Events this young are what `reconcile report`, `reconcile why` and the deep sweep of cold go back to.
REPORTED_FOR: Final = timedelta(days=35)

_CONFIG_FILE: Final = "RECONCILER_CONFIG"
# A Service named reconciler gives every pod beside it these variables
# (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
_OF_KUBERNETES: Final = re.compile(r"RECONCILER_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?)")


class SecretFile(NamedTuple):
    """A file that holds a secret, or settings with a secret among them, and its mode."""

    name: str
    path: Path
    mode: int


class Credentials(NamedTuple):
    """The credentials of requests to Twilio, and the host that receives them."""

    account_sid: str
    username: str  # the SID of the account or of an API key
    secret: str
    region: str | None = None
    edge: str | None = None
    base_url: str | None = None

    def __repr__(self) -> str:
        return f"<Credentials of {self.account_sid}>"


def _setting(name: str, parse: Callable[[str], Any], default: str | None, meaning: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=None if default is None else parse(default),
        repr=not secret,
        metadata={"name": name, "parse": parse, "default": default, "meaning": meaning, "secret": secret},
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed. The repr holds no secrets."""

    database_url: str | None = _setting(
        "DATABASE_URL",
        database_url,
        None,
        "the Viewer's database; if not set, an embedded PostgreSQL starts",
        secret=True,
    )
    twilio_account_sid: str | None = _setting("TWILIO_ACCOUNT_SID", sid_of_kind("AC"), None, "the Twilio account")
    twilio_auth_token: str | None = _setting(
        "TWILIO_AUTH_TOKEN", text_of, None, "its auth token; or an API key and secret instead", secret=True
    )
    twilio_api_key: str | None = _setting("TWILIO_API_KEY", sid_of_kind("SK"), None, "an API key of the account")
    twilio_api_secret: str | None = _setting("TWILIO_API_SECRET", text_of, None, "the API key's secret", secret=True)
    twilio_region: str | None = _setting(
        "TWILIO_REGION", text_of, None, "the region that keeps the calls: us1, ie1, au1"
    )
    twilio_edge: str | None = _setting(
        "TWILIO_EDGE", text_of, None, "the edge to enter Twilio's network by: ashburn, dublin, sydney …"
    )
    twilio_base_url: str | None = _setting(
        "TWILIO_BASE_URL", http_url, None, "a simulator or recording proxy to ask instead of Twilio"
    )
    plain_http: str = _setting(
        "RECONCILER_PLAIN_HTTP",
        one_of("refused", "allowed"),
        "refused",
        "allowed lets TWILIO_BASE_URL send credentials unencrypted to another machine",
    )
    accounts: tuple[str, ...] = _setting(
        "RECONCILER_ACCOUNTS",
        account_list,
        "this",
        "`this` account, `all` with its subaccounts, or a list of account SIDs",
    )
    hot_interval: timedelta = _setting(
        "RECONCILER_HOT_INTERVAL", positive_duration, "1m", "how often hot reads the newest and the open calls"
    )
    warm_interval: timedelta = _setting(
        "RECONCILER_WARM_INTERVAL", positive_duration, "15m", "how often warm asks for late fields of ended calls"
    )
    cold_interval: timedelta = _setting(
        "RECONCILER_COLD_INTERVAL", positive_duration, "1d", "how often cold proves the last days complete"
    )
    freeze_interval: timedelta = _setting(
        "RECONCILER_FREEZE_INTERVAL",
        positive_duration,
        "10m",
        "how often freeze looks for calls past their deadline",
    )
    inbox_interval: timedelta = _setting(
        "RECONCILER_INBOX_INTERVAL",
        positive_duration,
        "30s",
        "how often inbox takes up webhooks that the Viewer's worker left",
    )
    overlap: timedelta = _setting(
        "RECONCILER_OVERLAP", positive_duration, "10m", "how far before its cursor a job reads again"
    )
    webhook_grace: timedelta = _setting(
        "RECONCILER_WEBHOOK_GRACE", parse_duration, "60s", "how old a difference must be to count as a gap"
    )
    freeze_after: timedelta = _setting(
        "RECONCILER_FREEZE_AFTER", positive_duration, "24h", "how long after its end a call waits for its price at most"
    )
    stuck_after: timedelta = _setting(
        "RECONCILER_STUCK_AFTER",
        positive_duration,
        "24h",
        "how long a call may stay open before freeze logs call.stuck",
    )
    inbox_grace: timedelta = _setting(
        "RECONCILER_INBOX_GRACE", parse_duration, "5m", "how long the Viewer's own worker may take; 0s = there is none"
    )
    inbox_retention: timedelta | None = _setting(
        "RECONCILER_INBOX_RETENTION", positive_duration, None, "how long processed inbox rows stay; for ever if not set"
    )
    events_retention: timedelta | None = _setting(
        "RECONCILER_EVENTS_RETENTION",
        duration_from(REPORTED_FOR),
        None,
        "how long events of frozen calls stay, 35d or more; for ever if not set",
    )
    max_concurrency: int = _setting(
        "RECONCILER_MAX_CONCURRENCY",
        count,
        "16",
        "requests to Twilio at once for an account, at most, of all processes of a database together",
    )
    engine: str = _setting(
        "RECONCILER_ENGINE",
        one_of("local", "procrastinate"),
        "local",
        "local: one daemon runs the jobs, others stand by; procrastinate: all daemons of the database share them",
    )
    workers: int = _setting(
        "RECONCILER_WORKERS",
        workers,
        "16",
        "with RECONCILER_ENGINE=procrastinate: runs at once in this process, 3 or more",
    )
    log_format: str = _setting(
        "RECONCILER_LOG_FORMAT",
        one_of("json", "console", "auto"),
        "auto",
        "json, console, or auto: console on a terminal",
    )
    log_level: str = _setting(
        "RECONCILER_LOG_LEVEL",
        one_of("auto", "debug", "info", "warning", "error"),
        "auto",
        "the least level logged: debug, info, warning or error; auto: warning where a command "
        "prints its result on a terminal, else info",
    )
    log_pii: str = _setting(
        "RECONCILER_LOG_PII", one_of("masked", "plain"), "masked", "plain writes phone numbers as they are"
    )
    http_listen: tuple[str, int] | None = _setting(
        "RECONCILER_HTTP_LISTEN", address, None, "host:port of metrics, health and the status page; off if not set"
    )
    notify_channel: str | None = _setting(
        "RECONCILER_NOTIFY_CHANNEL", channel, None, "the NOTIFY channel for changed calls; no NOTIFY if not set"
    )

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read all settings.

        Raises:
            ConfigError: for all errors together, one a line; each names the setting and the rule, never a secret.

        """
        errors: list[str] = []
        filed = _config_file(environ, errors)
        errors += _unknown({*environ, *filed})
        values = {}
        unread = set()
        for field in dataclasses.fields(cls):
            name, parse, is_secret = (field.metadata[key] for key in ("name", "parse", "secret"))
            try:
                text = _look_up(name, environ, secret=is_secret) or _look_up(name, filed, secret=is_secret)
                if text:
                    values[field.name] = parse(text)
            except ValueError as exc:
                errors.append(f"{name} {exc}")
                unread.add(name)
        settings = cls(**values)
        errors += (text for names, text in settings._contradictions() if unread.isdisjoint(names))
        if errors:
            raise ConfigError("\n".join(errors), hint="docs/reference.md and `reconcile man` list all settings")
        return settings

    def credentials(self) -> Credentials:
        """Return the credentials for Twilio: the API key if it is set, else the auth token.

        Raises:
            ConfigError: a part of the credentials is not set.

        """
        missing = []
        if not self.twilio_account_sid:
            missing.append("TWILIO_ACCOUNT_SID is not set")
        if not self.twilio_auth_token and not self.twilio_api_key:
            missing.append("TWILIO_AUTH_TOKEN is not set (nor TWILIO_API_KEY with TWILIO_API_SECRET)")
        if missing:
            raise ConfigError(
                "\n".join(missing),
                hint="both are on the first page of Twilio's console; to try without, run `reconcile demo`",
            )
        assert self.twilio_account_sid
        username, secret = (
            (self.twilio_api_key, self.twilio_api_secret)
            if self.twilio_api_key
            else (self.twilio_account_sid, self.twilio_auth_token)
        )
        assert username
        assert secret
        return Credentials(
            self.twilio_account_sid, username, secret, self.twilio_region, self.twilio_edge, self.twilio_base_url
        )

    def logins(self) -> tuple[str | None, ...]:
        """Return every setting that decides about logins to Twilio and the database."""
        return self.twilio_auth_token, self.twilio_api_key, self.twilio_api_secret, self.database_url

    def changed_since(self, before: Settings) -> list[str]:
        """Return the names, as in the environment, of the settings that differ from `before`."""
        return [
            str(field.metadata["name"])
            for field in dataclasses.fields(self)
            if getattr(before, field.name) != getattr(self, field.name)
        ]

    def secrets(self) -> list[str]:
        """Return every secret value, for the logs to leave out. Of the database's URL only the password is secret."""
        values = [self.twilio_auth_token, self.twilio_api_secret]
        if self.database_url:
            values += passwords_in(self.database_url)
        return [value for value in values if value]

    def _contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield each group of settings that contradict each other, with the message about it."""
        if bool(self.twilio_api_key) != bool(self.twilio_api_secret):
            yield (
                ("TWILIO_API_KEY", "TWILIO_API_SECRET"),
                "TWILIO_API_KEY and TWILIO_API_SECRET go together: one of them is not set",
            )
        if self.twilio_base_url and self.plain_http == "refused" and is_sent_in_the_open(self.twilio_base_url):
            yield (
                ("TWILIO_BASE_URL", "RECONCILER_PLAIN_HTTP"),
                "TWILIO_BASE_URL sends the credentials in the open: write https://, or RECONCILER_PLAIN_HTTP=allowed",
            )
        if self.twilio_base_url and (self.twilio_region or self.twilio_edge):
            yield (
                ("TWILIO_BASE_URL", "TWILIO_REGION", "TWILIO_EDGE"),
                "TWILIO_BASE_URL excludes TWILIO_REGION and TWILIO_EDGE: it names the host already",
            )


def secret_files(environ: Mapping[str, str]) -> list[SecretFile]:
    """Return the files that secrets come from; call it after the settings have been read without error."""
    values = _config_file(environ, [])
    merged = {**values, **environ}
    secrets = [field.metadata["name"] for field in dataclasses.fields(Settings) if field.metadata["secret"]]
    files = [(name, _secret_file(name, merged)) for name in secrets if not merged.get(name, "").strip()]
    if any(_is_secret(name, value) for name, value in values.items()):
        files.append((_CONFIG_FILE, Path(environ[_CONFIG_FILE])))
    return [SecretFile(name, path, stat.S_IMODE(path.stat().st_mode)) for name, path in files if path is not None]


def _look_up(name: str, environ: Mapping[str, str], *, secret: bool) -> str | None:
    if value := environ.get(name, "").strip():
        return value
    if not secret:
        return None
    try:
        path = _secret_file(name, environ)
        text, mode = _read(path) if path else (None, 0)
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"cannot be read from its file: {_reason(exc)}") from None
    if text is None:
        return None
    text = text.strip()
    if not text:
        raise ValueError("cannot be read from its file: it is empty")
    if mode & stat.S_IROTH and _is_secret(name, text):
        raise ValueError(f"is in a file that everybody may read (mode {mode:04o}): chmod o-r it")
    return text


def _read(path: Path) -> tuple[str, int]:
    """Return the text of a file, and its mode when it was read."""
    with path.open(encoding="utf-8") as file:
        return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def _is_secret(name: str, value: str) -> bool:
    """Whether the value is a secret. A database's URL is one only if a password is in it."""
    secret = any(f.metadata["secret"] and f.metadata["name"] == name for f in dataclasses.fields(Settings))
    return secret and bool(value) and (name != "DATABASE_URL" or bool(passwords_in(value)))


def _secret_file(name: str, environ: Mapping[str, str]) -> Path | None:
    if path := environ.get(f"{name}_FILE"):
        return Path(path)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    paths = [Path(directory, name), Path(directory, name.lower())] if directory else []
    return next((path for path in paths if path.exists()), None)


def _config_file(environ: Mapping[str, str], errors: list[str]) -> Mapping[str, str]:
    """Return the settings in the file that RECONCILER_CONFIG names; append errors to `errors`."""
    path = environ.get(_CONFIG_FILE)
    if not path:
        return {}
    values = {}
    try:
        text, mode = _read(Path(path))
    except (OSError, UnicodeDecodeError) as exc:
        errors.append(f"{_CONFIG_FILE} names a file that cannot be read: {_reason(exc)}")
        return {}
    lines = text.splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"\w+", name.strip()):
            errors.append(f"{_CONFIG_FILE}, line {number}: must be NAME=value")
            continue
        values[name.strip()] = _unquoted(value.strip())
    secrets = sorted(name for name, value in values.items() if _is_secret(name, value))
    if mode & stat.S_IROTH and secrets:
        holds = f"holds {', '.join(secrets)}, and everybody may read it (mode {mode:04o}): chmod o-r it"
        errors.append(f"{_CONFIG_FILE} names a file that {holds}")
    return values


def _unquoted(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if is_quoted else value


def _unknown(names: Collection[str]) -> list[str]:
    known = {field.metadata["name"] for field in dataclasses.fields(Settings)} | {_CONFIG_FILE}
    errors = []
    for name in sorted(names):
        if name.startswith("RECONCILER_") and name not in known and not _OF_KUBERNETES.fullmatch(name):
            nearest = difflib.get_close_matches(name, known, n=1)
            errors.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return errors


def _reason(exc: Exception) -> str:
    return os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else type(exc).__name__
