"""The files that an administrator installs: the units, as systemd judges them, and the example of the settings."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reconciler.errors import ExitCode
from reconciler.settings import Settings
from tests.harness.present import present

DEPLOY = Path(__file__).parents[2] / "deploy"
DAEMON, BACKFILL = "reconciler.service", "reconciler-backfill@.service"
UNITS = [DAEMON, BACKFILL]
EXAMPLE = (DEPLOY / "reconciler.env.example").read_text(encoding="utf-8")

judged_by_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def assignments(unit: str) -> list[tuple[str, str]]:
    """The settings of a unit's [Service] in their order; a line that is none fails."""
    lines = (DEPLOY / unit).read_text(encoding="utf-8").split("\n[Service]\n")[1].split("\n[Install]\n")[0].splitlines()
    matches = [present(re.fullmatch(r"(\w+)=(.*)", line)) for line in lines if line and not line.startswith("#")]
    return [(match[1], match[2]) for match in matches]


def values(unit: str, name: str) -> list[str]:
    """All values that a unit's [Service] gives to `name`."""
    return [value for key, value in assignments(unit) if key == name]


@pytest.fixture
def installed(tmp_path):
    """A folder with the units, whose program exists."""
    program = tmp_path / "reconcile"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    for unit in UNITS:
        text = (DEPLOY / unit).read_text(encoding="utf-8")
        assert "/opt/reconciler/bin/reconcile" in text
        text = text.replace("ExecStart=/opt/reconciler/bin/reconcile", f"ExecStart={program}")
        (tmp_path / unit.replace("@.", "@7d.")).write_text(text, encoding="utf-8")
    return tmp_path


def analyze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The output of `systemd-analyze`."""
    return subprocess.run(
        ["systemd-analyze", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@judged_by_systemd
@pytest.mark.parametrize("unit", ["reconciler.service", "reconciler-backfill@7d.service"])
def test_systemd_finds_nothing_wrong(installed, unit):
    """No unknown setting, no value it cannot read, no program that is not there."""
    verdict = analyze("verify", "--man=no", "--recursive-errors=no", f"./{unit}", cwd=installed)
    assert (0, "", "") == (verdict.returncode, verdict.stdout, verdict.stderr)


@judged_by_systemd
def test_systemd_would_find_a_mistake(installed):
    """The test above can fail."""
    with (installed / DAEMON).open("a", encoding="utf-8") as file:
        file.write("\n[Service]\nProtectSytem=strict\n")
    verdict = analyze("verify", "--man=no", "--recursive-errors=no", f"./{DAEMON}", cwd=installed)
    assert "ProtectSytem" in verdict.stderr


@judged_by_systemd
def test_the_drop_in_for_newer_systemd_is_known_to_it(installed):
    """Where systemd is older, it ignores the new type and says just that."""
    folder = installed / "reconciler.service.d"
    shutil.copytree(DEPLOY / "reconciler.service.d", folder)
    version = int(present(re.search(r"systemd (\d+)", analyze("--version", cwd=installed).stdout))[1])
    complaints = analyze(
        "verify", "--man=no", "--recursive-errors=no", f"./{DAEMON}", cwd=installed
    ).stderr.splitlines()
    expected = [] if version >= 253 else ["Failed to parse service type, ignoring: notify-reload"]
    assert expected == [complaint.split(": ", 1)[1] for complaint in complaints]


@judged_by_systemd
@pytest.mark.parametrize("unit", ["reconciler.service", "reconciler-backfill@7d.service"])
def test_the_exposure_is_low(installed, unit):
    """systemd's own measure, from 0 (safe) to 10."""
    verdict = analyze("security", "--offline=true", "--threshold=15", f"./{unit}", cwd=installed)
    assert 0 == verdict.returncode, verdict.stdout + verdict.stderr
    assert float(present(re.search(r"Overall exposure level for \S+: ([\d.]+)", verdict.stdout))[1]) <= 1.5


def test_both_units_are_hardened_alike():
    """The hardening, the user, the settings and the limits: what one has, the other has."""
    of_one = {
        DAEMON: {
            "Type", "NotifyAccess", "ExecStart", "ExecReload", "TimeoutStartSec", "WatchdogSec", "RestartSec",
            "RestartPreventExitStatus",
        },
        BACKFILL: {"Type", "ExecStart", "RestartSec", "RestartPreventExitStatus", "Nice", "CPUWeight", "IOWeight"},
    }  # fmt: skip
    daemon, backfill = ([pair for pair in assignments(unit) if pair[0] not in of_one[unit]] for unit in UNITS)
    daemon.remove(("Environment", "PYTHONFAULTHANDLER=1"))
    assert daemon == backfill
    assert {"ProtectSystem", "SystemCallFilter", "MemoryDenyWriteExecute", "LimitCORE"} <= {name for name, _ in daemon}


@pytest.mark.parametrize("unit", UNITS)
def test_the_daemon_reads_its_settings_itself(unit):
    """systemd reads EnvironmentFile= and LoadCredential= at a start only: a reload would not see a rotated token."""
    assert "RECONCILER_CONFIG=/etc/reconciler/reconciler.env" in values(unit, "Environment")
    assert values(unit, "EnvironmentFile") + values(unit, "LoadCredential") == []
    assert (["reconciler"], ["reconciler"]) == (values(unit, "User"), values(unit, "Group"))
    assert values(DAEMON, "ExecReload") == ["kill -HUP $MAINPID"]


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_restarts_after_errors_that_heal_and_no_others(unit):
    """Unavailable, try again and killed may heal; refusals and bad settings need a person."""
    (codes,) = values(unit, "RestartPreventExitStatus")
    prevented = {ExitCode(int(code)) for code in codes.split()}
    assert {ExitCode.USAGE, ExitCode.REFUSED, ExitCode.CONFIG} <= prevented
    assert not {ExitCode.UNAVAILABLE, ExitCode.TRY_AGAIN} & prevented
    assert ["on-failure"] == values(unit, "Restart")
    assert [str(int(ExitCode.INTERRUPTED))] == values(unit, "SuccessExitStatus")


def test_the_example_of_the_settings_is_the_code():
    """Every setting with its meaning and default, in the code's order; of a secret the file that holds it."""
    expected = [
        (meta["meaning"], f"{meta['name']}_FILE=/etc/reconciler/{meta['name']}")
        if meta["secret"]
        else (meta["meaning"], f"{meta['name']}={meta['default'] or ''}")
        for meta in (field.metadata for field in dataclasses.fields(Settings))
    ]
    _, *blocks = EXAMPLE.strip().split("\n\n")
    pairs = [block.splitlines() for block in blocks]
    assert expected == [(meaning.removeprefix("# "), setting.removeprefix("#")) for meaning, setting in pairs]


def test_the_example_sets_what_every_service_needs():
    """The account, and the files of two secrets; all else is commented out, and uncommented it changes nothing."""
    lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    assert [line.partition("=")[0] for line in lines] == [
        "DATABASE_URL_FILE",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN_FILE",
    ]
    pairs = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert Settings.read({}) == Settings.read({name: value for name, value in pairs.items() if "_FILE" not in name})
