"""JSON Schema of a dataset spec, for editors that complete and check YAML files."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from features.spec import DatasetSpec

_EPILOG = """\
examples:
  python -m features.json_schema --out dataset_spec.schema.json
  python -m features.json_schema > dataset_spec.schema.json

then, as the first line of a spec:
  # yaml-language-server: $schema=dataset_spec.schema.json
"""


def dataset_spec_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a dataset spec.

    It knows keys, types, ranges and choices; rules between keys (that `of` names a
    feature) are checked only when a spec is loaded.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **DatasetSpec.model_json_schema(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the schema to a file, or to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m features.json_schema",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, help="file; default: print it")
    args = parser.parse_args(argv)
    text = json.dumps(dataset_spec_schema(), indent=2) + "\n"
    if args.out is None:
        sys.stdout.write(text)
        return 0
    try:
        args.out.write_text(text, "utf-8")
    except OSError as error:
        print(
            f"--out must be a file that can be written; got {str(args.out)!r} "
            f"({error.strerror}). Make its folder, or choose another.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
