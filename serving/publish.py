"""Versioned model folders: `<base>/<integer version>/`, written whole or not at all."""

import contextlib
import os
import pathlib
import platform
import re
import shutil
import time
from collections.abc import Iterator

# As TF Serving would write it; "007" or "1.bak" is no version.
_INTEGER = re.compile(r"0|[1-9][0-9]*")


class PublishError(ValueError):
    """A version that cannot be published."""


def versions(base_dir: str | pathlib.Path) -> list[int]:
    """Returns the published versions, ascending: folders named by a plain integer."""
    base_dir = pathlib.Path(base_dir)
    if not base_dir.is_dir():
        return []
    found = [p for p in base_dir.iterdir() if _INTEGER.fullmatch(p.name) and p.is_dir()]
    return sorted(int(p.name) for p in found)


def next_version(base_dir: str | pathlib.Path, wanted: int | None = None) -> int:
    """Returns the version to write: `wanted`, or unix seconds, above all others.

    Raises:
      PublishError: When `wanted` is below 1 or not above the newest version.
    """
    newest = max(versions(base_dir), default=0)
    if wanted is None:
        return max(int(time.time()), newest + 1)
    if wanted < 1:
        raise PublishError(f"export.version must be at least 1; got {wanted}.")
    if wanted <= newest:
        raise PublishError(
            f"export.version must be above the newest published one ({newest}); got "
            f"{wanted} ({base_dir}). Leave it out to take the time."
        )
    return wanted


@contextlib.contextmanager
def atomic_version(
    base_dir: str | pathlib.Path, version: int
) -> Iterator[pathlib.Path]:
    """Gives a hidden folder to write to, renamed to `<base>/<version>` on success.

    TF Serving reads folders with integer names only, so it never sees half a model.
    On any failure the folder is removed and the published versions stay as they were.
    """
    base_dir = pathlib.Path(base_dir)
    base_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(base_dir)
    host = platform.node().replace("-", "_")
    temporary = base_dir / f".writing-{version}-{host}-{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        _rename(temporary, base_dir / str(version))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _rename(temporary: pathlib.Path, final: pathlib.Path) -> None:
    try:
        os.rename(temporary, final)
    except OSError as error:
        if not final.exists():
            raise
        raise PublishError(
            f"export.version must be new; {final} was published by another export "
            "meanwhile. Export again."
        ) from error


def keep_newest(base_dir: str | pathlib.Path, count: int) -> list[int]:
    """Removes all but the `count` newest versions; returns those removed.

    Raises:
      PublishError: When `count` is below 1.
    """
    if count < 1:
        raise PublishError(f"export.keep must be at least 1; got {count}.")
    base_dir = pathlib.Path(base_dir)
    old = versions(base_dir)[:-count]
    for version in old:
        # Renamed first: a server that looks meanwhile never sees half a version.
        hidden = base_dir / f".removing-{version}"
        os.rename(base_dir / str(version), hidden)
        shutil.rmtree(hidden)
    return old


def _remove_abandoned(base_dir: pathlib.Path) -> None:
    """Removes what a killed export left behind: its process, on this host, is gone."""
    host = platform.node().replace("-", "_")
    for path in base_dir.glob(f".writing-*-{host}-*"):
        pid = path.name.rsplit("-", 1)[1]
        if _INTEGER.fullmatch(pid) and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    for path in base_dir.glob(".removing-*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
