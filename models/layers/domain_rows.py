"""`DomainRows`: each row through its own domain's weights, at the cost of one domain.

Three forms with the same results.  `single`: there is one domain.  `blocks`: rows are
put in order of their domain, every domain padded to whole blocks, so that a block has
one domain; the number of blocks is fixed by the shapes, so it traces once and XLA can
compile it.  `all`: every domain on all rows, then selection (the slow twin that tests
compare with).

The products of `blocks` are made in one of two ways.  The rows of a domain lie
together, so on a CPU each domain's are multiplied by its kernel, in place (`split`).
Under XLA, which needs static shapes, on a GPU, where many small products are slow, for
a batch of unknown size and for more than `MAX_SPLIT_DOMAINS` domains it is one batched
product with the kernels gathered block by block: copies of kernels, and as many of
their gradients, which cost more than the product where blocks are small
(`tests/benchmarks/bench_layers.py`).

A `blocks` batch whose padding is small is permuted *early*: the model's raw inputs
are put into block order once and its logits are put back once; nothing in between
moves.  Otherwise each domain section permutes its own input and output.
"""

from collections.abc import Callable
from typing import Any, Literal

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # TF's own way to ask for XLA

Form = Literal["auto", "single", "blocks", "all"]

MIN_BLOCK_ROWS = 16
MAX_BLOCK_ROWS = 256
MAX_EARLY_PADDING = 0.125  # of the batch
MAX_SPLIT_DOMAINS = 128  # three nodes a domain and product in the graph


class DomainRows:
    """How the rows of one batch are laid out by domain; made anew in every call.

    Args:
      domain: Domain index, int32 [B], in 0..D-1.
      num_domains: D, >= 1.
      form: Which of the forms; `auto` takes `single` for D = 1, else `blocks`.
      block_rows: Rows a block; default: by the batch size.

    Attributes:
      early: Whether `enter` puts rows into block order for the whole model.
      num_slots: Rows in block order, padding included (blocks form).
      split: Whether products are made domain by domain (blocks form).
    """

    def __init__(
        self,
        domain: tf.Tensor,
        num_domains: int,
        *,
        form: Form = "auto",
        block_rows: int | None = None,
    ):
        if num_domains < 1:
            raise ValueError(
                f"DomainRows.num_domains must be at least 1; got {num_domains}."
            )
        if form == "auto":
            form = "single" if num_domains == 1 else "blocks"
        self.num_domains = num_domains
        self.form = form
        self.domain = domain
        self.early = False
        self.split = False
        if form == "blocks":
            self._make_blocks(block_rows)

    def _make_blocks(self, block_rows: int | None) -> None:
        static_rows = self.domain.shape[0]
        size = block_rows or _block_rows(static_rows, self.num_domains)
        padding = self.num_domains * size
        self.early = (
            static_rows is not None and padding <= MAX_EARLY_PADDING * static_rows
        )
        if static_rows is None:
            rows = tf.shape(self.domain)[0]
            num_blocks = rows // size + tf.minimum(rows, self.num_domains)
        else:
            rows = static_rows
            # Each present domain wastes less than one block.
            num_blocks = rows // size + min(rows, self.num_domains)
        self.block_rows, self.num_blocks = size, num_blocks
        self.num_slots = num_blocks * size
        self.split = static_rows is not None and _can_split(self.num_domains)

        order = tf.argsort(self.domain, stable=True)
        by_domain = tf.gather(self.domain, order)
        # Not bincount: XLA does not take it where the domains are computed in the step.
        counts = tf.math.unsorted_segment_sum(
            tf.ones_like(self.domain), self.domain, self.num_domains
        )
        blocks = (counts + size - 1) // size
        first_row = tf.cumsum(counts, exclusive=True)
        first_slot = tf.cumsum(blocks, exclusive=True) * size
        if self.split:
            # Slots of each domain, and the padding behind the last one's.
            used = blocks * size
            rest = self.num_slots - tf.reduce_sum(used)
            self._slots_of = tf.concat([used, rest[tf.newaxis]], axis=0)
        slots = tf.range(rows) + tf.gather(first_slot - first_row, by_domain)
        # Slot of each row, and row of each slot + 1 (0 = padding).
        self._slot = tf.scatter_nd(order[:, None], slots, [rows])
        source = tf.scatter_nd(slots[:, None], order + 1, [self.num_slots])
        self._row = tf.maximum(source - 1, 0)
        self.is_row = source > 0
        self.block_domain = tf.minimum(
            tf.searchsorted(tf.cumsum(blocks), tf.range(num_blocks), side="right"),
            self.num_domains - 1,
        )

    def enter(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a model input [B, ...] in the order the model works in."""
        return self._to_slots(x) if self.early else x

    def leave(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a model output in the order of the input rows, [B, ...]."""
        return self._to_rows(x) if self.early else x

    def valid_rows(self, valid: tf.Tensor | None) -> tf.Tensor | None:
        """Returns which working rows count: no padding slot, no invalid row.

        Args:
          valid: bool [B] in input order, or None = all.

        Returns:
          bool, one per working row; None if all count.
        """
        if not self.early:
            return valid
        if valid is None:
            return self.is_row
        return tf.logical_and(tf.gather(valid, self._row), self.is_row)

    def section(self, fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        """Applies `fn`, made of `matmul`, `view` and `param`, to working rows `x`."""
        if self.form != "blocks" or self.early:
            return fn(x)
        return self._to_rows(fn(self._to_slots(x)))

    def matmul(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """Returns x [N, in] times the kernel of each row's domain: [N, out].

        Inside a `section`.

        Args:
          x: [N, in].
          kernels: [D, in, out].
        """
        width = kernels.shape[-1]
        if self.form == "single":
            return tf.matmul(x, kernels[0])
        if self.form == "all":
            every = tf.einsum("bi,dio->bdo", x, kernels)
            return tf.gather(every, self.domain, axis=1, batch_dims=1)
        if self.split:
            return self._split_matmul(x, kernels)
        blocks = tf.reshape(x, [self.num_blocks, self.block_rows, kernels.shape[-2]])
        out = tf.matmul(blocks, tf.gather(kernels, self.block_domain))
        return tf.reshape(out, [self.num_slots, width])

    def _split_matmul(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """Products of each domain's slots; those behind the last one's give 0."""
        *parts, rest = tf.split(x, self._slots_of, num=self.num_domains + 1)
        each = tf.unstack(tf.convert_to_tensor(kernels), num=self.num_domains)
        out = [tf.matmul(a, b) for a, b in zip(parts, each, strict=True)]
        out.append(tf.zeros([tf.shape(rest)[0], kernels.shape[-1]], x.dtype))
        return tf.ensure_shape(tf.concat(out, axis=0), [self.num_slots, None])

    def view(self, x: tf.Tensor) -> tf.Tensor:
        """Returns [N, ...] in the shape that `param` broadcasts against."""
        if self.form != "blocks":
            return x
        return tf.reshape(x, [self.num_blocks, self.block_rows, *x.shape[1:]])

    def flat(self, x: tf.Tensor) -> tf.Tensor:
        """Undoes `view`."""
        if self.form != "blocks":
            return x
        return tf.reshape(x, [self.num_slots, *x.shape[2:]])

    def param(self, values: tf.Tensor) -> tf.Tensor:
        """Returns each row's own of [D, ...], broadcasting against a `view`."""
        if self.form == "single":
            return tf.convert_to_tensor(values)[0]
        if self.form == "all":
            return tf.gather(values, self.domain)
        return tf.gather(values, self.block_domain)[:, None]

    def add(self, x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """Returns x [N, ...] plus each row's own bias of [D, ...]."""
        return self.flat(self.view(x) + self.param(bias))

    def _to_slots(self, x: tf.Tensor) -> tf.Tensor:
        if not x.dtype.is_floating:
            return self._shaped(tf.gather(x, self._row), x, self.num_slots)

        @tf.custom_gradient
        def op(x: tf.Tensor) -> tuple[Any, Callable]:
            # Padding slots are never read, so nothing flows back from them.
            return tf.gather(x, self._row), lambda up: tf.gather(up, self._slot)

        return self._shaped(op(x), x, self.num_slots)

    def _to_rows(self, x: tf.Tensor) -> tf.Tensor:
        is_row = tf.reshape(
            tf.cast(self.is_row, x.dtype), [self.num_slots] + [1] * (x.shape.rank - 1)
        )

        @tf.custom_gradient
        def op(x: tf.Tensor) -> tuple[Any, Callable]:
            # A gather by the inverse: the usual scatter is many times slower.
            return (
                tf.gather(x, self._slot),
                lambda up: tf.gather(up, self._row) * is_row,
            )

        return self._shaped(op(x), x, self.domain.shape[0])

    @staticmethod
    def _shaped(out: tf.Tensor, x: tf.Tensor, rows: Any) -> tf.Tensor:
        rows = rows if isinstance(rows, int) else None
        out.set_shape([rows, *x.shape[1:]])
        return out


def _can_split(num_domains: int) -> bool:
    graph = tf.compat.v1.get_default_graph()
    return (
        num_domains <= MAX_SPLIT_DOMAINS
        and not control_flow_util.GraphOrParentsInXlaContext(graph)
        and not tf.config.list_physical_devices("GPU")
    )


def _block_rows(rows: int | None, num_domains: int) -> int:
    """Largest power of two whose padding stays small; the least if rows are unknown."""
    size = MIN_BLOCK_ROWS
    if rows is None:
        return size
    while size < MAX_BLOCK_ROWS and 2 * size * num_domains <= MAX_EARLY_PADDING * rows:
        size *= 2
    return size
