"""The wheel holds what an installation needs beside code: migrations and queries."""

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


def test_every_statement_is_packed(wheel):
    """Each file of sql/ and queries/ is in the wheel, word for word."""
    files = {f"reconciler/sql/{path.name}": path for path in (ROOT / "sql").glob("*.sql")}
    files |= {f"reconciler/queries/{path.name}": path for path in (ROOT / "reconciler/queries").glob("*.sql")}
    assert len(files) >= 24 + 3
    with zipfile.ZipFile(wheel) as packed:
        assert {name: packed.read(name) for name in files} == {name: path.read_bytes() for name, path in files.items()}
        assert "reconciler/py.typed" in packed.namelist()
        assert not [name for name in packed.namelist() if name.startswith("tests/")]


def test_it_works_out_of_the_wheel(wheel, command, tmp_path, empty_database_url):
    """Nothing of the checkout is read: the schema is made by what was packed."""
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
