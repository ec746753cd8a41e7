import models  # noqa: F401 - chooses Keras 2, so it comes first

import dataclasses  # isort: skip

import pytest  # isort: skip

from features.schema import ModelSchema  # isort: skip
from models.cctl import transfer  # isort: skip
from tests.models.methods import data  # isort: skip

SCHEMA = data.make_schema()


def resolve(target="d1", **settings):
    return transfer.resolve("CCTL", SCHEMA, target_domain=target, **settings)


def names(fields):
    return [f.name for f in fields]


def test_all_other_domains_and_all_fields_but_the_indicator_by_default():
    plan = resolve()
    assert (plan.target, plan.sources) == ("d1", ("d0", "d2"))
    assert plan.source_index == (0, 0, 1)
    assert plan.same_fields
    assert names(plan.target_fields) == ["user", "item", "tags", "history", "price"]


def test_fields_are_in_schema_order_whatever_the_order_named():
    plan = resolve(
        source_domains=("d2",),
        target_features=("item", "user"),
        source_features=("user", "item"),
    )
    assert plan.sources == ("d2",)
    assert plan.same_fields
    assert names(plan.source_fields) == ["user", "item"]


def test_wrong_names_are_refused_in_words():
    with pytest.raises(LookupError, match=r"CCTL.target_domain must be one of d0, d1"):
        resolve("d9")
    with pytest.raises(LookupError, match=r"CCTL.source_domains .* got 'd9'"):
        resolve(source_domains=("d0", "d9"))
    for bad in (("d1",), ("d0", "d0")):
        with pytest.raises(ValueError, match="other domains than the target 'd1'"):
            resolve(source_domains=bad)
    with pytest.raises(
        LookupError, match=r"CCTL.source_features .* 'domain_indicator'"
    ):
        resolve(source_features=("domain_indicator",))
    with pytest.raises(ValueError, match=r"\(user\); got 'item' \(item\)"):
        resolve(target_features=("user", "history"), source_features=("user", "item"))


def test_paired_id_is_the_users_largest_shared_one_by_default():
    plan = resolve()
    assert transfer.paired_fields("CCTL", plan, (), {}) == (("user",), ())
    assert transfer.paired_fields("CCTL", plan, ("item",), {}) == (("item",), ())
    apart = resolve(target_features=("item",), source_features=("item", "price"))
    assert transfer.paired_fields("CCTL", apart, (), {}) == ((), ())
    with pytest.raises(LookupError, match=r"CCTL.ren_ids must be one of item; got 'us"):
        transfer.paired_fields("CCTL", apart, ("user",), {})


def test_histories_are_named_for_the_target_and_every_source():
    one, two = resolve(source_domains=("d0",)), resolve()
    given = {"target": "history", "source": "tags"}
    assert transfer.paired_fields("CCTL", one, (), given)[1] == ("history", "tags")
    with pytest.raises(ValueError, match="for each of target, d0, d2; got target, sou"):
        transfer.paired_fields("CCTL", two, (), given)
    given = {"target": "history", "d2": "tags", "d0": "history"}
    assert transfer.paired_fields("CCTL", two, (), given)[1] == (
        "history",
        "history",
        "tags",
    )
    with pytest.raises(LookupError, match=r"CCTL.ren_sequences must be one of history"):
        transfer.paired_fields(
            "CCTL", one, (), {"target": "history", "source": "price"}
        )


def test_histories_of_different_widths_are_refused():
    fields = tuple(
        dataclasses.replace(f, width=6) if f.name == "tags" else f
        for f in SCHEMA.features
    )
    schema = ModelSchema(fields, SCHEMA.domains, SCHEMA.tasks)
    plan = transfer.resolve("CCTL", schema, target_domain="d1", source_domains=("d0",))
    with pytest.raises(ValueError, match="'history' with 4 and 'tags' with 6"):
        transfer.paired_fields(
            "CCTL", plan, (), {"target": "history", "source": "tags"}
        )
