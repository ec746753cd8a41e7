import json

from features import json_schema
from features.spec import DatasetSpec


def test_schema_names_every_key_and_forbids_others():
    schema = json_schema.dataset_spec_schema()
    assert set(schema["properties"]) == set(DatasetSpec.model_fields)
    assert schema["additionalProperties"] is False
    hashing = schema["$defs"]["Hashing"]["properties"]["num_buckets"]
    assert (hashing["type"], hashing["minimum"]) == ("integer", 1)


def test_main_prints_the_schema_or_writes_it(tmp_path, capsys):
    assert json_schema.main([]) == 0
    printed = capsys.readouterr().out
    assert json_schema.main(["--out", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text("utf-8") == printed
    assert json.loads(printed) == json_schema.dataset_spec_schema()


def test_main_says_when_the_file_cannot_be_written(tmp_path, capsys):
    assert json_schema.main(["--out", str(tmp_path / "none" / "s.json")]) == 1
    assert "--out must be a file that can be written" in capsys.readouterr().err
