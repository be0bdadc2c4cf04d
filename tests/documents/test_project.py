"""The project's own files agree with each other: tasks, CI, metadata, licence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from reconciler.database import embedded, engine_schema
from tests.harness.present import present

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CI = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
CI_RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TASKS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.MULTILINE))

# .ci/run runs the lines of README that are indented by four spaces and begin with these words.
TEST_COMMAND = present(
    re.search(r"(?m)^    (python3 -m venv \S+ && (?P<install>.+) && (?P<tests>\S+pytest -n 5))$", README)
)


def tracked(*patterns: str) -> list[Path]:
    """The files of the project that match; without a repository, all that lie there."""
    return [
        path
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file() and not {".venv", "build", "dist"} & set(path.relative_to(ROOT).parts)
    ]


def test_ci_runs_the_test_command_of_readme():
    """.ci/run finds it with its regular expression, and make has the same two commands."""
    pattern = present(re.search(r"sed -n '(s/.+/p)' README\.md", CI_RUN))[1]
    found = subprocess.run(["sed", "-n", pattern, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == TEST_COMMAND[1] + "\n"
    said = {
        task: subprocess.run(
            ["make", "-n", "--no-print-directory", task], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for task in ("setup", "test")
    }
    assert said == {"setup": f"python3 -m venv .venv && {TEST_COMMAND['install']}", "test": TEST_COMMAND["tests"]}


def test_plain_make_lists_every_task():
    """Each line says what the task does."""
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) +\S", said, flags=re.MULTILINE)) == TASKS
    phony = " ".join(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)).split()
    assert set(phony) == TASKS


@pytest.mark.parametrize("text", [CI_RUN, CI, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")])
def test_every_task_that_is_asked_for_exists(text):
    """CI and CONTRIBUTING.md ask for tasks."""
    asked = {
        task
        for line in re.findall(r"(?:^\s*(?:- run: )?|`)make ((?:[a-z-]+ ?)+)", text, flags=re.MULTILINE)
        for task in line.split()
    }
    matrix = re.search(r"task: \[(.+)\]", text)
    asked |= set(matrix[1].split(", ")) if matrix else set()
    assert asked
    assert asked <= TASKS


def test_every_python_that_is_named_is_tested():
    """Classifiers, the least version, and CI's matrix name the same versions."""
    named = [re.search(r"Python :: (3\.\d+)$", text) for text in PROJECT["classifiers"]]
    versions = [match[1] for match in named if match]
    assert versions == re.findall(r'"([\d.]+)"', present(re.search(r"python: \[(.+)\]", CI))[1])
    assert f">={versions[0]}" == PROJECT["requires-python"]


def test_every_postgresql_that_is_named_is_tested():
    """README's range, and CI's matrix."""
    first, last = present(re.search(r"PostgreSQL (\d+) to (\d+)", README)).groups()
    tested = re.findall(r'"(\d+)"', present(re.search(r"postgresql: \[(.+)\]", CI))[1])
    assert tested == [str(version) for version in range(int(first), int(last) + 1)]


def test_the_licence_is_there_and_named():
    """The metadata and README name it."""
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "MIT"
    assert licence.startswith("MIT License\n")
    assert PROJECT["authors"][0]["name"] in licence
    assert "MIT" in README
    assert PROJECT["license-files"] == ["LICENSE"]


def test_nothing_tells_to_install_a_strangers_package():
    """`reconciler` on the package index is somebody else's: so no hint installs that."""
    assert PROJECT["name"] != "reconciler"
    files = tracked("*.md", "*.toml", "docs/**/*", "reconciler/**/*.py", "deploy/**/*", ".github/**/*")
    assert len(files) > 100
    stranger = re.compile(
        r"""(?:pipx?|uv(?: pip| tool)?)\s+install\s[^\n]*?(?<![\w/.-])['"]?reconciler(?=[\s'"\[`]|$)"""
    )
    assert stranger.search("pip install 'reconciler[embedded]'")
    assert stranger.search("uv pip install reconciler")
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if stranger.search(text)] == []


def test_the_hint_names_what_the_extra_installs():
    """The embedded server and the engine, in the versions that pyproject.toml allows."""
    for extra, hint in (("embedded", embedded.INSTALL), ("fleet", engine_schema.INSTALL)):
        (requirement,) = PROJECT["optional-dependencies"][extra]
        assert hint == f"pip install '{requirement}'"


def test_readme_is_the_way_and_not_the_tables():
    """It is short enough to read to its end. docs/reference.md has the tables."""
    assert len(README.splitlines()) <= 140


def test_each_program_of_the_tests_explains_itself(tmp_path):
    """--help prints the program's first lines, and runs nothing: it once made a picture of that name."""
    readme = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^\| `python (-m tests\.[\w.]+|tests/\w+\.py)", readme)
    assert len(commands) > 10
    started = {
        command: subprocess.Popen(
            [sys.executable, *command.replace("tests/", f"{ROOT}/tests/").split(), "--help"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    }
    said = {command: process.communicate(timeout=120)[0] for command, process in started.items()}
    assert {command: process.returncode for command, process in started.items()} == dict.fromkeys(commands, 0)
    assert [command for command, text in said.items() if not text.startswith("usage: ")] == []
    assert list(tmp_path.iterdir()) == []
