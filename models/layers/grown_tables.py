"""`GrownTables`: copies a model into one whose vocabularies have grown.

Ids never change their meaning, so the rows of old ids are copied and those of new ids
stay as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf


class GrowthError(ValueError):
    """A variable that is not an earlier one with more rows."""


class Stack(NamedTuple):
    """Where the tables of one vocabulary lie in a variable.

    Rows are counted over all axes that come before an id's own values: a variable
    [S, N, E] with the id on its second axis has S * N of them.

    Attributes:
      name: Of the table.
      first: First row of the first table.
      size: Rows of one table, an id each.
      copies: Tables, one after the other (one for each source).
    """

    name: str
    first: int
    size: int
    copies: int = 1

    @property
    def end(self) -> int:
        """Last row + 1 of the last table."""
        return self.first + self.size * self.copies

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Returns a view [copies, size, E] of rows [N, E]."""
        return rows[self.first : self.end].reshape(self.copies, self.size, -1)


@runtime_checkable
class HasTables(Protocol):
    """A layer, or state of a method, with variables that hold a row for each id."""

    def stacks(self) -> Sequence[tuple[tf.Variable, Stack]]:
        """Returns every table and the variable that it lies in."""


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
        self._stacks: dict[object, dict[str, Stack]] = {}
        self.copied = 0
        self.grown: dict[str, tuple[int, int]] = {}
        for model in (old, new):
            self.add(model)

    def add(self, module: tf.Module) -> None:
        """Takes note of the tables in a module, such as a method's own state."""
        for part in (module, *module.submodules):
            if isinstance(part, HasTables):
                for variable, stack in part.stacks():
                    self._stacks.setdefault(variable.ref(), {})[stack.name] = stack

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
        before, now = (self._stacks.get(v.ref(), {}) for v in (like or (old, new)))
        self.copied += 1
        if not now or len(old.shape) == 0:
            self._check(old, new)
            new.assign(old)
            return
        source, values = _rows(old, before), _rows(new, now)
        if values.shape[1:] != source.shape[1:]:
            self._check(old, new)
        self._check_tables(before, now)
        for name, stack in now.items():
            size = before[name].size
            stack.of(values)[:, :size] = before[name].of(source)
            if size != stack.size:
                self.grown[name] = (size, stack.size)
        new.assign(values.reshape(new.shape))

    def _check(self, old: tf.Variable, new: tf.Variable) -> None:
        if old.shape != new.shape:
            raise GrowthError(
                f"{self._owner}: {new.name!r} must have the shape it had, "
                f"{tuple(old.shape)}; got {tuple(new.shape)}. Give both models the "
                "same sizes."
            )

    def _check_tables(self, before: dict[str, Stack], now: dict[str, Stack]) -> None:
        for name in sorted(before.keys() ^ now.keys()):
            raise GrowthError(
                f"{self._owner} must have table {name!r} where this model has it; "
                "it lies elsewhere. A table has grown past the size of those that "
                "share a variable."
            )
        for name, stack in now.items():
            old = before[name]
            if old.copies != stack.copies:
                raise GrowthError(
                    f"{self._owner} must have table {name!r} for as many sources as "
                    f"this model, {stack.copies}; got {old.copies}. Give both models "
                    "the same sources."
                )
            if old.size > stack.size:
                raise GrowthError(
                    f"{self._owner}: table {name!r} must not shrink; got "
                    f"{stack.size} rows, before {old.size}."
                )


def _rows(variable: tf.Variable, stacks: dict[str, Stack]) -> np.ndarray:
    """Returns a copy of the values as rows [N, E], N being what the tables take up."""
    num_rows = max((stack.end for stack in stacks.values()), default=1)
    return variable.numpy().reshape(num_rows, -1)
