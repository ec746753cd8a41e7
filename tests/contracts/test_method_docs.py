"""Each method's page lists its knobs with their defaults, and tests that exist."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import pathlib  # isort: skip
import re  # isort: skip

import pytest  # isort: skip

from models import registry  # isort: skip

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ROOT / "docs/methods"


def page(name):
    return (PAGES / f"{name}.md").read_text("utf-8")


def knobs(text):
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_page_lists_every_knob_with_its_default(name):
    listed = knobs(page(name))
    fields = registry.method_class(name).Config.model_fields
    assert list(listed) == list(fields)
    for field, info in fields.items():
        if field != "optimizer":  # said in words
            assert listed[field] == f"`{info.default}`", field


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_page_names_tests_that_exist(name):
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", page(name)))
    assert named
    assert [t for t in named if f"def {t}(" not in sources] == []


def test_m3oe_page_has_all_fifteen_properties():
    numbers = re.findall(r"^\| (\d+) \| .*`test_", page("m3oe"), re.MULTILINE)
    assert [int(n) for n in numbers] == list(range(1, 16))


def test_every_page_is_of_a_method():
    assert {p.stem for p in PAGES.glob("*.md")} == set(registry.METHODS)
