"""docs/training.md lists every key of a run and of an optimiser, with its default."""

import models  # noqa: F401 - chooses Keras 2, so it comes first

import pathlib  # isort: skip
import re  # isort: skip

from models.optimizers.groups import GroupConfig  # isort: skip
from models.training.config import FREE_KEYS, RunConfig  # isort: skip

PAGE = (pathlib.Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_page_lists_every_key_of_a_run_with_its_default():
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section("Run keys"), re.M))
    assert list(listed) == list(RunConfig.model_fields)
    for name, info in RunConfig.model_fields.items():
        default = "{}" if name == "profile" else info.default
        expected = "(none)" if info.is_required() else f"`{default}`"
        assert listed[name] == expected, name


def test_page_names_the_keys_that_may_change_between_starts():
    sentence = PAGE.split("## Run keys")[0].rsplit("differ;", 1)[1]
    assert set(re.findall(r"`(\w+)`", sentence)) == FREE_KEYS


def test_page_lists_every_key_of_an_optimiser():
    rows = re.findall(r"^\| (`.+?`) \|", section("Optimisers"), re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert set(named) == set(GroupConfig.model_fields)
