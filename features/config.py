"""Typed, frozen configuration: the base model and the errors it raises.

Everything a user writes in YAML (dataset specs, run configs, method configs) is
a `Config`.  Unknown keys are errors that name the nearest known one, so a typing
slip can never silently leave a default in force.
"""

import difflib
import json
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Self

import pydantic
import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used; the text names field, rule and cure."""


class Config(pydantic.BaseModel):
    """Base of every typed configuration: frozen, strict about keys and types."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=False, validate_default=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Returns the validated config.

        Args:
          values: Plain mapping, as it comes out of YAML or JSON.
          where: File or place named in the error.

        Raises:
          ConfigError: Naming every bad field, the rule, the value and the cure.
        """
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(cls, error, where, values)) from error

    @classmethod
    def load(cls, path: str | pathlib.Path, overrides: Iterable[str] = ()) -> Self:
        """Returns the config in a YAML file, with `a.b=value` overrides applied."""
        values = read_yaml(path)
        return cls.parse(apply_overrides(values, overrides), where=str(path))

    def to_json(self) -> str:
        """Returns canonical JSON: sorted keys, so equal configs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2)


def read_yaml(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the mapping in a YAML (or JSON) file, or says what is wrong with it."""
    path = pathlib.Path(path)
    if not path.exists():
        raise ConfigError(
            f"config path must be an existing file; got {str(path)!r}. "
            "Check the path, or list the built-in names with --help."
        )
    values = parse_yaml(path.read_text("utf-8"), where=str(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping at its top; got {type(values).__name__}."
        )
    return values


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with one key twice, of which the last would win unseen."""

    # Before merges (`<<`) are resolved: a key may well stand beside a merged one.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                first = seen[key.tag, key.value].line + 1
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} must stand once in a mapping; got it "
                    f"again, first in line {first}. Remove one of them",
                    problem_mark=key.start_mark,
                )
            seen[key.tag, key.value] = key.start_mark
        return node


def parse_yaml(text: str, *, where: str) -> Any:
    """Returns what YAML (or JSON) text holds.

    Raises:
      ConfigError: For text that is not YAML, or a key twice in a mapping.
    """
    try:
        return yaml.load(text, _UniqueKeys)  # a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} must be valid YAML: {error}") from error


def apply_overrides(
    values: Mapping[str, Any], overrides: Iterable[str]
) -> dict[str, Any]:
    """Returns `values` with every `a.b=value` applied; values are YAML scalars.

    >>> apply_overrides({"a": {"b": 1}}, ["a.b=2", "c=[x, y]"])
    {'a': {'b': 2}, 'c': ['x', 'y']}
    """
    result = json.loads(json.dumps(dict(values)))
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set must be written a.b=value; got {item!r}.")
        node = result
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(
                    f"--set {item!r}: {parent!r} is a value, not a group of keys."
                )
        node[last] = parse_yaml(text, where=f"--set {item!r}")
    return result


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?`, or an empty text when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup_error(owner: str, name: object, known: Iterable[str]) -> LookupError:
    """Returns the error for a name that a registry does not have."""
    known = sorted(known)
    return LookupError(
        f"{owner} must be one of {', '.join(known)}; got {name!r}."
        f"{nearest(str(name), known)}"
    )


def _explain(
    cls: type[pydantic.BaseModel],
    error: pydantic.ValidationError,
    where: str,
    values: Mapping[str, Any],
) -> str:
    lines = []
    for item in error.errors():
        path = ".".join(_readable(item["loc"], values)) or "(top)"
        rule, value = item["msg"].removeprefix("Value error, "), item.get("input")
        if item["type"] == "extra_forbidden":
            known = _known_keys(cls, item["loc"][:-1])
            rule = f"unknown key; known: {', '.join(known)}."
            rule += nearest(str(item["loc"][-1]), known)
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        # A rule between several keys says itself which of the values it means.
        got = (
            "" if isinstance(value, dict) and rule != item["msg"] else f" (got {shown})"
        )
        lines.append(f"  {cls.__name__}.{path}: {rule}{got}")
    place = f" in {where}" if where else ""
    return f"{cls.__name__}{place} is not valid:\n" + "\n".join(lines)


def _readable(path: tuple[Any, ...], values: Any) -> list[str]:
    """The path with names for the numbers of named list items, union tags left out."""
    parts, node = [], values
    for part in path:
        inside = isinstance(part, int) and isinstance(node, list) and part < len(node)
        if inside:
            node = node[part]
            named = isinstance(node, dict) and isinstance(node.get("name"), str)
            parts.append(node["name"] if named else str(part))
        elif isinstance(node, dict) and part in (node.get("kind"), node.get("by")):
            continue  # the tag by which a union was told apart: no key of the user's
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
            parts.append(str(part))
    return parts


def _known_keys(cls: type[pydantic.BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Keys of the model that `path` leads to; union tags in the path are skipped."""
    models = {cls}
    for part in path:
        if isinstance(part, int):
            continue
        found = {
            sub
            for model in models
            if part in model.model_fields
            for sub in _models_in(model.model_fields[part].annotation)
        }
        tagged = {
            m
            for m in models
            for field in m.model_fields.values()
            if field.default == part and isinstance(part, str)
        }
        models = found or tagged or models
    return sorted({key for model in models for key in model.model_fields})


def _models_in(annotation: Any) -> set[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, pydantic.BaseModel) else set()
    return {m for arg in typing.get_args(annotation) for m in _models_in(arg)}
