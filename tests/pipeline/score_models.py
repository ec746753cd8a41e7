"""Exported models made by hand, whose scores can be checked by hand.

`click` is the price as a probability, `price / 10`; `like` is a tenth of the number
of earlier items.  Prices are from 0 to 10.
"""

import json

import tensorflow as tf

INPUTS = {"price": "number", "channel": "id", "history": "ids"}


class HandMade(tf.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, "price"),
            tf.TensorSpec([None], tf.string, "channel"),
            tf.TensorSpec([None, None], tf.string, "history"),
        ]
    )
    def predict(self, price, channel, history):
        # The channel must be known: a real model would refuse another one.
        known = tf.reduce_all((channel == "home") | (channel == "video"))
        with tf.control_dependencies([tf.debugging.Assert(known, [channel])]):
            filled = tf.cast(history != "", tf.float32)
        return {
            "click": self.factor * price / 10,
            "like": self.factor * tf.reduce_sum(filled, axis=1) / 10,
        }


def write(
    base, fingerprint, *, version=1, factor=1.0, domains=("home", "video"), **changes
):
    """Writes `<base>/<version>` and returns `base`."""
    module = HandMade(factor)
    folder = base / str(version)
    tf.saved_model.save(
        module, str(folder), {"predict": module.predict.get_concrete_function()}
    )
    values = {
        "version": version,
        "inputs": {name: {"kind": kind} for name, kind in INPUTS.items()},
        "tasks": ["click", "like"],
        "domains": list(domains),
        "fingerprint": fingerprint,
    }
    (folder / "assets.extra").mkdir()
    path = folder / "assets.extra" / "isthmus.json"
    path.write_text(json.dumps({**values, **changes}))
    return base
