"""Errors of the data jobs, and how to dig them out of what a runner raises."""

import re

_WHILE = re.compile(r"\s*\[while running '[^']*'\]")
# Last line of a traceback: `package.module.SomeError: message`.
_RAISED = re.compile(
    r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): (?P<text>.*)",
    re.MULTILINE | re.DOTALL,
)
_NAMED = re.compile(r"(?:\w+\.)+(?P<kind>\w+Error): (?P<text>.*)", re.DOTALL)

_FULL_DISK = ("No space left on device", "File too large", "Disk quota exceeded")


class JobError(ValueError):
    """A job that cannot go on; the text names owner, rule, value and cure."""


def root_cause(error: BaseException) -> str:
    """Returns the text of the first error, without the runner's wrapping.

    In memory a runner raises the worker's own exception with the step appended;
    from worker processes it raises one RuntimeError whose text holds the
    traceback, maybe several times.

    >>> root_cause(ValueError("bad row [while running 'Read']"))
    'bad row'
    """
    text = str(error)
    if "Traceback (most recent call last)" in text:
        blocks = text.split("Traceback (most recent call last):")
        # Python prints the chain oldest first; the runner then wraps the newest.
        found = [m for block in blocks if (m := _last_raised(block)) is not None]
        own = [m for m in found if not m.startswith("RuntimeError")] or found
        text = own[-1] if own else text
        kind, _, message = text.partition(": ")
        text = message if _is_user_error(kind) else text
    elif (named := _NAMED.match(text)) and _is_user_error(named["kind"]):
        # The runner could not make this error anew, and kept its name and text.
        text = named["text"]
    elif not _is_user_error(type(error).__name__):
        text = f"{type(error).__name__}: {text}"
    text = _WHILE.sub("", text).strip()
    if any(sign in text for sign in _FULL_DISK):
        return (
            f"data_dir must be on a disk with room left; got: {text}. Nothing was "
            "published and what was written is removed: free space, then run again."
        )
    return text


def is_user_error(error: BaseException) -> bool:
    """Returns whether the text alone tells the user what to mend."""
    text = f"{type(error).__name__}: {error}"
    if any(sign in text for sign in _FULL_DISK):
        return True
    kinds = set(re.findall(r"^(?:[\w.]*\.)?(\w+): ", text, re.MULTILINE))
    return any(map(_is_user_error, kinds))


def _last_raised(block: str) -> str | None:
    matches = list(_RAISED.finditer(block))
    if not matches:
        return None
    # The message ends where the runner's own text goes on.
    text = matches[0]["text"].split("\n\n")[0].split("\n  File ")[0]
    return f"{matches[0]['kind'].rpartition('.')[2]}: {text}"


def _is_user_error(kind: str) -> bool:
    return kind in {
        "JobError",
        "ConfigError",
        "DatasetError",
        "ValueError",
        "LookupError",
        "ReadError",
        "RecordError",
    }
