"""Loaded versions of one model, swapped while requests run."""

import dataclasses
import enum
import pathlib
import threading
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2

from serving.publish import versions


class State(enum.StrEnum):
    """States of a version, as TF Serving names them."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    END = "END"


class UnknownVersionError(LookupError):
    """A model or version that this server does not have."""


class BadRequestError(ValueError):
    """A request that the signature cannot take; the text says which input and why."""


class LoadedModel:
    """One version in memory.

    Args:
      path: The version folder.
    """

    def __init__(self, path: pathlib.Path):
        self.version = int(path.name)
        self._loaded = tf.saved_model.load(str(path))
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
        self.signature_defs = dict(proto.meta_graphs[0].signature_def)
        self.signature_defs.pop("__saved_model_init_op", None)

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature.

        Raises:
          BadRequestError: Unknown signature, input, dtype or shape; or a value that
            the graph refuses (an unknown domain).
        """
        signature = signature or "serving_default"
        function = self._loaded.signatures.get(signature)
        if function is None:
            raise BadRequestError(
                "signature_name must be one of "
                f"{', '.join(sorted(self._loaded.signatures))}; got {signature!r}."
            )
        specs = function.structured_input_signature[1]
        missing, extra = set(specs) - set(inputs), set(inputs) - set(specs)
        if missing or extra:
            raise BadRequestError(
                f"inputs of {signature!r} must be {', '.join(sorted(specs))}; "
                f"missing {sorted(missing)}, unknown {sorted(extra)}."
            )
        tensors = {
            name: _tensor(spec, name, inputs[name]) for name, spec in specs.items()
        }
        try:
            outputs = function(**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise BadRequestError(_graph_message(error)) from error
        return {name: value.numpy() for name, value in outputs.items()}


def _tensor(spec: tf.TensorSpec, name: str, value: np.ndarray) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(value, spec.dtype)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise BadRequestError(
            f"inputs.{name} must be {spec.dtype.name} of shape {spec.shape}; got "
            f"{np.asarray(value).dtype} that does not convert: {error}"
        ) from error
    if not spec.shape.is_compatible_with(tensor.shape):
        raise BadRequestError(
            f"inputs.{name} must have shape {spec.shape}; got {tensor.shape}."
        )
    return tensor


def _graph_message(error: tf.errors.OpError) -> str:
    """The one sentence of a graph error that a caller can use."""
    text = error.message
    start = text.find("request.")
    if start < 0:
        return text.split("\n")[0][:500]
    return text[start:].split("' b'")[0].split("\n")[0].strip(" b'\"")[:500]


@dataclasses.dataclass
class _Entry:
    state: State
    model: LoadedModel | None = None
    error: str = ""


class ModelStore:
    """The newest version of a model folder, and what else was asked to stay.

    A new version is loaded beside the old one and takes over at once when it is ready;
    requests under way keep the version they started with.  A version that fails to
    load is reported and the old one stays.

    Args:
      name: Model name in URLs.
      base_dir: Folder with integer version folders.
      keep_versions: Newest versions kept loaded.
      on_swap: Called with the version that became the newest.
    """

    def __init__(
        self,
        name: str,
        base_dir: str | pathlib.Path,
        *,
        keep_versions: int = 1,
        on_swap: Callable[[int], None] | None = None,
    ):
        self.name = name
        self.base_dir = pathlib.Path(base_dir)
        self._keep = keep_versions
        self._on_swap = on_swap
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Looks at the folder once: loads new versions, drops old ones."""
        wanted = versions(self.base_dir)[-self._keep :]
        for version in wanted:
            entry = self._entries.get(version)
            if entry is None:
                self._load(version)
        with self._lock:
            loaded = [v for v, e in self._entries.items() if e.model is not None]
            # An old version may go only when a newer one can answer.
            for version in sorted(loaded)[: -self._keep]:
                self._entries[version] = _Entry(State.END)

    def _load(self, version: int) -> None:
        with self._lock:
            self._entries[version] = _Entry(State.LOADING)
        try:
            model = LoadedModel(self.base_dir / str(version))
        except (OSError, ValueError, tf.errors.OpError) as error:
            logging.error(
                "Version %d of %s did not load: %s", version, self.name, error
            )
            with self._lock:
                self._entries[version] = _Entry(State.END, error=str(error))
            return
        with self._lock:
            self._entries[version] = _Entry(State.AVAILABLE, model)
        logging.info("Serving %s version %d", self.name, version)
        if self._on_swap is not None:
            self._on_swap(version)

    def get(self, name: str, version: int | None = None) -> LoadedModel:
        """Returns a loaded version, the newest by default.

        Raises:
          UnknownVersionError: For another model name or a version not loaded.
        """
        self._check_name(name)
        with self._lock:
            available = {v: e.model for v, e in self._entries.items() if e.model}
        if version is None and available:
            version = max(available)
        model = available.get(version) if version is not None else None
        if model is None:
            raise UnknownVersionError(
                f"version of {name} must be one of {sorted(available)}; got {version}."
            )
        return model

    def status(
        self, name: str, version: int | None = None
    ) -> dict[int, tuple[State, str]]:
        """Returns (state, error text) by version.

        Raises:
          UnknownVersionError: For another model name or a version never seen.
        """
        self._check_name(name)
        with self._lock:
            known = {v: (e.state, e.error) for v, e in self._entries.items()}
        if version is None:
            return known
        if version not in known:
            raise UnknownVersionError(
                f"version of {name} must be one of {sorted(known)}; got {version}."
            )
        return {version: known[version]}

    def is_ready(self) -> bool:
        """True when a version can answer."""
        with self._lock:
            return any(entry.model is not None for entry in self._entries.values())

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise UnknownVersionError(
                f"model must be {self.name!r}, the one this server has; got {name!r}."
            )
