"""A small schema, random batches and small configs that the tests of methods share."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from features.schema import FeatureInfo, ModelSchema
from models import registry
from tests.models.layers import twins
from tfrecords_tools.batch import Batch

FAST = {
    "embedding": {"kind": "lazy_adam", "learning_rate": 0.03},
    "dense": {"learning_rate": 0.01},
}
_ETA = {
    "hidden_units": (16, 8),
    "num_heads": 2,
    "head_units": 4,
    "short_length": 2,
    "top_k": 3,
    "hash_bits": 8,
}
SMALL = {
    "aread": {
        "num_base_experts": 2,
        "base_units": (16, 8),
        "num_experts": (2, 3, 4),
        "expert_units": ((8,), (8,), (8,)),
        "gate_width": 3,
        "dropout": 0.0,
        "num_candidates": 3,
        "candidate_steps": 2,
        "score_batches": 2,
    },
    "cctl": {
        "target_domain": "d0",
        "hidden_units": (16, 8),
        "selector_units": (8,),
    },
    "din": {"hidden_units": (16, 8), "attention_units": (8, 4)},
    "ecat": {
        **_ETA,
        "target_domain": "d0",
        "discriminator_units": (16,),
        "gate_units": (8,),
        "use_distillation": False,
    },
    "eta": _ETA,
    "m3oe": {
        "star_units": 16,
        "hidden_units": 12,
        "expert_units": 8,
        "tower_units": (8,),
        "num_shared_experts": 2,
    },
    "mlp": {"hidden_units": (16, 8)},
    "mmoe": {"num_experts": 3, "expert_units": (16, 8), "tower_units": (8,)},
    "ple": {
        "num_specific": 1,
        "num_shared": 2,
        "levels": ((16,), (8,)),
        "tower_units": (8,),
    },
    "shared_bottom": {"hidden_units": (16, 8), "tower_units": (8,)},
    "ssctl": {
        "dominant_domains": ("d0",),
        "num_shared_experts": 2,
        "expert_units": (16, 8),
        "gate_units": (8,),
        "tower_units": (8,),
        "classifier_units": (16,),
        "sddn_units": 8,
        "dropout": 0.0,
    },
    "star": {"hidden_units": (16, 8), "auxiliary_units": (8,)},
}

# Least number of domains a method is made for, and its settings below that.
FEW_DOMAINS = {"ssctl": (3, {"use_isct": False, "use_sddn": False})}


def make_schema(num_domains=3, num_tasks=2):
    return ModelSchema(
        (
            FeatureInfo("user", "user", "id", "user", 90, 4),
            FeatureInfo("item", "item", "id", "item", 50, 4),
            FeatureInfo("tags", "item", "ids", "tags", 9, 4, 3),
            FeatureInfo("history", "sequence", "sequence", "item", 50, 4, 5),
            FeatureInfo("price", "item", "number"),
            FeatureInfo("domain_indicator", "domain", "id", "di", num_domains, 4),
        ),
        tuple(f"d{i}" for i in range(num_domains)),
        tuple(f"t{i}" for i in range(num_tasks)),
    )


def make_batch(schema, rows, *, seed=0, domain=None):
    rng = np.random.default_rng(seed)
    if domain is None:
        domain = rng.integers(0, schema.num_domains, rows)
    features = {"domain": tf.constant(domain, tf.int32, [rows])}
    for info in schema.features:
        if info.kind == "number":
            features[info.name] = tf.constant(rng.normal(size=rows), tf.float32)
        elif info.kind == "id" and info.role != "domain":
            values = rng.integers(1, info.num_ids, rows)
            features[info.name] = tf.constant(values, tf.int32)
        elif info.kind != "id":
            values = rng.integers(0, info.num_ids, (rows, info.length))
            features[info.name] = tf.constant(values, tf.int32)
    shape = (rows, schema.num_tasks)
    return Batch(
        features,
        tf.constant(rng.integers(0, 2, shape), tf.float32),
        tf.ones(shape),
        tf.ones([rows]),
        tf.ones([rows], tf.bool),
        {},
    )


def number_schema(count, domains, *extra):
    """Number fields x0.. and one task: for rows of `linear_batch`."""
    numbers = [FeatureInfo(f"x{i}", "item", "number") for i in range(count)]
    return ModelSchema((*numbers, *extra), tuple(domains), ("click",))


def linear_batch(rng, domain, tastes):
    """Rows x ~ N(0, 1) of these domains; a click with probability sigma(x taste_d)."""
    x = rng.normal(size=(len(domain), tastes.shape[1])).astype("f")
    clicks = rng.uniform(size=len(x)) < 1 / (1 + np.exp(-(x * tastes[domain]).sum(1)))
    features = {f"x{i}": tf.constant(column) for i, column in enumerate(x.T)}
    return Batch(
        features | {"domain": tf.constant(domain, tf.int32)},
        tf.constant(clicks[:, None], tf.float32),
        tf.ones([len(x), 1]),
        tf.ones([len(x)]),
        tf.ones([len(x)], tf.bool),
        {},
    )


def take(batch, index):
    """Rows `index` of a batch, in that order."""
    return tf.nest.map_structure(lambda x: tf.gather(x, index), batch)


def make_method(name, schema, *, seed=1, **settings):
    keras.utils.set_random_seed(seed)
    cls = registry.method_class(name)
    config = {"optimizer": FAST, "embedding_stddev": 0.1} | SMALL.get(name, {})
    least, below = FEW_DOMAINS.get(name, (0, {}))
    if schema.num_domains < least:
        config |= below
    known = cls.Config.model_fields
    config = {k: v for k, v in config.items() if k in known} | settings
    return cls(cls.Config.parse(config), schema)


def of_domains(schema, batch, domains):
    """The same batch with the rows of all other domains made padding."""
    keep = np.isin(batch.domain.numpy(), [schema.domains.index(d) for d in domains])
    return tf.nest.map_structure(
        lambda x: tf.where(
            keep.reshape([-1] + [1] * (x.shape.rank - 1)), x, tf.zeros_like(x)
        ),
        batch,
    )


def feed(method, batch):
    """A batch for every training stream: those rows of `batch` that are the stream's.

    Rows of other domains are padding, so shapes are the batch's, whatever it holds.
    """
    return {
        name: of_domains(method.schema, batch, stream.domains)
        if stream.domains
        else batch
        for name, stream in method.streams().items()
        if not stream.event_only
    }


def served(method, batch):
    """The rows of a batch whose domains the method is evaluated on and exported for."""
    domains = [method.schema.domains.index(d) for d in method.serving_domains()]
    return take(batch, np.flatnonzero(np.isin(batch.domain.numpy(), domains)))


def logits(method, batch, training=False):
    return method.stacked_logits(batch, training=training).numpy()


def gradients(method, batch):
    """Loss and dense gradients by variable name and position."""
    variables = method.model.trainable_variables
    with tf.GradientTape() as tape:
        loss, _ = method.loss(feed(method, batch))
    found = tape.gradient(
        loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return float(loss), {
        f"{i}:{v.name.split('/')[-1]}": tf.convert_to_tensor(g).numpy()
        for i, (v, g) in enumerate(zip(variables, found, strict=True))
    }


def check_export(method, model, allowed, batch, path):
    """Exports `model` with the variables `allowed` and compares loaded scores.

    Compared are rows of the domains that the method serves.  The model itself is not
    tracked: saving fails if it reads any other variable.
    """
    batch = served(method, batch)
    module = tf.Module()
    module.allowed = allowed
    specs = {
        k: tf.TensorSpec([None, *v.shape[1:]], v.dtype, name=k)
        for k, v in batch.features.items()
    }
    call = tf.function(
        lambda x: model(x, training=False), input_signature=[specs], autograph=False
    )
    tf.saved_model.save(module, str(path), signatures={"scores": call})
    loaded = tf.saved_model.load(str(path))
    scores = loaded.signatures["scores"]
    for rows in (1, batch.domain.shape[0]):
        part = take(batch, range(rows))
        out = scores(**part.features)
        out = np.stack([out[t].numpy() for t in method.schema.tasks], axis=1)
        np.testing.assert_allclose(out, logits(method, part), rtol=1e-4, atol=1e-6)


def without_indicator(num_domains=3, num_tasks=2):
    """The schema whose model inputs do not tell the domain."""
    schema = make_schema(num_domains, num_tasks)
    fields = tuple(f for f in schema.features if f.role != "domain")
    return ModelSchema(fields, schema.domains, schema.tasks)


def check_tower(towers, x, d, t, got):
    """Compares a logit with tower (d, t) on `x` in float64."""
    hidden = towers.hidden
    for i in range(len(hidden.hidden_units)):
        names = ("kernels", "biases", "gammas", "betas")
        x = twins.block(x, *(twins.array(getattr(hidden, n)[i])[d, t] for n in names))
    kernel, bias = twins.array(towers.kernel)[d, t, :, 0], twins.array(towers.bias)
    np.testing.assert_allclose(got, x @ kernel + bias[d, t], rtol=2e-3, atol=2e-3)
