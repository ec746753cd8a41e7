"""Loads an exported model without this project's code and scores one file of rows.

Runs as a script in a fresh, isolated interpreter (`python -I`): what it can load, TF
Serving can load.  Reads inputs from an npz file, calls the `predict` signature twice,
by the TF2 loader and by the TF1 loader that TF Serving uses (tag `serve`, tensor
names of the signature), and writes both results.

Usage: python -I artefact_check.py EXPORT_DIR INPUTS.npz OUTPUTS.npz
"""

import sys

import numpy as np
import tensorflow as tf


def _encoded(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "U":
        return values
    # NumPy encodes an array without elements (empty lists) to float64.
    return np.char.encode(values, "utf-8") if values.size else values.astype("S")


def main(export_dir: str, inputs_path: str, outputs_path: str) -> None:
    """Scores the rows with both loaders; raises when one of them cannot."""
    tf.get_logger().setLevel("ERROR")  # the TF1 loader is deprecated, and meant here
    with np.load(inputs_path, allow_pickle=False) as stored:
        inputs = {name: stored[name] for name in stored.files}
    loaded = tf.saved_model.load(export_dir)
    predict = loaded.signatures["predict"]
    tensors = {name: tf.constant(_encoded(value)) for name, value in inputs.items()}
    results = {f"tf2/{k}": v.numpy() for k, v in predict(**tensors).items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], export_dir)
        signature = meta.signature_def["predict"]
        feed = {
            info.name: _encoded(inputs[name]).astype(object)
            if inputs[name].dtype.kind == "U"
            else inputs[name]
            for name, info in signature.inputs.items()
        }
        fetch = {name: info.name for name, info in signature.outputs.items()}
        outputs = session.run(fetch, feed)
    results |= {f"tf1/{k}": v for k, v in outputs.items()}
    np.savez(outputs_path, **results)
    ours = {"features", "tfrecords_tools", "models", "serving"} & set(sys.modules)
    if ours:
        raise RuntimeError(
            f"the artefact must load alone; {sorted(ours)} were imported"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
