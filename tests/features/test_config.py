import pydantic
import pytest
import yaml

from features.config import (
    Config,
    ConfigError,
    apply_overrides,
    lookup_error,
    nearest,
    read_yaml,
)
from features.spec import DatasetSpec
from tests.helpers.feature_rows import spec_values


class Inner(Config):
    size: int = 1
    names: list[str] = []


class Outer(Config):
    inner: Inner = Inner()
    rate: float = pydantic.Field(0.5, gt=0)


def test_unknown_key_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Outer.rat: unknown.*mean 'rate'"):
        Outer.parse({"rat": 1.0})
    with pytest.raises(ConfigError, match=r"inner\.sise: .*known: names, size.*'size'"):
        Outer.parse({"inner": {"sise": 1}}, where="run.yaml")


def test_error_names_place_rule_and_value_of_every_bad_field():
    with pytest.raises(ConfigError) as caught:
        Outer.parse({"rate": -1, "inner": {"size": "big"}}, where="run.yaml")
    text = str(caught.value)
    assert "Outer in run.yaml" in text
    assert "Outer.rate: Input should be greater than 0 (got -1)" in text
    assert "Outer.inner.size:" in text
    assert "(got 'big')" in text


def test_config_is_frozen_and_checks_its_defaults():
    with pytest.raises(pydantic.ValidationError):
        Outer().rate = 1.0


def test_load_applies_typed_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rate: 0.25\n")
    config = Outer.load(path, ["inner.size=3", "inner.names=[a, b]"])
    assert config == Outer(rate=0.25, inner=Inner(size=3, names=["a", "b"]))
    assert Outer.parse(yaml.safe_load(config.to_json())) == config


def test_overrides_leave_the_given_values_alone():
    values = {"a": {"b": 1}}
    assert apply_overrides(values, ["a.b=2"]) == {"a": {"b": 2}}
    assert values == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [("a.b", "a.b=value"), ("=3", "a.b=value"), ("a.b.c=3", "'b' is a value")],
)
def test_malformed_override_is_an_error(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"a": {"b": 1}}, [override])


@pytest.mark.parametrize(
    ("text", "message"), [("- 1\n", "got list"), ("a: [\n", "must be valid YAML")]
)
def test_file_that_is_no_mapping_is_an_error(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_key_written_twice_is_an_error_and_names_both_lines(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: {c: 2, d: 3, c: 4}\n")
    with pytest.raises(ConfigError, match=r"(?s)'c'.*first in line 2.*line 2, column"):
        read_yaml(path)


def test_key_beside_a_merged_one_overrides_it(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\n")
    values = read_yaml(path)
    assert values["b"] == {"x": 1, "y": 3}
    assert values["c"] == {"x": 4, "y": 3}


def test_override_that_is_no_yaml_is_an_error_that_shows_it():
    with pytest.raises(ConfigError, match=r"--set 'a=\[x' must be valid YAML"):
        apply_overrides({}, ["a=[x"])


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="existing file"):
        read_yaml(tmp_path / "none.yaml")


def test_nearest_is_silent_when_nothing_is_close():
    assert nearest("mmeo", ["mmoe", "ple"]) == " Did you mean 'mmoe'?"
    assert nearest("zzz", ["mmoe"]) == ""
    text = str(lookup_error("method", "mmeo", ["ple", "mmoe"]))
    assert text == "method must be one of mmoe, ple; got 'mmeo'. Did you mean 'mmoe'?"


def test_error_names_list_items_and_leaves_union_tags_out():
    values = spec_values()
    values["features"][3]["role"] = "itm"
    values["split"] = {"by": "random", "test": 2}
    with pytest.raises(ConfigError) as error:
        DatasetSpec.parse(values)
    text = str(error.value)
    assert "DatasetSpec.features.price.role: Input should be 'user'" in text
    assert "DatasetSpec.split.test: Input should be less than 1 (got 2)" in text


def test_rule_between_keys_is_told_without_the_whole_config():
    values = spec_values()
    values["features"][6]["of"] = "item_if"
    with pytest.raises(ConfigError) as error:
        DatasetSpec.parse(values)
    line = str(error.value).splitlines()[1]
    assert line.endswith("got 'item_if'. Did you mean 'item_id'?")
