"""What is learnt from training rows before encoding: the other half of the spec.

`Fitted` holds the domain names in index order, the vocabularies, the parameters of
numeric features and the popularity tables.  Spec + Fitted encode a raw row the same
way everywhere: in the Beam job (`features/encode.py`) and in the serving graph.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from features import spec as spec_lib
from features.spec import DatasetSpec
from features.vocab import Vocab


@dataclasses.dataclass(frozen=True)
class NumericParams:
    """encoded = (f(x) - shift) / scale, f = identity or signed log; or `boundaries`.

    `boundaries` (bucketise): id = NUM_RESERVED_IDS + number of boundaries <= x.
    """

    shift: float = 0.0
    scale: float = 1.0
    boundaries: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fitted:
    """See the module's docstring.

    Attributes:
      domains: Domain names in index order.
      domain_values: Raw value (as string) of the domain column -> domain index.
      domain_default: Index for any other raw value, or -1: reject the row.
      vocabs: Vocabulary per feature that owns one.
      numeric: Parameters per numeric feature (popularity features included).
      popularity: Per popularity feature, float32 [num ids of `of`]: the raw value
        log(1 + count) per id; index 0 and 1 (pad, unknown) hold 0.
    """

    domains: tuple[str, ...]
    domain_values: Mapping[str, int]
    domain_default: int
    vocabs: Mapping[str, Vocab]
    numeric: Mapping[str, NumericParams]
    popularity: Mapping[str, np.ndarray]

    def num_ids(self, spec: DatasetSpec) -> dict[str, int]:
        """Returns the table size per table-owning feature, reserved ids included."""
        sizes = {}
        for feature in spec.features:
            name = feature.name
            if isinstance(feature, spec_lib.Numeric):
                if feature.transform == "bucketise":
                    count = len(self.numeric[name].boundaries) + 1
                    sizes[name] = spec_lib.NUM_RESERVED_IDS + count
            elif name in self.vocabs:
                sizes[name] = self.vocabs[name].num_ids
            elif isinstance(
                getattr(feature, "encoding", None), spec_lib.Hashing
            ) and not getattr(feature, "shares", None):
                sizes[name] = spec_lib.NUM_RESERVED_IDS + feature.encoding.num_buckets
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Returns what `dataset.json` holds; big arrays lie in `vocab/`."""
        return {
            "domains": list(self.domains),
            "domain_values": dict(self.domain_values),
            "domain_default": self.domain_default,
            "vocabs": {
                name: {"version": v.version, "size": len(v), "sha256": v.sha256}
                for name, v in sorted(self.vocabs.items())
            },
            "numeric": {
                name: dataclasses.asdict(p) for name, p in sorted(self.numeric.items())
            },
            "popularity": {
                name: hashlib.sha256(_float32(v)).hexdigest()
                for name, v in sorted(self.popularity.items())
            },
        }

    def fingerprint(self) -> str:
        """Returns a sha256 over everything that changes an encoded row."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, data_dir: str | pathlib.Path) -> None:
        """Writes `vocab/<feature>.txt` and `vocab/<feature>.popularity.npy`."""
        folder = pathlib.Path(data_dir) / "vocab"
        folder.mkdir(parents=True, exist_ok=True)
        for name, vocab in self.vocabs.items():
            vocab.save(folder / f"{name}.txt")
        for name, values in self.popularity.items():
            np.save(folder / f"{name}.popularity.npy", values.astype("<f4"))

    @classmethod
    def load(cls, data_dir: str | pathlib.Path, values: Mapping[str, Any]) -> "Fitted":
        """Returns what `save` and `to_dict` wrote."""
        folder = pathlib.Path(data_dir) / "vocab"
        return cls(
            domains=tuple(values["domains"]),
            domain_values=dict(values["domain_values"]),
            domain_default=values["domain_default"],
            vocabs={
                name: Vocab.load(folder / f"{name}.txt", version=v["version"])
                for name, v in values["vocabs"].items()
            },
            numeric={
                name: NumericParams(p["shift"], p["scale"], tuple(p["boundaries"]))
                for name, p in values["numeric"].items()
            },
            popularity={
                name: np.load(folder / f"{name}.popularity.npy")
                for name in values["popularity"]
            },
        )


def _float32(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()
