"""Export: from a trained workdir to a published SavedModel version.

Order of work: restore the best checkpoint, build the serving module, save it to a
hidden sibling folder, assert that it holds the method's allow-listed variables and
nothing else, check parity on real rows in a fresh process, write the warm-up file and
a few rows to try, ask the per-domain gate, rename.  A failure anywhere leaves the
published versions alone.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections import Counter
from typing import Any

import tensorflow as tf

from features.dataset import Dataset
from models.method import Method
from models.training.restore import load_method
from serving import gate, parity, publish, samples, warmup
from serving.signatures import ServingModule

METADATA_FILE = "isthmus.json"
ROWS_FILE = "rows.json"  # requests to try: what `serving.client --rows` takes
EXAMPLE_ROWS = 3
GATE_STATUS = 3  # exit status when the gate refuses: no fault of the export
EPILOG = """examples:
  python -m serving.export --workdir runs/m3oe --export_dir export/ranker
  python -m serving.export --workdir runs/m3oe --export_dir export/ranker \\
      --gate off --version 20260101 --keep 3

Exit status: 0 published, 3 refused by the gate, 1 any other failure.
"""


class ExportError(RuntimeError):
    """A model that must not be exported as it is."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
      path: The published version folder.
      version: Its version.
      parity: The parity check's result.
      gate: The gate's decision.
      num_parameters: Numbers in the exported variables.
      size_bytes: Bytes on disk.
    """

    path: pathlib.Path
    version: int
    parity: parity.Parity
    gate: gate.Decision
    num_parameters: int
    size_bytes: int


def export(
    method: Method,
    dataset: Dataset,
    base_dir: str | pathlib.Path,
    *,
    version: int | None = None,
    unknown_domain: str | None = None,
    gate_mode: str = "noise",
    gate_scores: pathlib.Path | None = None,
    keep: int = 0,
    split: str = "test",
) -> Exported:
    """Exports a restored method.

    Args:
      method: With its best weights.
      dataset: The data set it was trained on.
      base_dir: `<export>/<model name>`; versions lie below it.
      version: Integer version; default unix seconds.
      unknown_domain: Domain that takes requests of unknown domains; default refuse.
      gate_mode: "noise": refuse when a domain falls beyond its noise against the
        published version; "off".
      gate_scores: Scores to compare with instead of the published version's own.
      keep: Versions to keep, 0 = all.
      split: Split whose rows are used for parity and the gate.

    Raises:
      ExportError, signatures.VariableError: More or less than the serving part.
      parity.ParityError: Scores differ from the training graph's.
      gate.GateError: A domain fell against the published version.
      publish.PublishError: The version exists.
    """
    if keep < 0:
        raise publish.PublishError(f"export.keep must be 0 or more; got {keep}.")
    base_dir = pathlib.Path(base_dir)
    version = publish.next_version(base_dir, version)
    module = ServingModule(method, dataset, unknown_domain)
    published = publish.versions(base_dir)
    previous = base_dir / str(published[-1]) if published else None
    with publish.atomic_version(base_dir, version) as folder:
        tf.saved_model.save(module, str(folder), signatures=module.signatures())
        assert_only_serving_variables(folder, method)
        same = parity.check_parity(folder, method, dataset, split=split)
        _write_requests(folder, base_dir.name, module, method, dataset, split)
        scores = gate.candidate_scores(method, dataset, split)
        decision = gate.decide(
            scores, previous, mode=gate_mode, scores_path=gate_scores
        )
        gate.save_scores(folder, scores)
        metadata = _metadata(module, method, dataset, base_dir.name, version)
        _write_metadata(folder, metadata, same, decision)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if keep:
        publish.keep_newest(base_dir, keep)
    num_parameters = sum(v.shape.num_elements() for v in method.serving_variables())
    return Exported(
        base_dir / str(version), version, same, decision, num_parameters, size
    )


def assert_only_serving_variables(folder: pathlib.Path, method: Method) -> None:
    """Checks the saved variables against the method's allow-list.

    Compared by counts of shapes and dtypes of what lies in the folder, so a
    training-only variable that slipped in, or a serving one that was lost, is seen
    whatever object it hung on.

    Raises:
      ExportError: Naming the shapes too many or missing.
    """
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    saved = Counter(
        (tuple(shape), dtypes[key].name)
        for key, shape in reader.get_variable_to_shape_map().items()
        if key.endswith("VARIABLE_VALUE")
    )
    allowed = Counter(
        (tuple(v.shape), v.dtype.name) for v in method.serving_variables()
    )
    if saved != allowed:
        raise ExportError(
            f"export: the saved variables must be {type(method).__name__}'s "
            f"serving_variables(); too many {dict(saved - allowed)}, missing "
            f"{dict(allowed - saved)} ({folder})."
        )


def _write_requests(
    folder: pathlib.Path,
    name: str,
    module: ServingModule,
    method: Method,
    dataset: Dataset,
    split: str,
) -> None:
    """Writes warm-up file and example rows: real rows of domains that are served."""
    table = samples.read_samples(
        dataset, split, max(warmup.BATCH_SIZES), method.serving_domains()
    )
    arrays = samples.raw_arrays(dataset.info.spec, module.inputs, table)
    warmup.write_warmup(folder, name, module.inputs, arrays)
    few = table.slice(0, EXAMPLE_ROWS)
    rows = samples.json_rows(samples.raw_arrays(dataset.info.spec, module.inputs, few))
    text = ",\n ".join(json.dumps(row) for row in rows)
    path = folder / "assets.extra" / ROWS_FILE
    path.write_text(f"[{text}]\n", "utf-8")


def _write_metadata(
    folder: pathlib.Path,
    metadata: dict[str, Any],
    same: parity.Parity,
    decision: gate.Decision,
) -> None:
    values = metadata | {
        "parity": dataclasses.asdict(same),
        "gate": dataclasses.asdict(decision),
    }
    path = folder / "assets.extra" / METADATA_FILE
    path.write_text(json.dumps(values, indent=2, sort_keys=True), "utf-8")


def _metadata(
    module: ServingModule, method: Method, dataset: Dataset, name: str, version: int
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "method": type(method).__name__,
        "dataset": dataset.info.spec.name,
        "fingerprint": dataset.info.fingerprint,
        "domains": list(method.serving_domains()),
        "tasks": list(method.schema.tasks),
        "inputs": {
            item.name: {
                "kind": item.kind,
                "dtype": "float32" if item.kind == "number" else "string",
                "per_item": item.per_item,
            }
            for item in module.inputs
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.export",
        description=__doc__.split("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="a finished training run")
    parser.add_argument("--data_dir", help="its data set, if it was moved")
    parser.add_argument("--export_dir", required=True, help="<export>/<model name>")
    parser.add_argument("--version", type=int, help="default: unix seconds")
    parser.add_argument("--unknown_domain", help="domain for unknown ones' requests")
    parser.add_argument("--gate", choices=("noise", "off"), default="noise")
    parser.add_argument(
        "--gate_scores",
        type=pathlib.Path,
        help="scores (.npz) to compare with instead of the published version's own",
    )
    parser.add_argument("--keep", type=int, default=0, help="versions kept; 0 = all")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    args = parser.parse_args(argv)
    try:
        run = load_method(args.workdir, args.data_dir)
        done = export(
            run.method,
            run.dataset,
            args.export_dir,
            version=args.version,
            unknown_domain=args.unknown_domain,
            gate_mode=args.gate,
            gate_scores=args.gate_scores,
            keep=args.keep,
            split=args.split,
        )
    except (ValueError, LookupError, RuntimeError, OSError, tf.errors.OpError) as error:
        print(f"export failed: {error}", file=sys.stderr)
        return GATE_STATUS if isinstance(error, gate.GateError) else 1
    print(f"gate: {done.gate.text}")
    print(
        f"parity: {done.parity.rows} rows, max |difference| "
        f"{done.parity.max_difference:.2g} (TF2 loader), "
        f"{done.parity.max_difference_tf1:.2g} (TF1 loader)"
    )
    print(f"parameters: {done.num_parameters:,}; {done.size_bytes / 2**20:.1f} MiB")
    print(f"exported: {done.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
