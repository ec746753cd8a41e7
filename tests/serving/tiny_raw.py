"""Raw rows that `features/encode.py` turns into the rows of `tiny_dataset`.

Made backwards, by hand: value k of a vocabulary is its first letter and k - 2.
"""

import numpy as np
import pyarrow as pa
import tensorflow as tf

STRANGER = "never seen"
AGES = (10.0, 25.0, 40.0, 60.0)  # one in each bucket of the boundaries 20, 30, 50


def raw_table(encoded):
    """Returns canonical raw rows, with the row ids, of encoded rows."""

    def lists(name, letter):
        rows = matrix(encoded, name)
        return [[f"{letter}{i - 2}" for i in row if i] for row in rows.tolist()]

    def texts(name, letter):
        ids = encoded[name].to_pylist()
        return [STRANGER if i == 1 else f"{letter}{i - 2}" for i in ids]

    return pa.table(
        {
            "user_id": texts("user_id", "u"),
            "item_id": texts("item_id", "i"),
            "genres": pa.array(lists("genres", "g"), pa.list_(pa.string())),
            "price": [10.0 + 2.0 * p for p in encoded["price"].to_pylist()],
            "age": [AGES[i - 2] for i in encoded["age"].to_pylist()],
            "history": pa.array(lists("history", "i"), pa.list_(pa.string())),
            "channel": [f"c{d}" for d in encoded["domain"].to_pylist()],
            "row_id": encoded["row_id"],
        }
    )


def model_features(encoded):
    """Returns what a model's `call` takes for encoded rows."""
    names = ("user_id", "item_id", "age", "domain")
    features = {n: tf.constant(encoded[n].to_numpy(), tf.int32) for n in names}
    for name in ("price", "item_popularity"):
        features[name] = tf.constant(encoded[name].to_numpy(), tf.float32)
    for name in ("genres", "history"):
        features[name] = tf.constant(matrix(encoded, name), tf.int32)
    return features


def matrix(encoded, name):
    """Returns a list column as int64 [rows, length]."""
    return np.array(encoded[name].to_pylist(), np.int64)


def request_rows(arrays, count):
    """Returns the first rows as JSON objects, lists without their padding."""
    columns = {}
    for name, array in arrays.items():
        values = array[:count].tolist()
        is_list = array.ndim == 2
        columns[name] = [[v for v in r if v] for r in values] if is_list else values
    return [{name: columns[name][row] for name in columns} for row in range(count)]
