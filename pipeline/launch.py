"""What the command lines and the launchers of the Beam jobs have in common.

Beam is imported where it is used: every command line reads this module, and `--help`
need not wait for Beam.
"""

import argparse
import contextlib
import logging
import pathlib
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from features.config import ConfigError
from pipeline import progress, quiet
from pipeline.errors import is_user_error, root_cause

SUMMARY_FILE = ".summary.pickle"  # from the workers to the launcher; not published

Result = TypeVar("Result")


def parser(
    job: str, *, description: str | None, epilog: str
) -> argparse.ArgumentParser:
    """Returns the parser of `python -m pipeline.<job>`, without flags."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline.{job}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def option_values(args: argparse.Namespace, beam_args: Sequence[str]) -> dict[str, Any]:
    """Returns what a command line says of a job's options; flags left out are absent.

    Raises:
      ConfigError: For flags that neither the job nor Beam knows.
    """
    check_beam_args(beam_args)
    given = {name: value for name, value in vars(args).items() if value is not None}
    return {**given, "show_progress": True, "beam_args": tuple(beam_args)}


def attempt(job: str, work: Callable[[], Result]) -> Result | None:
    """Returns what `work` gives, or prints why it failed and returns None."""
    logging.getLogger().setLevel(logging.WARNING)
    # What a worker logs on failure comes again, shorter, as the error below.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        return work()
    except Exception as error:  # runners raise anything
        if not is_user_error(error):
            traceback.print_exc()
        sys.stderr.write(f"{job} failed: {root_cause(error)}\n")
        return None


@contextlib.contextmanager
def beam_pipeline(beam_args: Sequence[str], *, show_progress: bool) -> Iterator[Any]:
    """Gives the `beam.Pipeline` of these flags; it has run when the block is left."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(list(beam_args))
    with (
        quiet.workers(beam_args if show_progress else ()),
        progress.ProgressBars(show_progress),
        beam.Pipeline(_local_runner(options), options) as pipeline,
    ):
        yield pipeline


def write_summary(_: None, folder: pathlib.Path, **parts: Any) -> str:
    """Writes what a job's launcher is to know; the last step of a pipeline."""
    from pipeline.transforms.write import replacing

    with replacing(folder / SUMMARY_FILE) as path:
        path.write_bytes(pickle.dumps(parts))
    return SUMMARY_FILE


def take_summary(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the parts that `write_summary` wrote, and removes the file."""
    path = folder / SUMMARY_FILE
    summary = pickle.loads(path.read_bytes())
    path.unlink()
    return summary


def check_beam_args(beam_args: Sequence[str]) -> None:
    """Refuses flags that neither this job nor Beam knows: a slip must not vanish."""
    if not beam_args:
        return
    from apache_beam.options.pipeline_options import PipelineOptions

    beam_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for cls in PipelineOptions.__subclasses__():
        cls._add_argparse_args(_Unique(beam_parser))
    unknown = [
        a for a in beam_parser.parse_known_args(beam_args)[1] if a.startswith("--")
    ]
    if unknown:
        raise ConfigError(
            f"flags must be of this job or of Beam; got {' '.join(unknown)}. "
            "See --help."
        )


class _Unique:
    """Takes each of Beam's flags once: two of its option classes may share one."""

    def __init__(self, wrapped: argparse.ArgumentParser) -> None:
        self._wrapped = wrapped

    def add_argument(self, *names: str, **settings: object) -> object:
        known = self._wrapped._option_string_actions
        new = [n for n in names if n not in known]
        return self._wrapped.add_argument(*new, **settings) if new else None  # type: ignore[arg-type]

    def add_value_provider_argument(self, *names: str, **settings: object) -> object:
        return self.add_argument(*names, **settings)

    def add_mutually_exclusive_group(self, **_: object) -> "_Unique":
        return self


def _local_runner(options: Any) -> Any:
    """Returns the in-process runner, or None where the flags name another.

    Beam's own DirectRunner first tries to fetch and start a server written in Go;
    this is the runner that it falls back to.
    """
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    named = options.view_as(StandardOptions).runner
    return FnApiRunner() if named in (None, "DirectRunner") else None
