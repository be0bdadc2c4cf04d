"""The wheel holds what an installation needs beside code: migrations, queries, and the files of deploy/."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow  # pip fetches the build backend


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as pip builds it from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--quiet", "--wheel-dir", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_is_packed(wheel):
    """Each migration, query and file of deploy/ is in the wheel, byte for byte, and so is the runbook."""
    folders = {"sql": "reconciler/sql", "deploy": "reconciler/deploy"}
    queries = "reconciler/database/queries"
    files = {
        f"{packed}/{path.relative_to(ROOT / folder)}": path
        for folder, packed in {**folders, queries: queries}.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    files["reconciler/deploy/runbook.md"] = ROOT / "docs" / "runbook.md"
    assert {"reconciler/sql/004_alter_messages.sql", f"{queries}/merge.sql"} <= files.keys()
    assert "reconciler/deploy/reconciler.service" in files
    with zipfile.ZipFile(wheel) as packed:
        assert {name: packed.read(name) for name in files} == {name: path.read_bytes() for name, path in files.items()}
        assert "reconciler/py.typed" in packed.namelist()
        assert not [name for name in packed.namelist() if name.startswith("tests/")]


def test_it_works_out_of_the_wheel(wheel, command, tmp_path, empty_database_url):
    """The files in the wheel make the schema; nothing of the checkout is read."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    script = (
        "import sys, reconciler; from reconciler.cli.main import main\n"
        f"assert reconciler.__file__.startswith({str(tmp_path)!r}), reconciler.__file__\n"
        "sys.exit(main())"
    )
    from_wheel = {"PYTHONPATH": str(tmp_path / "installed"), "DATABASE_URL": empty_database_url}
    argv = (sys.executable, "-c", script)
    assert command.run("migrate", argv=argv, **from_wheel).code == 0
    verified = command.run("verify", "--explain", argv=argv, **from_wheel)
    assert (verified.code, verified.out) == (0, "The schema is as this version needs it.\n")
