"""Versioned model folders: `<base>/<integer version>/`, written whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator


class PublishError(ValueError):
    """A version that cannot be published."""


def versions(base_dir: str | pathlib.Path) -> list[int]:
    """Returns the published versions, ascending."""
    base_dir = pathlib.Path(base_dir)
    if not base_dir.is_dir():
        return []
    return sorted(int(p.name) for p in base_dir.iterdir() if p.name.isdigit())


def next_version(base_dir: str | pathlib.Path, wanted: int | None = None) -> int:
    """Returns the version to write: `wanted`, or unix seconds, above all others.

    Raises:
      PublishError: When `wanted` is not above the newest version.
    """
    newest = max(versions(base_dir), default=0)
    if wanted is None:
        return max(int(time.time()), newest + 1)
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
    temporary = base_dir / f".writing-{version}-{os.getpid()}"
    _remove_abandoned(base_dir)
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, base_dir / str(version))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def keep_newest(base_dir: str | pathlib.Path, count: int) -> list[int]:
    """Removes all but the `count` newest versions; returns those removed."""
    old = versions(base_dir)[:-count]
    for version in old:
        shutil.rmtree(pathlib.Path(base_dir) / str(version))
    return old


def _remove_abandoned(base_dir: pathlib.Path) -> None:
    """Removes what a killed export left behind: its process is gone."""
    for path in base_dir.glob(".writing-*-*"):
        pid = int(path.name.rsplit("-", 1)[1])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            continue
