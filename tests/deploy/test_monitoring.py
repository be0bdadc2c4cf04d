"""The files for monitoring name only what the program has: rules, dashboard, runbook, and queries of the log."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from reconciler import metrics
from reconciler.cli.main import get_parser
from reconciler.errors import ExitCode
from reconciler.logs import EVENTS
from reconciler.masking import mask
from tests.harness.names import ACCOUNT
from tests.harness.present import present

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
LOGS = ROOT / "deploy" / "logs"
RULES = (PROMETHEUS / "reconciler.rules.yml").read_text(encoding="utf-8")
RULE_TESTS = (PROMETHEUS / "reconciler.rules.test.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "reconciler.json").read_text(encoding="utf-8"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
QUERIES = (LOGS / "queries.md").read_text(encoding="utf-8")
SAMPLE = [json.loads(line) for line in (LOGS / "sample.jsonl").read_text(encoding="utf-8").splitlines()]

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
ANNOTATIONS = [note["expr"] for note in DASHBOARD["annotations"]["list"] if "expr" in note]
ALERTMANAGER = (PROMETHEUS / "alertmanager.yml").read_text(encoding="utf-8")
# An administrator replaces it by the runbook's real address.
RUNBOOK_URL = "https://runbook.example/runbook.md"
# Rules without their comments, each alert with its text.
BARE_RULES = re.sub(r"^\s*#.*$", "", RULES, flags=re.MULTILINE)
ALERTS = {
    block.split("\n", 1)[0].strip(): block
    for block in re.split(r"\n      - (?=alert: |record: )", BARE_RULES)
    if block.startswith("alert: ")
}
ALERT_NAMES = {name.removeprefix("alert: ") for name in ALERTS}

LNAV = json.loads((LOGS / "reconciler.lnav.json").read_text(encoding="utf-8"))["reconciler_log"]
# The fields that any line of the log may have.
ALWAYS = {"timestamp", "level", "event", "logger", "job", "account", "run_id"}

# Labels that Prometheus itself adds to each target.
TARGET_LABELS = {"job", "instance"}
TEST_CASES = re.findall(r'- name: "(\w+)(, silent)?: .*?\n(?=  - name|\Z)', RULE_TESTS, flags=re.DOTALL)

with_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
with_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


def exposed() -> dict[str, set[str]]:
    """Every name that a scrape or a recording rule can have, and its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        labels = set(metric._labelnames)
        for family in metric.describe():
            if isinstance(metric, Histogram):
                found |= {f"{family.name}_bucket": labels | {"le"}, f"{family.name}_sum": labels}
                found[f"{family.name}_count"] = labels
            else:
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                found[family.name + suffix] = labels
    found["reconciler_build_info"] |= {"version", "python"}
    found["ALERTS"] = {"alertname", "alertstate", "severity"}
    found |= {record: {"job_name", "account"} for record in re.findall(r"record: (\S+)", BARE_RULES)}
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    return set(re.findall(r"(?<![\w:$])(?:reconciler(?:_\w+|:[\w:]+)|(?:up|ALERTS)(?=\{))", expression))


def labels_in(expression: str) -> set[str]:
    """The labels that an expression names: in selectors, and where it groups or matches."""
    selectors = re.findall(r"\{([^}]*)\}", expression)
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right) \(([^)]*)\)", expression)
    return {label for text in selectors for label in re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", text)} | {
        label.strip() for text in lists for label in text.split(",") if label.strip()
    }


def expressions_of_rules() -> list[str]:
    """The expressions of all rules, alerts and records."""
    found = re.findall(r"^        expr: (?:[|>]-?\n((?:          .*\n)+)|(.*)\n)", BARE_RULES, flags=re.MULTILINE)
    assert len(found) == BARE_RULES.count("expr:")
    return [folded or line for folded, line in found]


@with_promtool
@pytest.mark.parametrize(
    "arguments", [("check", "rules", "reconciler.rules.yml"), ("test", "rules", "reconciler.rules.test.yml"),
                  ("check", "config", "--syntax-only", "scrape.yml")], ids=" ".join,
)  # fmt: skip
def test_promtool_finds_nothing_wrong(arguments):
    """The rules can be loaded, and each alert fires and stays silent when its test cases say."""
    verdict = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=300, check=False
    )
    assert 0 == verdict.returncode, verdict.stdout + verdict.stderr


@pytest.mark.parametrize("expression", expressions_of_rules() + EXPRESSIONS + ANNOTATIONS)
def test_every_metric_and_label_that_is_asked_for_exists(expression):
    """The registry or a recording rule has each metric. Labels are the metric's own or a target's."""
    known = exposed()
    names = names_in(expression)
    assert names
    assert names <= known.keys()
    assert labels_in(expression) <= TARGET_LABELS.union(*(known[name] for name in names))


def test_what_finds_metrics_and_labels_finds_them():
    """The test above can fail."""
    expression = 'sum by (kind, jobs) (rate(reconciler_gap_total{acount=~"$account"}[5m])) / on (job) up{x="1"}'
    assert names_in(expression) == {"reconciler_gap_total", "up"}
    assert labels_in(expression) == {"kind", "jobs", "acount", "job", "x"}
    assert "reconciler_gap_total" not in exposed()
    assert exposed()["reconciler_runs_total"] == {"job_name", "account", "outcome"}


def test_every_bucket_outcome_and_status_that_is_asked_for_exists():
    """A value that is never there makes an alert that never comes."""
    served = generate_latest(metrics.REGISTRY).decode()
    for bucket in set(re.findall(r'le="([^"]+)"', BARE_RULES + json.dumps(EXPRESSIONS).replace('\\"', '"'))):
        assert f'reconciler_repair_seconds_bucket{{le="{bucket}"}}' in served
    values = {
        name: {value for m in vars(metrics).values() if isinstance(m, MetricWrapperBase) and name in m._labelnames
               for value in re.findall(r"\w+", m._documentation)}
        for name in ("outcome", "status")
    }  # fmt: skip
    asked = re.findall(r'\b(outcome|status)="(\w+)"', BARE_RULES)
    assert asked
    assert all(value in values[name] for name, value in asked)


@pytest.mark.parametrize("name", sorted(ALERT_NAMES))
def test_every_alert_says_what_it_means(name):
    """How urgent it is, in one line and in plain words, and where to read on."""
    for text in re.split(r"(?=alert: )", BARE_RULES):
        if not text.startswith(f"alert: {name}\n"):
            continue
        assert re.search(r"severity: (critical|warning)\n", text)
        assert re.search(r"summary: [A-Z][^\n]{10,80}[^.\n]\n", text) or re.search(r"summary: hot[^\n]+\n", text)
        assert re.search(r"description: >-\n {12}\S", text)
        assert f"runbook_url: {RUNBOOK_URL}#{name.lower()}\n" in text + "\n"


def test_an_alert_stands_for_a_cause_and_not_for_an_account():
    """A thousand accounts that fail for one reason are one message: no alert keeps the label."""
    fired = re.findall(r"exp_labels: \{([^}]+)\}", RULE_TESTS)
    assert fired
    assert [labels for labels in fired if "account" in labels] == []


@with_promtool
def test_promtool_likes_the_metrics():
    """Names, units and help texts are as Prometheus' own conventions have them."""
    verdict = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.REGISTRY), capture_output=True, check=False
    )
    assert (0, "") == (verdict.returncode, (verdict.stdout + verdict.stderr).decode())


def test_what_is_silenced_and_by_what_are_alerts():
    """The example for Alertmanager names alerts that exist; both sides carry the labels that must be equal."""
    named = {name for text in re.findall(r'alertname=~?"([^"]+)"', ALERTMANAGER) for name in text.split("|")}
    assert named
    assert named <= ALERT_NAMES
    equal = {label for text in re.findall(r"equal: \[(.+)\]", ALERTMANAGER) for label in text.split(", ")}
    assert equal == {"alertname", "job"}
    labels = re.findall(r"exp_labels: \{([^}]+)\}", RULE_TESTS)
    assert all("job: reconciler" in text for text in labels)


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_understands_the_example():
    """amtool accepts it."""
    verdict = subprocess.run(
        ["amtool", "check-config", "alertmanager.yml"], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@with_promtool
def test_a_backfill_does_not_slow_the_repairs_that_the_dashboard_shows(tmp_path):
    """Ends told more than a day late lie beyond the last finite bucket: a quantile over them would say 86,400 s."""
    (panel,) = (panel for panel in PANELS if panel["title"] == "Time to repair")
    buckets = {"60.0": 9, "120.0": 10, "86400.0": 10, "+Inf": 5000}
    series = [
        {"series": f'reconciler_repair_seconds_bucket{{job="reconciler", le="{le}"}}', "values": f"0+{count}x60"}
        for le, count in buckets.items()
    ]
    asked = [
        {"expr": f"round({target['expr']})".replace("$scrape", "reconciler"), "eval_time": "1h",
         "exp_samples": [{"labels": "{}", "value": value}]}
        for target, value in zip(panel["targets"], (33, 114), strict=True)
    ]  # fmt: skip
    case = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}
    (tmp_path / "panel.json").write_text(json.dumps(case), encoding="utf-8")  # JSON is YAML
    verdict = subprocess.run(
        ["promtool", "test", "rules", "panel.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_the_dashboard_says_what_fires_and_what_happened():
    """Firing alerts on top, starts and changes of the lead as annotations, links to runbook and Twilio's status."""
    first = sorted(PANELS, key=lambda panel: panel["gridPos"]["y"])[:2]
    assert {"alertlist", "table"} == {panel["type"] for panel in first}
    assert {"Leader", "Start", "Alerts"} <= {note["name"] for note in DASHBOARD["annotations"]["list"]}
    assert {RUNBOOK_URL, "https://status.twilio.com"} <= {link["url"] for link in DASHBOARD["links"]}


def test_every_alert_has_a_test_that_fires_and_one_that_is_silent():
    """The names of the cases say so."""
    assert {name for name, silent in TEST_CASES if not silent} == ALERT_NAMES
    assert {name for name, silent in TEST_CASES if silent} == ALERT_NAMES


def test_the_runbook_has_a_section_for_each_alert_and_each_exit_code():
    """It has no other sections."""
    sections = re.findall(r"^## (\S+)$", RUNBOOK, flags=re.MULTILINE)
    assert len(set(sections)) == len(sections)
    assert {section for section in sections if not section.isdigit()} == ALERT_NAMES
    assert [int(section) for section in sections if section.isdigit()] == [int(c) for c in ExitCode if c]
    for text in re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]:
        assert ["**Meaning:**", "**Look:**", "**Do:**"] == re.findall(r"\*\*(?:Meaning|Look|Do):\*\*", text), text[:40]


def test_the_links_of_the_runbook_lead_somewhere():
    """Each leads to one of its own headings."""
    anchors = {h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", RUNBOOK, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors


def test_every_command_of_the_runbook_can_be_parsed():
    """The parser accepts the arguments as the runbook writes them."""
    commands = set(re.findall(r"(?:^    |`)reconcile ([^`|\n]*)", RUNBOOK, flags=re.MULTILINE))
    assert len(commands) > 15
    for command in commands - {"--help", "--version"}:
        get_parser().parse_args(command.split())


def test_every_event_that_is_asked_for_exists():
    """The runbook and the queries for the log name only events of the code."""
    for text in (RUNBOOK, QUERIES):
        asked = set(re.findall(r'\.event == "([^"]+)"', text))
        assert asked
        assert asked <= EVENTS.keys()
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", RUNBOOK)) <= EVENTS.keys()


@pytest.mark.parametrize("command", re.findall(r"jq (?:-\w+ )?'[^']+'", RUNBOOK))
@with_jq
def test_every_jq_of_the_runbook_can_be_run(command):
    """Each runs on the sample. It may print nothing, but jq reports no mistake."""
    done = subprocess.run(
        ["sh", "-c", f"{command} sample.jsonl"], cwd=LOGS, capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)


def test_the_dashboard_can_be_loaded():
    """A schema of Grafana 10, a data source to choose, accounts and jobs to choose, no two panels in one place."""
    assert DASHBOARD["schemaVersion"] >= 38
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"account", "job_name"} <= variables.keys()
    for name in ("scrape", "account", "job_name"):
        metric, label = present(
            re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variables[name]["definition"])
        ).groups()
        assert label in exposed()[metric] | TARGET_LABELS
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[Any] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


# Some of Grafana's ids for units (packages/grafana-data, categories.ts); one that it does not know it shows as written.
UNITS = {"none", "short", "percentunit", "s", "bytes", "cps", "reqps"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel):
    """A sentence, a unit, the chosen data source; variables that exist."""
    assert re.fullmatch(r".{20,}\.", panel["description"])
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__range"}
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables


def test_the_dashboard_shows_every_metric():
    """Every metric has a panel."""
    shown = {name for expression in EXPRESSIONS for name in names_in(expression)}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            assert any(name.startswith(metric._name) for name in shown), metric._name


def test_the_sample_is_a_log_of_ours():
    """Events and fields as documented, in the order of time; no number, no address of a machine, no path."""
    for line in SAMPLE:
        assert line.keys() - ALWAYS <= set(EVENTS[line["event"]])
    times = [line["timestamp"] for line in SAMPLE]
    assert sorted(times) == times
    assert {ACCOUNT} == {line["account"] for line in SAMPLE if "account" in line}
    for line in (LOGS / "sample.jsonl").read_text(encoding="utf-8").splitlines():
        assert mask(line) == line
        assert not re.search(r"127\.0\.0\.1|localhost|/(?:tmp|home|work|root|usr)/", line)


@pytest.mark.parametrize(
    ("query", "shown"), re.findall(r"```sh\n(jq .*?)```\n\n```text\n(.*?)```", QUERIES, flags=re.DOTALL)
)
@with_jq
def test_every_query_prints_what_is_shown(query, shown):
    """Each runs on the sample, with the installed jq."""
    done = subprocess.run(["sh", "-c", query], cwd=LOGS, capture_output=True, text=True, timeout=60, check=False)
    assert (0, shown, "") == (done.returncode, done.stdout, done.stderr)


def test_every_query_shows_something():
    """The test above has something to compare."""
    assert QUERIES.count("```sh\njq ") == len(
        re.findall(r"```sh\njq .*?```\n\n```text\n.+?```", QUERIES, flags=re.DOTALL)
    )


def test_the_format_for_lnav_names_fields_that_exist():
    """An event has each of them, or every line."""
    fields = {field for names in EVENTS.values() for field in names}
    assert LNAV["value"].keys() <= fields | ALWAYS
    shown = {part["field"] for part in LNAV["line-format"] if isinstance(part, dict)} - {"__timestamp__"}
    assert shown | {LNAV[f"{name}-field"] for name in ("timestamp", "level", "body", "opid")} <= ALWAYS


@pytest.mark.skipif(shutil.which("lnav") is None, reason="lnav is not installed")
def test_lnav_reads_the_sample(tmp_path):
    """Every line is one of a log, with its level."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "xterm"}
    subprocess.run(["lnav", "-i", LOGS / "reconciler.lnav.json"], env=home, capture_output=True, check=True)
    asked = ";SELECT log_level, count(*) FROM reconciler_log GROUP BY log_level"
    command = ["lnav", "-n", "-c", asked, "-c", ":write-csv-to -", str(LOGS / "sample.jsonl")]
    said = subprocess.run(command, env=home, capture_output=True, text=True, check=True).stdout
    counted = Counter(line["level"] for line in SAMPLE)
    assert {f"{level},{count}" for level, count in counted.items()} == set(said.splitlines()[1:])
