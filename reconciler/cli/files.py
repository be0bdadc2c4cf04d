"""`reconcile files DIR`: writes the files that run and monitor the service, as this version ships them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from reconciler.errors import ExitCode, UsageError
from reconciler.wording import counted


def write_files(args: argparse.Namespace) -> int:
    """Write all files and print their names; an existing file with other content is never overwritten."""
    folder = Path(args.folder)
    shipped = {name: source.read_bytes() for name, source in _shipped()}
    changed = [name for name, content in shipped.items() if _differs(folder / name, content)]
    if changed:
        raise UsageError(
            f"{folder} holds {counted(len(changed), 'file')} that would change: {', '.join(map(str, changed))}",
            hint="name an empty folder, and compare: `diff -r`",
        )
    try:
        for name, content in shipped.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            print(folder / name)
    except OSError as exc:
        raise UsageError(f"{folder} cannot be written: {exc.strerror}") from None
    return int(ExitCode.DONE)


def _differs(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() != content
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from None


def _shipped() -> Iterator[tuple[PurePosixPath, Traversable]]:
    """Yield each file with its name in the folder, from the wheel or from the checkout of an editable install."""
    packed = files("reconciler").joinpath("deploy")
    if packed.is_dir():
        yield from _below(packed, PurePosixPath())
        return
    checkout = Path(__file__).parents[2]
    yield from _below(checkout / "deploy", PurePosixPath())
    yield PurePosixPath("runbook.md"), checkout / "docs" / "runbook.md"


def _below(folder: Traversable, name: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for found in sorted(folder.iterdir(), key=lambda item: item.name):
        if found.is_dir():
            yield from _below(found, name / found.name)
        else:
            yield name / found.name, found
