"""The dataset contract: what it accepts, and that each fault is one line naming place, rule and way out."""

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.feature_spec import FILE_NAME, Chunk, FeatureSpec
from recsys.step import UserError

SPEC = {
    "feature_spec": {
        "user": {"dtype": "int32", "cardinality": 3},
        "item": {"dtype": "int32", "cardinality": 5},
        "label": {"dtype": "float32"},
    },
    "source_spec": {
        "train": [
            {"type": "parquet", "features": ["user", "item"], "files": ["ids_0.parquet", "ids_1.parquet"]},
            {"type": "csv", "features": ["label"], "files": ["labels.csv"]},
        ]
    },
    "channel_spec": {"user": ["user"], "item": ["item"], "label": ["label"]},
    "metadata": {"test_samples_per_series": 101},
}


def ids(user, item, dtype="int32"):
    return pa.table({"user": pa.array(user, dtype), "item": pa.array(item, dtype)})


@pytest.fixture
def folder(tmp_path):
    """A good dataset of 3 rows: two Parquet files with the ids, one csv file with the labels."""
    pq.write_table(ids([0, 1], [4, 3]), tmp_path / "ids_0.parquet")
    pq.write_table(ids([2], [0]), tmp_path / "ids_1.parquet")
    (tmp_path / "labels.csv").write_text("1\n0\n0.5\n")
    return tmp_path


def save(folder: Path, spec) -> Path:
    path = folder / FILE_NAME
    path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
    return path


def changed(place: str, value) -> dict:
    """SPEC with the entry at ``place`` (keys joined by /) replaced; a value of None removes it."""
    spec = copy.deepcopy(SPEC)
    *parents, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    entry = spec
    for key in parents:
        entry = entry[key]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return spec


def complaint(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_columns_come_back_in_file_order_with_the_declared_dtypes(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    columns = spec.columns("train", ["label", "user", "item"])
    assert list(columns) == ["label", "user", "item"]
    assert columns["user"].tolist() == [0, 1, 2]
    assert columns["item"].tolist() == [4, 3, 0]
    assert columns["label"].tolist() == [1, 0, 0.5]
    assert [columns[name].dtype for name in columns] == [np.float32, np.int32, np.int32]


def test_what_is_written_reads_back_equal(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    assert FeatureSpec.read(spec.write()) == spec
    assert FeatureSpec.read(folder) == spec
    assert yaml.safe_load((folder / FILE_NAME).read_text()) == SPEC


def test_a_folder_moves_with_its_files(folder, tmp_path_factory):
    save(folder, SPEC)
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "dataset")
    assert FeatureSpec.read(moved).columns("train", ["user"])["user"].tolist() == [0, 1, 2]


def test_file_uris_are_read_from_anywhere_even_with_a_blank_in_their_path(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "my data.csv"
    store.write_text("1\n1\n1\n")
    elsewhere = changed("source_spec/train/1/files", [store.as_uri()])
    spec = FeatureSpec.read(save(folder, elsewhere))
    assert spec.columns("train", ["label"])["label"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_spec_that_points_to_an_object_store_is_read_without_touching_it(folder, scheme):
    files = [f"{scheme}://a-bucket/movielens/ids.parquet"]
    remote = changed("source_spec/train/0/files", files)
    spec = FeatureSpec.read(save(folder, remote))
    assert spec.source_spec["train"][0].files == tuple(files)
    assert len(spec.digest()) == 64


def test_metadata_is_optional(folder):
    without = changed("metadata", None)
    assert FeatureSpec.read(save(folder, without)).metadata == {}


def test_a_feature_without_properties_may_be_empty_in_yaml(folder):
    text = yaml.safe_dump(changed("feature_spec/label", {})).replace("label: {}", "label:")
    columns = FeatureSpec.read(save(folder, text)).columns("train", ["label"])
    assert columns["label"].tolist() == [1, 0, 0.5]


def test_renaming_a_feature_everywhere_changes_nothing(folder):
    text = yaml.safe_dump(
        changed("source_spec/train/0", {"type": "csv", "features": ["user", "item"], "files": ["i.csv"]})
    )
    (folder / "i.csv").write_text("0,4\n1,3\n2,0\n")
    renamed = text.replace("- item", "- film").replace("  item:\n    card", "  film:\n    card")
    columns = FeatureSpec.read(save(folder, renamed)).columns("train", ["film"])
    assert columns["film"].tolist() == [4, 3, 0]


def test_the_digest_follows_the_data_and_the_spec(folder):
    digest = FeatureSpec.read(save(folder, SPEC)).digest()
    assert FeatureSpec.read(folder).digest() == digest
    (folder / "labels.csv").write_text("1\n0\n1\n")
    other_data = FeatureSpec.read(folder).digest()
    other_spec = FeatureSpec.read(save(folder, changed("metadata/seed", 1))).digest()
    assert len({digest, other_data, other_spec}) == 3


STRUCTURE = {
    "an unknown section": ("featurespec", {}, ["featurespec", "did you mean 'feature_spec'", "channel_spec"]),
    "a missing section": ("channel_spec", None, ["channel_spec", "missing"]),
    "an empty section": ("source_spec", {}, ["source_spec", "empty"]),
    "a section that is a list": ("feature_spec", ["user"], ["feature_spec", "not a mapping"]),
    "metadata that is a list": ("metadata", [1], ["metadata", "mapping"]),
    "an unknown property": (
        "feature_spec/user/cardinalty",
        3,
        ["'user'", "did you mean 'cardinality'", "max_hotness"],
    ),
    "an unknown dtype": (
        "feature_spec/label/dtype",
        "torch.int64",
        ["'label'", "torch.int64", "int8, int16, int32"],
    ),
    "a cardinality that is text": (
        "feature_spec/user/cardinality",
        "many",
        ["'user'", "cardinality", "whole number", "'auto'", "'many'"],
    ),
    "a cardinality of zero": ("feature_spec/user/cardinality", 0, ["'user'", "at least 1", "0"]),
    "properties that are a list": ("feature_spec/user", ["int32"], ["'user'", "must be a mapping", "dtype"]),
    "a mapping without chunks": ("source_spec/train", [], ["'train'", "list of chunks"]),
    "a chunk that is text": (
        "source_spec/train/0",
        "ids.parquet",
        ["'train'", "chunk", "type, features, files"],
    ),
    "an unknown chunk key": ("source_spec/train/0/path", "x", ["'train'", "'path'", "type, features, files"]),
    "a missing chunk key": ("source_spec/train/0/files", None, ["'train'", "'files'"]),
    "an unknown chunk type": (
        "source_spec/train/0/type",
        "torch_tensor",
        ["'train'", "torch_tensor", "parquet, csv"],
    ),
    "a chunk without files": ("source_spec/train/0/files", [], ["'train'", "files", "empty"]),
    "files that are text": ("source_spec/train/0/files", "ids_0.parquet", ["'train'", "files", "list"]),
    "a file that does not exist": (
        "source_spec/train/1/files",
        ["lables.csv"],
        ["'train'", "lables.csv", "relative to the YAML"],
    ),
    "a file URI that does not exist": (
        "source_spec/train/1/files",
        ["file:///no/such.csv"],
        ["'train'", "file:///no/such.csv"],
    ),
    "a store that cannot be read": (
        "source_spec/train/1/files",
        ["https://x.org/a.csv"],
        ["https://x.org/a.csv", "gs://", "s3://"],
    ),
    "a chunk feature that is not defined": (
        "source_spec/train/1/features",
        ["lable"],
        ["'train'", "'lable'", "did you mean 'label'"],
    ),
    "a feature in two chunks of one mapping": (
        "source_spec/train/1/features",
        ["user"],
        ["'train'", "'user'", "twice"],
    ),
    "a feature twice in one chunk": (
        "source_spec/train/0/features",
        ["user", "user"],
        ["'train'", "'user'", "twice"],
    ),
    "an unknown channel": (
        "channel_spec/user_ch",
        ["user"],
        ["user_ch", "did you mean 'user'", "onehot_categorical"],
    ),
    "a channel that is text": ("channel_spec/user", "user", ["'user'", "list"]),
    "a channel feature that is not defined": (
        "channel_spec/user",
        ["usr"],
        ["channel 'user'", "'usr'", "did you mean 'user'"],
    ),
    "a categorical without cardinality": (
        "channel_spec/onehot_categorical",
        ["label"],
        ["'label'", "onehot_categorical", "cardinality"],
    ),
    "a categorical of numbers that are not whole": (
        "feature_spec/item/dtype",
        "float32",
        ["channel 'item'", "float32", "int32, int64"],
    ),
    "a group of numbers that are not whole": (
        "channel_spec/group",
        ["label"],
        ["channel 'group'", "'label'", "float32", "int64"],
    ),
    "a feature twice in a channel": (
        "channel_spec/numerical",
        ["label", "label"],
        ["channel 'numerical'", "'label'", "twice"],
    ),
    "a list where one value is wanted": (
        "feature_spec/item/max_hotness",
        3,
        ["channel 'item'", "max_hotness", "multihot_categorical"],
    ),
    "a multi-hot without max_hotness": (
        "channel_spec/multihot_categorical",
        ["item"],
        ["'item'", "multihot_categorical", "max_hotness"],
    ),
}


@pytest.mark.parametrize(("place", "value", "named"), STRUCTURE.values(), ids=STRUCTURE.keys())
def test_reading_refuses(folder, place, value, named):
    path = save(folder, changed(place, value))
    with pytest.raises(UserError) as error:
        FeatureSpec.read(path)
    for text in (str(path), *named):
        assert text in complaint(error)


TEXTS = {
    "a truncated file": ("feature_spec:\n  user: {dtype: int32", "not a YAML file"),
    "a list": ("- feature_spec\n- source_spec\n", "must be a mapping with the sections feature_spec"),
    "an empty file": ("", "must be a mapping with the sections feature_spec"),
    "a feature whose name YAML reads as a boolean": (
        "feature_spec: {no: {}}\nsource_spec: {a: [1]}\nchannel_spec: {user: []}",
        "quotes",
    ),
}


@pytest.mark.parametrize(("text", "named"), TEXTS.values(), ids=TEXTS.keys())
def test_reading_refuses_yaml_that_is(folder, text, named):
    path = save(folder, text)
    with pytest.raises(UserError) as error:
        FeatureSpec.read(path)
    assert str(path) in complaint(error)
    assert named in complaint(error)


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{FILE_NAME}: no such file"):
        FeatureSpec.read(tmp_path)


def parquet(name, table):
    return lambda folder: pq.write_table(table, folder / name)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


VALUES = {
    "an id as large as the cardinality": (
        parquet("ids_1.parquet", ids([3], [0])),
        ["ids_1.parquet", "'user'", "3", "0 .. 2"],
    ),
    "a negative id": (
        parquet("ids_0.parquet", ids([0, 1], [-1, 3])),
        ["ids_0.parquet", "'item'", "-1", "0 .. 4"],
    ),
    "another dtype": (
        parquet("ids_0.parquet", ids([0, 1], [4, 3], "int64")),
        ["ids_0.parquet", "'user'", "int64", "int32"],
    ),
    "a missing value": (
        parquet("ids_0.parquet", ids([0, None], [4, 3])),
        ["ids_0.parquet", "'user'", "1 missing"],
    ),
    "a missing column": (
        parquet("ids_1.parquet", ids([2], [0]).drop(["item"])),
        ["ids_1.parquet", "'item'", "has user"],
    ),
    "chunks of different length": (
        text("labels.csv", "1\n0\n"),
        ["length", "labels.csv: 2 rows", "ids_1.parquet: 3 rows"],
    ),
    "a file that is not Parquet": (text("ids_0.parquet", "user,item\n0,1\n"), ["ids_0.parquet", "parquet"]),
    "a file that was removed since": (lambda folder: (folder / "labels.csv").unlink(), ["labels.csv", "csv"]),
    "a csv header line": (text("labels.csv", "label\n1\n0\n0\n"), ["labels.csv", "'label'", "no header"]),
    "a csv line with too many columns": (
        text("labels.csv", "1\n0,1\n1\n"),
        ["labels.csv", "Expected 1 columns, got 2"],
    ),
    "a csv cell that is empty": (text("labels.csv", '1\n""\n1\n'), ["labels.csv", "'label'"]),
    "an infinite csv value": (
        text("labels.csv", "1\ninf\n1\n"),
        ["labels.csv", "'label'", "1 values", "finite"],
    ),
    "an empty csv file": (text("labels.csv", ""), ["labels.csv", "Empty CSV"]),
}


@pytest.mark.parametrize(("spoil", "named"), VALUES.values(), ids=VALUES.keys())
def test_reading_columns_refuses(folder, spoil, named):
    spec = FeatureSpec.read(save(folder, SPEC))
    spoil(folder)
    with pytest.raises(UserError) as error:
        spec.columns("train", ["user", "item", "label"])
    for text in ("'train'", *named):
        assert text in complaint(error)


def test_chunks_of_different_length_are_refused_even_when_one_is_not_wanted(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    (folder / "labels.csv").write_text("1\n0\n")
    with pytest.raises(UserError, match="differ in length"):
        spec.columns("train", ["user"])


def test_a_parquet_file_cut_short_is_refused(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    content = (folder / "ids_0.parquet").read_bytes()
    (folder / "ids_0.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"ids_0\.parquet: cannot be read as parquet"):
        spec.columns("train", ["user"])


def test_nan_in_parquet_is_refused(folder):
    pq.write_table(pa.table({"label": pa.array([1, float("nan"), 0], "float32")}), folder / "labels.parquet")
    chunk = {"type": "parquet", "features": ["label"], "files": ["labels.parquet"]}
    spec = FeatureSpec.read(save(folder, changed("source_spec/train/1", chunk)))
    with pytest.raises(UserError, match="'label' has 1 values that are NaN or infinite"):
        spec.columns("train", ["label"])


UNDECLARED = {
    "ids that are not integers": ({"cardinality": 3}, "0.0\n1.0\n", "1.0\n", "ids must be integers"),
    "text": ({}, "a\n", "b\n", "holds string; allowed: int8"),
    "files of different dtypes": ({}, "0\n1\n", "0.5\n", "in a.csv; files of one chunk must agree"),
}


@pytest.mark.parametrize(
    ("properties", "first", "second", "named"), UNDECLARED.values(), ids=UNDECLARED.keys()
)
def test_without_a_declared_dtype_columns_refuse(folder, properties, first, second, named):
    (folder / "a.csv").write_text(first)
    (folder / "b.csv").write_text(second)
    sections = {
        "feature_spec": {"value": properties},
        "source_spec": {"train": [{"type": "csv", "features": ["value"], "files": ["a.csv", "b.csv"]}]},
        "channel_spec": {"numerical": ["value"]},
    }
    with pytest.raises(UserError) as error:
        FeatureSpec.read(save(folder, sections)).columns("train", ["value"])
    assert named in complaint(error)


@pytest.mark.parametrize("name", ["8-bit", "whole"])
def test_csv_numbers_that_do_not_fit_their_dtype_are_refused_not_wrapped(folder, name):
    (folder / "labels.csv").write_text({"8-bit": "1\n300\n1\n", "whole": "1\n1.5\n1\n"}[name])
    spec = FeatureSpec.read(save(folder, changed("feature_spec/label/dtype", "int8")))
    with pytest.raises(UserError, match="labels.csv: cannot be read as csv.*invalid value"):
        spec.columns("train", ["label"])


def test_a_model_says_which_channel_it_misses(folder):
    spec = FeatureSpec.read(save(folder, changed("channel_spec/label", None)))
    spec.require("vae_cf", channels=["user", "item"], mappings=["train"])
    with pytest.raises(UserError) as error:
        spec.require("ncf", channels=["user", "item", "label"])
    for named in (FILE_NAME, "ncf", "'label'", "user: ['user']"):
        assert named in complaint(error)
    with pytest.raises(UserError, match="exactly one feature in channel 'label'"):
        spec.feature("label")


def test_a_model_says_which_mapping_it_misses(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    with pytest.raises(UserError) as error:
        spec.require("vae_cf", mappings=["train", "validation_input"])
    for named in (FILE_NAME, "vae_cf", "'validation_input'", "has train", "another model"):
        assert named in complaint(error)


def test_columns_name_an_unknown_mapping_or_feature(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    with pytest.raises(UserError, match=r"no such mapping; it has train \(mapping 'test'\)"):
        spec.columns("test", ["user"])
    with pytest.raises(UserError, match="no feature 'rating'; it has user, item, label"):
        spec.columns("train", ["rating"])


def test_writing_refuses_what_reading_would_refuse_and_leaves_no_file(folder):
    spec = FeatureSpec.read(save(folder, SPEC))
    lost = FeatureSpec(
        folder,
        spec.feature_spec,
        {"train": (Chunk("parquet", ("user",), ("lost.parquet",)),)},
        spec.channel_spec,
    )
    (folder / FILE_NAME).unlink()
    with pytest.raises(UserError, match=r"lost\.parquet"):
        lost.write()
    assert not (folder / FILE_NAME).exists()


@pytest.mark.parametrize("cardinality", ["auto", None])
def test_a_cardinality_that_is_yet_to_be_found_is_read_but_no_model_takes_it(folder, cardinality):
    path = save(folder, changed("feature_spec/user/cardinality", cardinality))
    spec = FeatureSpec.read(path)
    assert spec.feature_spec["user"]["cardinality"] == "auto"
    assert FeatureSpec.read(spec.write()) == spec
    with pytest.raises(UserError) as error:
        spec.require("ncf", channels=["user"])
    for named in (FILE_NAME, "ncf", "'user'", "'auto'", "recsys.transcode"):
        assert named in complaint(error)


def test_properties_may_be_null(folder):
    spec = FeatureSpec.read(save(folder, changed("feature_spec/label", {})))
    text = (folder / FILE_NAME).read_text().replace("label: {}", "label:")
    assert "label:\n" in text
    assert FeatureSpec.read(save(folder, text)) == spec


def test_a_spec_can_be_read_before_its_files_exist(folder):
    path = save(folder, changed("source_spec/train/1/files", ["later.csv"]))
    assert FeatureSpec.read(path, with_files=False).source_spec["train"][1].files == ("later.csv",)


def test_values_of_a_cardinality_that_is_yet_to_be_found_are_checked(folder):
    spec = FeatureSpec.read(save(folder, changed("feature_spec/user/cardinality", "auto")))
    assert spec.columns("train", ["user"])["user"].tolist() == [0, 1, 2]
    pq.write_table(ids([-1], [0]), folder / "ids_1.parquet")
    with pytest.raises(UserError, match="'user' has ids from -1"):
        spec.columns("train", ["user"])
