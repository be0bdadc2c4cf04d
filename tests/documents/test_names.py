"""Names that documents and comments speak of exist: events, metrics, files, modules and their members."""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

import reconciler
from reconciler import metrics
from reconciler.logs import EVENTS

ROOT = Path(__file__).parents[2]
# CHANGELOG.md also speaks of names that are gone.
DOCUMENTS = [path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"]
DOCUMENTS += sorted(ROOT.glob("docs/**/*.md"))
DEPLOYED = sorted(
    path
    for path in ROOT.glob("deploy/**/*")
    if path.is_file() and path.suffix in {".md", ".yml", ".yaml", ".sql", ".service"}
)
CODE = sorted(path for folder in ("reconciler", "sql", "tests") for path in ROOT.glob(f"{folder}/**/*.*"))

# Types of events in call_events (design, rule 9), which look like events of the log.
CALL_EVENTS = {
    "call.created", "call.status_changed", "call.enriched", "call.corrected", "call.frozen", "recording.ready",
    "recording.deleted",
}  # fmt: skip
# A table and one of its columns look like a module and something in it.
TABLES = {
    "messages",
    "call_events",
    "twilio_webhook_inbox",
    "sync_state",
    "account_days",
    "webhook_alerts",
    "endpoint_faults",
}
# Objects of the database whose names begin like a metric's.
OF_THE_DATABASE = {"reconciler_migrations", "reconciler_engine"}
SUFFIXES = {
    "conf", "css", "csv", "dump", "example", "gz", "html", "json", "jsonl", "log", "md", "png", "py", "service", "sh",
    "sql", "svg", "toml", "txt", "whl", "yaml", "yml",
}  # fmt: skip


def modules() -> Iterator[ModuleType]:
    """Every module of the package."""
    for found in pkgutil.walk_packages(reconciler.__path__, "reconciler."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


MODULES: dict[str, list[ModuleType]] = {}
for _module in modules():
    MODULES.setdefault(_module.__name__.rpartition(".")[2], []).append(_module)


@cache
def attributes() -> frozenset[str]:
    """Every attribute that an object of ours may have: each name that is set, and the fields of classes."""
    found = set()
    for path in CODE:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)
    return frozenset(found)


def exists(module: str, name: str) -> bool:
    """Whether a module of that name has it, or a class in it has; or an object that is called like the module."""
    return name in attributes() or any(
        hasattr(found, name) or any(name in vars(thing) for thing in vars(found).values() if isinstance(thing, type))
        for found in MODULES[module]
    )


def served() -> set[str]:
    """The names of all metrics, as they are scraped, and of all recording rules."""
    names = set(re.findall(r"record: (\S+)", (ROOT / "deploy/prometheus/reconciler.rules.yml").read_text("utf-8")))
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            for family in metric.describe():
                suffixes = {"counter": ("_total",), "info": ("_info",), "histogram": ("", "_bucket", "_sum", "_count")}
                names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    assert any(isinstance(metric, Histogram) for metric in vars(metrics).values())
    return names


def comments(path: Path) -> Iterator[str]:
    """Comments and docstrings of a file of code; of SQL the comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        yield from re.findall(r"--(.*)", text)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def dotted(text: str) -> list[tuple[str, str]]:
    """Names like module.function, outside of paths, addresses and longer names."""
    found = re.findall(r"(?<![\w./@:'\"$-])([a-z_]+)\.([A-Za-z_]\w*)(?![\w/]|\.\w|\()", text)
    return [(module, name) for module, name in found if name not in SUFFIXES and module not in TABLES]


@pytest.mark.parametrize("path", [*DOCUMENTS, *DEPLOYED], ids=lambda path: path.name)
def test_every_metric_that_is_named_exists(path):
    """Prometheus scrapes it, or a rule records it."""
    text = re.sub(r"- name: \w+", "", path.read_text(encoding="utf-8"))  # groups of rules
    named = set(re.findall(r"(?<![\w/.@-])reconciler(?:_\w+|:\w[\w:]*)", text))
    assert {name for name in named if not name.endswith("_")} - OF_THE_DATABASE <= served() | {"reconciler_log"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_event_and_module_that_a_document_names_exists(path):
    """A name between backquotes with a dot in it is an event, or something in a module of ours."""
    text = path.read_text(encoding="utf-8")
    wrong = []
    for quoted in re.findall(r"`([a-z_]+\.[A-Za-z_]+)`", text):
        module, name = quoted.split(".")
        known = quoted in EVENTS or quoted in CALL_EVENTS or name in SUFFIXES
        if (
            not known
            and not (module in MODULES and exists(module, name))
            and (module, name) != ("sync_state", "cursor")
        ):
            wrong.append(quoted)
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(path):
    """A path counts from the project's folder, or from the document's."""
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:reconciler|sql|deploy|docs|tests|\.github)/[\w./@-]+)`", text)
    named += re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    wrong = [name for name in named if not any((folder / name).exists() for folder in (ROOT, path.parent))]
    assert wrong == []


@pytest.mark.parametrize("folder", ["reconciler", "sql", "tests"])
def test_everything_in_a_module_that_a_comment_names_exists(folder):
    """Comments and docstrings count. They name a module by its last name."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in CODE
        if path.relative_to(ROOT).parts[0] == folder and path.suffix in {".py", ".sql"}
        for comment in comments(path)
        for module, name in dotted(comment)
        if module in MODULES
        and (module, name) != ("http", "server")  # the standard library's
        and not exists(module, name)
        and f"{module}.{name}" not in EVENTS.keys() | CALL_EVENTS
    ]
    assert wrong == []


def test_a_name_that_is_gone_is_found():
    """The tests above can fail."""
    assert dotted("as store.Session says, see https://a.store.Session and merge.sql") == [("store", "Session")]
    assert not exists("store", "Session")
    assert exists("store", "Store")
