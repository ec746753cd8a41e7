"""Makes one part of a model the twin of another: weights, slots and step counters."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from models.optimizers.base import RowOptimizer


def copy_training_state(
    source: Sequence[tf.Variable],
    target: Sequence[tf.Variable],
    optimizers: Mapping[str, RowOptimizer],
) -> None:
    """Copies values, optimiser slots and counters of `source` to `target`, by position.

    After it both go on alike, given alike gradients.  A variable without an optimiser
    (moving statistics) has its value copied.  Outside the step function only.

    Args:
      source: Variables to copy.
      target: As many, of the same shapes.
      optimizers: All optimisers of the method.

    Raises:
      ValueError: When the two are not alike in number, shapes or optimiser.
    """
    shapes = [[tuple(v.shape) for v in part] for part in (source, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "copy_training_state.target must have the shapes of source; got "
            f"{shapes[1]} for {shapes[0]}. Build both parts from one config."
        )
    owners = {v.ref(): o for o in optimizers.values() for v in o.model_variables}
    for old, new in zip(source, target, strict=True):
        giver, taker = owners.get(old.ref()), owners.get(new.ref())
        if type(giver) is not type(taker):
            raise ValueError(
                f"copy_training_state: {new.name!r} must have the kind of optimiser of "
                f"{old.name!r}; got {_kind(taker)} for {_kind(giver)}."
            )
        new.assign(old)
        if giver is None or taker is None:
            continue
        slots = taker.slots(new)
        for name, slot in giver.slots(old).items():
            slots[name].assign(slot)
        if giver is not taker:
            taker.iterations.assign(giver.iterations)


def _kind(optimizer: RowOptimizer | None) -> str:
    return "none" if optimizer is None else type(optimizer).__name__
