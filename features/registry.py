"""Data sets by name, as "module:function"; loaded when used."""

import importlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from features.config import (
    ConfigError,
    apply_overrides,
    lookup_error,
    parse_yaml,
    read_yaml,
)
from features.spec import DatasetSpec, DomainIndicator

DATASETS = {
    "amazon_timed": "features.datasets.amazon_timed:spec",
    "amazon_timed_beauty": "features.datasets.amazon_timed:spec_beauty",
    "epinions": "features.datasets.epinions:spec",
    "epinions_time": "features.datasets.epinions:spec_time",
    "kuairand_pure": "features.datasets.kuairand_pure:spec",
    "movielens_1m": "features.datasets.movielens_1m:spec",
    "movielens_1m_random": "features.datasets.movielens_1m:spec_random",
    "planted_aread": "features.datasets.planted:spec_aread",
    "planted_cctl": "features.datasets.planted:spec_cctl",
    "planted_ecat": "features.datasets.planted:spec_ecat",
    "planted_m3oe": "features.datasets.planted:spec_m3oe",
    "planted_ssctl": "features.datasets.planted:spec_ssctl",
    "synthetic": "features.datasets.synthetic:spec",
}

_FILE_SUFFIXES = (".yaml", ".yml", ".json")
_NAMED_LISTS = ("features", "tasks")  # `--set features.history.max_length=50`
_KINDS = ("by", "kind")  # a change of these makes the sibling keys meaningless


def dataset_spec(name: str, overrides: Iterable[str] = ()) -> DatasetSpec:
    """Returns the spec of a registered data set, or the one in a YAML file.

    Args:
      name: A name of `DATASETS`, or the path of a `.yaml`, `.yml` or `.json` file.
      overrides: `a.b=value` texts.  Features and tasks are named, not numbered:
        `features.history.max_length=50`, `tasks.like={column: is_like}` (adds or
        changes one), `features.age=null` (leaves one out), `split.by=random`.

    Raises:
      LookupError: For an unknown name, listing the known ones and the nearest.
      ConfigError: For a spec or an override that is not valid.
    """
    if name.endswith(_FILE_SUFFIXES) or pathlib.Path(name).is_file():
        values, where = read_yaml(name), name
    else:
        if name not in DATASETS:
            raise lookup_error("dataset", name, DATASETS)
        module, _, function = DATASETS[name].partition(":")
        spec = getattr(importlib.import_module(module), function)()
        values, where = spec.model_dump(mode="json"), f"data set {name}"
    overrides = list(overrides)
    if overrides:
        values = _override(values, overrides)
        where += " with --set"
    return DatasetSpec.parse(values, where=where)


def _override(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    values = json.loads(json.dumps(values))
    named = [k for k in _NAMED_LISTS if any(o.startswith(f"{k}.") for o in overrides)]
    for key in named:
        values[key] = _by_name(key, values.get(key))
    for item in overrides:
        _forget_siblings(values, item)
        values = apply_overrides(values, [item])
    for key in named:
        values[key] = _as_list(key, values[key])
    return values


def _by_name(key: str, items: Any) -> Any:
    """Returns the list as a mapping by name, where it is a list of named things."""
    if not isinstance(items, list):
        return items
    items = [
        {"name": DomainIndicator.model_fields["name"].default, **item}
        if isinstance(item, dict) and item.get("kind") == "domain"
        else item
        for item in items
    ]
    if not all(isinstance(item, dict) and "name" in item for item in items):
        raise ConfigError(
            f"DatasetSpec.{key} must be a list of items with a name; got {items!r}. "
            "Give each of them a name before using --set."
        )
    return {item["name"]: item for item in items}


def _as_list(key: str, items: Any) -> Any:
    if not isinstance(items, dict):
        return items
    for name, item in items.items():
        if item is not None and not isinstance(item, dict):
            raise ConfigError(
                f"--set {key}.{name} must be a mapping such as {{column: x}}, or "
                f"null to leave it out; got {item!r}."
            )
    return [{"name": name, **item} for name, item in items.items() if item is not None]


def _forget_siblings(values: dict[str, Any], override: str) -> None:
    """Empties the group whose `by` or `kind` an override changes."""
    path, _, text = override.partition("=")
    *parents, last = path.split(".")
    node: Any = values
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if last in _KINDS and isinstance(node, dict) and parents:
        try:
            new = parse_yaml(text, where=override)
        except ConfigError:
            return  # apply_overrides meets the same text and says what is wrong
        if node.get(last) not in (None, new):
            for key in [k for k in node if k != "name"]:
                del node[key]
