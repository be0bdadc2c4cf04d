"""What the tests of the command line share."""

from __future__ import annotations

import pytest

from reconciler.cli.main import main


@pytest.fixture
def printed(capsys):
    """What a command prints."""

    def run(*words: str) -> str:
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run
