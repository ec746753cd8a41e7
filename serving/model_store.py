"""Loaded versions of one model, swapped while requests run."""

import dataclasses
import enum
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2

from features.config import nearest
from serving import warmup
from serving.publish import versions

DEFAULT_SIGNATURE = "serving_default"


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
    """One version in memory, warmed up with the requests it was exported with.

    Args:
      path: The version folder.

    Attributes:
      version: Its number.
      signature_defs: TF Serving's SignatureDef protos by name.
    """

    def __init__(self, path: pathlib.Path):
        self.version = int(path.name)
        self._loaded = tf.saved_model.load(str(path))
        # Each look-up in `signatures` is a search in a wrapped mapping.
        self._functions = dict(self._loaded.signatures)
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
        self.signature_defs = dict(proto.meta_graphs[0].signature_def)
        self.signature_defs.pop("__saved_model_init_op", None)
        for request in warmup.read_warmup(path):
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs)

    def input_names(self, signature: str) -> tuple[str, ...]:
        """Returns the names of a signature's inputs, sorted.

        Raises:
          BadRequestError: For an unknown signature.
        """
        return tuple(sorted(self._function(signature).structured_input_signature[1]))

    def predict(
        self, signature: str, inputs: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature.

        Args:
          signature: Its name; "" is `serving_default`.
          inputs: Arrays or nested lists by input name.  One without elements may
            have any dtype, since JSON has no typed empty list.

        Raises:
          BadRequestError: Unknown signature, input, dtype or shape; or a value that
            the graph refuses (an unknown domain).
        """
        function = self._function(signature)
        specs = function.structured_input_signature[1]
        if set(specs) != set(inputs):
            raise BadRequestError(_wrong_names(signature, specs, inputs))
        tensors = {
            name: _tensor(spec, name, inputs[name]) for name, spec in specs.items()
        }
        try:
            outputs = function(**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise BadRequestError(_graph_message(error)) from error
        return {name: value.numpy() for name, value in outputs.items()}

    def _function(self, signature: str) -> Any:
        function = self._functions.get(signature or DEFAULT_SIGNATURE)
        if function is None:
            raise BadRequestError(
                f"request.signature_name must be one of "
                f"{', '.join(sorted(self._functions))}; got {signature!r}."
                + nearest(signature, self._functions)
            )
        return function


def _wrong_names(signature: str, known: Iterable[str], got: Iterable[str]) -> str:
    known, got = sorted(known), sorted(got)
    missing = [name for name in known if name not in got]
    extra = [name for name in got if name not in known]
    text = (
        f"request.inputs must be those of {signature or DEFAULT_SIGNATURE!r} "
        f"({', '.join(known)}); got"
    )
    if missing:
        text += f" none for {', '.join(missing)}"
    if extra:
        text += f"{' and' if missing else ''} unknown {', '.join(extra)}"
    return text + "." + (nearest(extra[0], missing or known) if extra else "")


def _tensor(spec: tf.TensorSpec, name: str, value: Any) -> tf.Tensor:
    rule = f"inputs.{name} must be {spec.dtype.name} of shape {_shape(spec.shape)}"
    array = np.asarray(value)
    if not array.size and spec.shape.rank is not None:
        lost = max(spec.shape.rank - array.ndim, 0)
        array = np.zeros(array.shape + (0,) * lost, spec.dtype.as_numpy_dtype)
    if (spec.dtype == tf.string) != (array.dtype.kind in "OSU"):
        raise BadRequestError(f"{rule}; got {_kind(array)}.")
    try:
        tensor = tf.convert_to_tensor(array, spec.dtype)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise BadRequestError(f"{rule}; got {_kind(array)}.") from error
    if not spec.shape.is_compatible_with(tensor.shape):
        raise BadRequestError(f"{rule}; got shape {_shape(tensor.shape)}.")
    return tensor


def _shape(shape: tf.TensorShape) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"


def _kind(array: np.ndarray) -> str:
    return "string" if array.dtype.kind in "OSU" else array.dtype.name


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
    # What the folder held when loading failed; a changed folder is tried again.
    failed_with: frozenset[tuple[str, int, int]] = frozenset()


class ModelStore:
    """The newest versions of a model folder that can be loaded.

    A new version is loaded and warmed up beside the old one and takes over at once
    when it is ready; requests under way keep the version they started with.  A version
    that fails to load is reported, the next older one stays or is loaded, and it is
    tried again when a file in its folder changes.  Removing a version's folder rolls
    back to the one before.

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
        self._newest = 0

    def refresh(self) -> None:
        """Looks at the folder once: loads new versions, drops old ones.

        Not to be called from two threads at once.
        """
        wanted: list[int] = []
        for version in reversed(versions(self.base_dir)):
            if len(wanted) == self._keep:
                break
            if self._is_loaded(version) or self._load(version):
                wanted.append(version)
        if not wanted:
            return  # what is loaded stays: better an old answer than none
        with self._lock:
            for version, entry in self._entries.items():
                if entry.model is not None and version not in wanted:
                    self._entries[version] = _Entry(State.END)
        if wanted[0] != self._newest:
            self._newest = wanted[0]
            logging.info("Serving %s version %d.", self.name, self._newest)
            if self._on_swap is not None:
                self._on_swap(self._newest)

    def _is_loaded(self, version: int) -> bool:
        with self._lock:
            entry = self._entries.get(version)
            return entry is not None and entry.model is not None

    def _load(self, version: int) -> bool:
        """Loads a version, unless it failed before and did not change since."""
        path = self.base_dir / str(version)
        files = _files(path)
        with self._lock:
            entry = self._entries.get(version)
            if entry is not None and entry.error and entry.failed_with == files:
                return False
            self._entries[version] = _Entry(State.LOADING)
        try:
            model = LoadedModel(path)
        # Whatever a foreign file makes the loader raise: the old version must stay.
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).split("\n")[0]
            logging.error("Version %d of %s did not load: %s", version, self.name, text)
            failed = _Entry(State.END, error=text, failed_with=files)
            with self._lock:
                self._entries[version] = failed
            return False
        with self._lock:
            self._entries[version] = _Entry(State.AVAILABLE, model)
        return True

    def get(self, name: str, version: int | None = None) -> LoadedModel:
        """Returns a loaded version, the newest by default.

        Raises:
          UnknownVersionError: For another model name or a version not loaded.
        """
        self._check_name(name)
        with self._lock:
            available = {v: e.model for v, e in self._entries.items() if e.model}
        chosen = max(available, default=None) if version is None else version
        model = available.get(chosen) if chosen is not None else None
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


def _files(path: pathlib.Path) -> frozenset[tuple[str, int, int]]:
    found = set()
    for file in path.rglob("*"):
        stat = file.stat()
        found.add((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
