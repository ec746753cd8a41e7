"""What the command lines of this package share."""

import argparse
import pathlib
import sys
from collections.abc import Callable

from features.spec import SPLITS


def parser(module: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m tfrecords_tools.<module>` with its data_dir."""
    result = argparse.ArgumentParser(
        prog=f"python -m tfrecords_tools.{module}",
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "data_dir", type=pathlib.Path, help="a finished data set (has dataset.json)"
    )
    return result


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds `--split`, all splits by default."""
    parser.add_argument("--split", choices=SPLITS, help="default: all of them")


def run(module: str, action: Callable[[], int]) -> int:
    """Returns the exit status of `action`: 1 with one paragraph for a user's error."""
    try:
        return action()
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe (head, less) has seen enough
        return 0
    except (ValueError, LookupError, OSError) as error:
        text = error.args[0] if isinstance(error, LookupError) else error
        sys.stderr.write(f"tfrecords_tools.{module}: {text}\n")
        return 1
