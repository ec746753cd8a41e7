"""What a hierarchy of experts computes, as functions of its weights.

One set of weights (`W` below) is a dict of tensors.  For training it is that of a
`Hierarchy`; a mask search trains many copies at once, so every weight may have one
more leading axis, [C, ...], and all functions broadcast over it.
"""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from models.layers import normalise

Weights = Mapping[str, tf.Tensor]
CUT = -1e9  # logit of a cut edge: its softmax is exactly 0 in float32


def gate_logits(
    weights: Weights, vectors: tf.Tensor, first_active: tf.Tensor, num_layers: int
) -> list[tf.Tensor]:
    """Returns logits of the gates between layers, [X, N_{l+1}, N_l] for each l.

    They depend on the domain and on which first-layer experts it uses, not on rows:
    `[v_d ; mean of the active u_i] W_{l,n} + b_{l,n}`.

    Args:
      weights: With `gate_experts` [N_1, E], and `gate_kernel_<l>`
        [N_{l+1}, 2E, N_l] and `gate_bias_<l>` [N_{l+1}, N_l] for l = 1..L-1.
      vectors: v_d, [X, E]: X domains, or one copy each of X.
      first_active: [X, N_1], 1 for an active expert, else 0.
      num_layers: L.
    """
    share = tf.math.divide_no_nan(
        first_active, tf.reduce_sum(first_active, -1, keepdims=True)
    )
    group = tf.matmul(share[:, tf.newaxis], weights["gate_experts"])  # [X, 1, E]
    side = tf.concat([vectors[:, tf.newaxis], group], axis=-1)[:, tf.newaxis]
    return [
        tf.squeeze(tf.matmul(side, weights[f"gate_kernel_{layer}"]), axis=2)
        + weights[f"gate_bias_{layer}"]
        for layer in range(1, num_layers)
    ]


def mixing(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns effective mixing weights [X, N, M]: a softmax over the kept edges.

    `A[n, i] = M[i, n] g_n[i] / sum_j M[j, n] g_n[j]`; an expert without a kept edge
    has zeros.  A cut edge is exactly 0 and its logit gets exactly no gradient.

    Source: Luo et al., AAAI 2025 (AREAD), Eq. (4).
    Differs: the denominator is the scalar sum (Eq. (4) lacks an index); computed from
    logits, so it cannot underflow.

    Args:
      logits: [X, N, M] float32: N experts reading M.
      mask: [X, M, N] float32, 1 = kept.
    """
    kept = tf.linalg.matrix_transpose(mask)
    return tf.nn.softmax(tf.where(kept > 0, logits, CUT)) * kept


def run_experts(
    weights: Weights,
    x: tf.Tensor,
    mix: Callable[[int, tf.Tensor], tf.Tensor],
    depths: Sequence[int],
    *,
    norm: str,
    drop: Callable[[int, int, tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Returns the outputs (logits) of all top experts, [N_L, B, T], in x's dtype.

    Args:
      weights: With `kernel_<l>_<i>` [N_l, in, out], `bias_<l>_<i>` [N_l, out], with
        `norm` also `gamma` and `beta` like it, for each layer l = 0..L-1 and hidden
        layer i of its experts; `out_kernel` [N_L, h, T], `out_bias` [N_L, T].
      x: Inputs of the first layer's experts, [N_1, B, I].
      mix: `mix(l, e)` gives the inputs [N_l, B, h] of layer l >= 1 from the outputs
        [N_{l-1}, B, h] of the layer before.
      depths: Hidden layers of the experts, for each layer.
      norm: `none` or `layer`, before each ReLU.
      drop: `drop(l, i, x)`, dropout after each hidden layer.
    """
    for layer, depth in enumerate(depths):
        x = mix(layer, x) if layer else x
        for i in range(depth):
            x = _block(weights, f"{layer}_{i}", x, norm)
            x = x if drop is None else drop(layer, i, x)
    bias = weights["out_bias"][..., tf.newaxis, :]
    return tf.matmul(x, weights["out_kernel"]) + bias


def _block(weights: Weights, name: str, x: tf.Tensor, norm: str) -> tf.Tensor:
    kernel, bias = weights[f"kernel_{name}"], weights[f"bias_{name}"]
    if norm == "none":
        return tf.nn.relu(tf.matmul(x, kernel) + bias[..., tf.newaxis, :])
    kernel, bias = normalise.centre(kernel), normalise.centre(bias)
    gamma, beta = (weights[f"{key}_{name}"] for key in ("gamma", "beta"))
    return normalise.scale_norm(
        tf.matmul(x, kernel) + bias[..., tf.newaxis, :],
        tf.convert_to_tensor(gamma)[..., tf.newaxis, :],
        tf.convert_to_tensor(beta)[..., tf.newaxis, :],
        activation="relu",
    )


def average_logits(outputs: tf.Tensor, active: tf.Tensor) -> tf.Tensor:
    """Returns logits of the mean probability over active outputs, float32.

    `log mean_j sigma(o_j) - log mean_j sigma(-o_j)`, from logs, so that it is finite
    for any finite output.

    Source: Luo et al., AAAI 2025 (AREAD), Eq. (6) and (9).
    Differs: none.

    Args:
      outputs: [..., N_L, B, T] logits.
      active: Broadcasts against them, 1 = active; at least one along N_L.
    """
    outputs = tf.cast(outputs, tf.float32)
    absent = tf.where(active > 0, 0.0, CUT)
    yes = tf.reduce_logsumexp(tf.math.log_sigmoid(outputs) + absent, axis=-3)
    no = tf.reduce_logsumexp(tf.math.log_sigmoid(-outputs) + absent, axis=-3)
    return yes - no


def bagging(
    outputs: tf.Tensor, active: tf.Tensor, labels: tf.Tensor, kind: str
) -> tf.Tensor:
    """Returns each row's loss over its active outputs, [..., B, T] float32.

    Source: Luo et al., AAAI 2025 (AREAD), Eq. (8).
    Differs: `mean` divides by the number of active outputs (authors' code), so that
    the step does not depend on the size of the mask; `sum` is the paper's.

    Args:
      outputs: [..., N_L, B, T] logits.
      active: Broadcasts against them, 1 = active, else 0.
      labels: [B, T] in [0, 1].
      kind: `mean` or `sum`.
    """
    outputs = tf.cast(outputs, tf.float32)
    labels = tf.broadcast_to(labels, tf.shape(outputs))
    each = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=outputs)
    total = tf.reduce_sum(each * active, axis=-3)
    if kind == "sum":
        return total
    return tf.math.divide_no_nan(total, tf.reduce_sum(active, axis=-3))
