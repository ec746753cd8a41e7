"""A folder that appears whole or not at all.

Everything is written into a temporary sibling, `<target>.tmp-<host>-<pid>-<id>`, and
renamed to `<target>` at the end, so the target is at every moment absent, the old
one, or the new one.  A killed job leaves only the sibling; the next job with the
same target removes it once its owner is gone.
"""

import ctypes
import errno
import os
import pathlib
import shutil
import socket
import types
import uuid

from features.dataset import SUCCESS_FILE
from pipeline.errors import JobError

_AT_FDCWD = -100  # <fcntl.h>: relative to the working folder
_RENAME_EXCHANGE = 2  # <linux/fs.h>: swap two paths in one step


class Staging:
    """Context manager around a temporary sibling of `target`.

    Leaving it without `publish()` (an error, Ctrl-C) removes the sibling.

    Args:
      target: Folder to write.
      overwrite: Whether a finished or foreign folder at `target` may be replaced.
      option: What the caller sets the target by, for the message.

    Raises:
      JobError: On entry, when `target` is taken and `overwrite` is False.
    """

    def __init__(
        self,
        target: str | pathlib.Path,
        *,
        overwrite: bool = False,
        option: str = "data_dir",
    ) -> None:
        self.target = pathlib.Path(target).absolute()
        self.overwrite = overwrite
        self.option = option
        name = f"{self.target.name}.tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.path = self.target.with_name(name)

    def __enter__(self) -> "Staging":
        self._check_free()
        remove_stale(self.target)
        self.path.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def publish(self) -> None:
        """Writes `_SUCCESS`, then puts the folder at `target` in one rename."""
        with (self.path / SUCCESS_FILE).open("wb") as file:
            os.fsync(file.fileno())
        try:
            # Takes an absent or an empty target; never a folder with content.
            os.rename(self.path, self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            self._check_free()
            exchange(self.path, self.target)
            # Now the temporary name holds the old content.
            shutil.rmtree(self.path, ignore_errors=True)

    def _check_free(self) -> None:
        if self.overwrite or not self.target.exists():
            return
        if self.target.is_dir() and not any(self.target.iterdir()):
            return
        raise JobError(
            f"{self.option} must name what does not exist yet; got {self.target}. "
            "Choose another, or pass --overwrite: the old one stays until the new one "
            "is complete."
        )


def exchange(first: pathlib.Path, second: pathlib.Path) -> None:
    """Swaps two paths of one file system; atomically where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        done = rename(
            _AT_FDCWD,
            os.fsencode(first),
            _AT_FDCWD,
            os.fsencode(second),
            _RENAME_EXCHANGE,
        )
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(second))
    # Some network file systems cannot swap: `remove_stale` puts the old one back
    # when a kill falls between these renames.
    aside = _aside(second)
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def remove_stale(target: pathlib.Path) -> list[pathlib.Path]:
    """Removes what killed jobs of this host left beside `target`.

    Returns:
      The folders that were removed.
    """
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, target)
    removed: list[pathlib.Path] = []
    prefix = f"{target.name}.tmp-{_host()}-"
    if not target.parent.is_dir():
        return removed
    for path in sorted(target.parent.iterdir()):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if path.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _aside(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f"{target.name}.replaced")


def _host() -> str:
    # A dash would end the field; a process id means nothing on another host.
    return socket.gethostname().replace("-", "_")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
