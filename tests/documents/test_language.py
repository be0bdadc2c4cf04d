"""The rules of CONTRIBUTING.md for English that a program can check: short sentences, and a subject in each clause."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 25  # words between two stops
_STOPS = re.compile(r"(?<=[.!?:;])\s+|\s+→\s+")

# A clause such as "what is known" or "who leads" hides its subject. A question may begin so.
_VERBS = (
    r"is|are|was|were|has|have|had|does|did|can|could|will|would|may|might|must|comes|came|goes|went|gets|got|makes|made|"
    r"says|said|tells|told|reads|writes|wrote|runs|leads|needs|wants|asks|holds|keeps|stays|belongs|happens|happened|"
    r"changes|changed|differs|follows|repeats|limits|fails|lives|works|waits|listens|uses|owns|counts|counted"
)
_BEFORE = r"^|[,;:(—] |\b(?:of|to|for|by|from|with|and|or|in|at|on|not|than|but|except) "
_HIDDEN = re.compile(
    rf"(?:{_BEFORE})(?:[Ww]hat|[Ww]ho)(?: \w+ly)? (?:{_VERBS})\b|(?i:\bwhoever\b)|\b[Ww]hatever (?:{_VERBS})\b"
)

SHELLS = {"#": ("*.yml", "*.yaml", "*.service", "*.conf", "*.example", "Containerfile"), "--": ("*.sql",)}


class Sentence(NamedTuple):
    """A sentence, or the part of one that a colon or semicolon ends."""

    path: str
    line: int
    text: str


def divide(path: Path, line: int, text: str) -> Iterator[Sentence]:
    """Yield the sentences of a paragraph. Code and targets of links are one word each."""
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\*|^[-*] ", "", text)
    for part in _STOPS.split(text):
        yield Sentence(path.relative_to(ROOT).as_posix(), line, part.strip())


def of_markdown(path: Path) -> Iterator[Sentence]:
    """The paragraphs, items, headings and cells of a document, without its blocks of code."""
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.DOTALL)
    paragraph: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        begins = re.match(r"\s*(?:[-*]|\d+\.) |#+ |>|\|", line)
        if (begins or not line.strip()) and paragraph:
            yield from divide(path, number - len(paragraph), " ".join(paragraph))
            paragraph = []
        if line.startswith("|"):
            for cell in line.strip("|").split(" | "):
                yield from divide(path, number, cell.strip())
        elif line.strip() and (paragraph or not line.startswith("    ")):
            paragraph.append(line.removeprefix(begins[0]).strip() if begins else line.strip())


def of_comments(path: Path, mark: str) -> Iterator[Sentence]:
    """The comments of a file; adjoining lines are one paragraph, and so is each item of a list."""
    paragraph: list[str] = []
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), ""], 1):
        found = re.match(rf"\s*{mark}+ ?(.*)", line)
        text = found[1] if found else ""
        if (not text.strip() or re.match(r"- |  +|name: ", text)) and paragraph:
            yield from divide(path, number - len(paragraph), " ".join(paragraph))
            paragraph = []
        if text.strip() and not text.startswith(("  ", "name: ")):
            paragraph.append(text.strip())


def of_python(path: Path) -> Iterator[Sentence]:
    """The docstrings and comments of a module. A docstring's tables, drawings and examples are no prose."""
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n|\n\s*- ", ast.get_docstring(node) or ""):
                if not re.search(r"^ *\||[├└]|^ {4,}\S", paragraph, flags=re.MULTILINE):
                    yield from divide(path, getattr(node, "lineno", 1), " ".join(paragraph.split()))
    comment: list[str] = []
    last = (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#!|# (?:noqa|fmt:|type:|mypy:)", token.string):
            if token.start != (last[0] + 1, last[1]):
                yield from divide(path, last[0], " ".join(comment))
                comment = []
            comment.append(token.string.lstrip("# ").partition("  # noqa")[0])
            last = token.start
    yield from divide(path, last[0], " ".join(comment))


def of_messages(path: Path) -> Iterator[Sentence]:
    """The strings of a module: help, errors and output. Docstrings are among them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from divide(path, node.lineno, " ".join(node.value.split()))


def prose() -> Iterator[Sentence]:
    """Every sentence of the documents, the code, the tests and the files to deploy."""
    for path in sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("tests/**/*.md")):
        yield from of_markdown(path)
    for folder in ("reconciler", "tests"):
        for path in sorted(ROOT.glob(f"{folder}/**/*.py")):
            yield from of_python(path)
    for path in sorted(ROOT.glob("reconciler/database/queries/*.sql")):
        yield from of_comments(path, "--")
    for mark, patterns in SHELLS.items():
        for pattern in patterns:
            for path in sorted(ROOT.glob(f"deploy/**/{pattern}")):
                yield from of_comments(path, mark)


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    found = list(prose())
    assert len(found) > 10_000
    return found


def test_no_sentence_is_longer_than_a_reader_holds(sentences):
    """A list stands where there are cases; a condition has a sentence of its own."""
    long = [each for each in sentences if len(re.findall(r"\S*\w\S*", each.text)) > LONGEST]
    assert long == []


def test_each_clause_has_a_subject(sentences):
    """The rule for "what is known" or "who leads": name the rows, the daemon, the calls."""
    messages = [each for path in sorted(ROOT.glob("reconciler/**/*.py")) for each in of_messages(path)]
    hidden = [each for each in [*sentences, *messages] if _HIDDEN.search(each.text) and not each.text.endswith("?")]
    assert hidden == []


@pytest.mark.parametrize(
    "text",
    [
        "It asks Twilio for what is missing.",
        "Who leads learns it by its first run.",
        "A frozen row never changes, whoever writes.",
        "The plan, and what was read of it, goes.",
    ],
)
def test_a_hidden_subject_is_found(text):
    assert _HIDDEN.search(text)


@pytest.mark.parametrize(
    "text", ["It says what to do.", "Twilio lists what a filter asks for.", "The one who leads reads."]
)
def test_other_clauses_are_not(text):
    assert not _HIDDEN.search(text)
