"""`GrownTables`: copies a model into one whose vocabularies have grown.

Ids never change their meaning, so the rows of old ids are copied and those of new ids
stay as they are.
"""

import tensorflow as tf

from models.layers.embeddings import FieldEmbeddings


class GrowthError(ValueError):
    """A variable that is not an earlier one with more rows."""


class GrownTables:
    """Copies variables; those that hold tables table by table.

    Args:
      old: The model copied from.
      new: The model copied to, with the same layers.
      owner: Of the earlier model, named in errors.

    Attributes:
      copied: Variables copied.
      grown: Table -> rows before and now, where they differ.
    """

    def __init__(self, old: tf.Module, new: tf.Module, *, owner: str):
        self._owner = owner
        self._tables: dict[object, list[tuple[str, int, int]]] = {}
        for model in (old, new):
            for layer in model.submodules:
                if isinstance(layer, FieldEmbeddings):
                    for name, (variable, first, last) in layer.table_rows().items():
                        tables = self._tables.setdefault(variable.ref(), [])
                        tables.append((name, first, last))
        self.copied = 0
        self.grown: dict[str, tuple[int, int]] = {}

    def copy(
        self,
        old: tf.Variable,
        new: tf.Variable,
        like: tuple[tf.Variable, tf.Variable] | None = None,
    ) -> None:
        """Copies `old` to `new`; a slot is laid out `like` its variables.

        Raises:
          GrowthError: For another shape, or a table that shrank or moved.
        """
        before, now = (self._tables.get(v.ref(), []) for v in (like or (old, new)))
        self.copied += 1
        if not now or len(old.shape) == 0:
            self._check(old, new)
            new.assign(old)
            return
        places = {name: (first, last) for name, first, last in before}
        values = new.numpy()
        source = old.numpy()
        if values.shape[1:] != source.shape[1:]:
            self._check(old, new)
        for name, first, last in now:
            if name not in places:
                raise GrowthError(
                    f"{self._owner} must have table {name!r} where this model has it; "
                    "it lies elsewhere. A table has grown past the size of those that "
                    "share a variable."
                )
            start, end = places[name]
            size = end - start
            if size > last - first:
                raise GrowthError(
                    f"{self._owner}: table {name!r} must not shrink; got "
                    f"{last - first} rows, before {size}."
                )
            values[first : first + size] = source[start:end]
            if size != last - first:
                self.grown[name] = (size, last - first)
        new.assign(values)

    def _check(self, old: tf.Variable, new: tf.Variable) -> None:
        if old.shape != new.shape:
            raise GrowthError(
                f"{self._owner}: {new.name!r} must have the shape it had, "
                f"{tuple(old.shape)}; got {tuple(new.shape)}. Give both models the "
                "same sizes."
            )
