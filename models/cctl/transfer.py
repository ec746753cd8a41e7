"""Who teaches whom: the target, its sources, and the fields that each is read by."""

import dataclasses
from collections.abc import Mapping, Sequence

from features.config import lookup_error
from features.schema import FeatureInfo, ModelSchema
from models.layers.tokens import token_of


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A target domain and its source domains, resolved against a schema.

    Attributes:
      target: Name of the target domain.
      sources: Names of the S source domains, in index order; may be empty.
      target_fields: Fields that target rows are read by, in schema order.
      source_fields: The same of source rows.
      domains: All domains of the schema.
      source_index: By domain index, the place among `sources`; 0 for other domains.
    """

    target: str
    sources: tuple[str, ...]
    target_fields: tuple[FeatureInfo, ...]
    source_fields: tuple[FeatureInfo, ...]
    domains: tuple[str, ...]
    source_index: tuple[int, ...]

    @property
    def same_fields(self) -> bool:
        """Whether source rows are read by the same fields as target rows."""
        return self.source_fields == self.target_fields


def resolve(
    owner: str,
    schema: ModelSchema,
    *,
    target_domain: str,
    source_domains: Sequence[str] = (),
    target_features: Sequence[str] = (),
    source_features: Sequence[str] = (),
) -> Transfer:
    """Returns the transfer that these names mean.

    Args:
      owner: Name in errors.
      schema: Inputs and domains.
      target_domain: Name of the target.
      source_domains: Names of the sources; empty = all other domains.
      target_features: Names; empty = all but the domain indicator.
      source_features: The same for source rows.

    Raises:
      LookupError: For a name that the schema does not have.
      ValueError: For a target among its sources, a domain named twice, the domain
        indicator as a feature, or a source token that the target has none for.
    """
    if target_domain not in schema.domains:
        raise lookup_error(f"{owner}.target_domain", target_domain, schema.domains)
    chosen = tuple(source_domains) or tuple(
        d for d in schema.domains if d != target_domain
    )
    for name in chosen:
        if name not in schema.domains:
            raise lookup_error(f"{owner}.source_domains", name, schema.domains)
    if target_domain in chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{owner}.source_domains must be other domains than the target "
            f"{target_domain!r}, each once; got {', '.join(chosen)}."
        )
    sources = tuple(d for d in schema.domains if d in chosen)
    target_fields = _fields(f"{owner}.target_features", schema, target_features)
    source_fields = _fields(f"{owner}.source_features", schema, source_features)
    known = {token_of(f) for f in target_fields}
    for field in source_fields:
        if token_of(field) not in known:
            raise ValueError(
                f"{owner}.source_features must be of tokens that target_features has "
                f"({', '.join(sorted(known))}); got {field.name!r} "
                f"({token_of(field)}). Leave it out or give the target such a feature."
            )
    return Transfer(
        target_domain,
        sources,
        target_fields,
        source_fields,
        schema.domains,
        tuple(sources.index(d) if d in sources else 0 for d in schema.domains),
    )


def paired_fields(
    owner: str, plan: Transfer, ids: Sequence[str], sequences: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns id fields to look up in both domains, and histories: target, sources.

    Args:
      owner: Name in errors.
      plan: The transfer.
      ids: Names of fields that both sides have; empty = the user id, that is the one
        of the user's ids with most values (none, if they share none).
      sequences: Names of histories by `target` and `source` (several sources: by
        their names); empty = none.

    Raises:
      LookupError: For a name that is no such field.
      ValueError: For histories of different widths.
    """
    own = {f.name: f for f in plan.target_fields}
    other = {f.name: f for f in plan.source_fields}
    shared = {n: f for n, f in own.items() if n in other and f.kind == "id"}
    ids = tuple(ids)
    for name in ids:
        if name not in shared:
            raise lookup_error(f"{owner}.ren_ids", name, shared)
    if not ids:
        # The user id: of the user's features the one with most values.
        users = [f for f in shared.values() if f.role == "user"]
        ids = tuple(f.name for f in sorted(users, key=lambda f: -f.num_ids)[:1])
    if not sequences:
        return ids, ()
    keys = ("target", *(plan.sources if len(plan.sources) > 1 else ("source",)))
    if set(sequences) != set(keys):
        raise ValueError(
            f"{owner}.ren_sequences must name a history for each of {', '.join(keys)}; "
            f"got {', '.join(sequences) or 'none'}."
        )
    names = tuple(sequences[key] for key in keys)
    for name, fields in zip(names, (own, *[other] * (len(names) - 1)), strict=True):
        lists = {n: f for n, f in fields.items() if f.kind in ("ids", "sequence")}
        if name not in lists:
            raise lookup_error(f"{owner}.ren_sequences", name, lists)
        if fields[name].width != own[names[0]].width:
            raise ValueError(
                f"{owner}.ren_sequences must have equal widths; got {names[0]!r} with "
                f"{own[names[0]].width} and {name!r} with {fields[name].width}."
            )
    return ids, names


def _fields(
    owner: str, schema: ModelSchema, names: Sequence[str]
) -> tuple[FeatureInfo, ...]:
    usable = {f.name: f for f in schema.features if f.role != "domain"}
    for name in names:
        if name not in usable:
            # The domain indicator too: each side has tables of its own instead.
            raise lookup_error(owner, name, usable)
    return tuple(f for f in usable.values() if not names or f.name in names)
