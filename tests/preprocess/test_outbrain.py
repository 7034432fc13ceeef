"""Outbrain's preparation: features against a slow reference, faults, the split, the saved workflow."""

import csv
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import pytest

from components.preprocess.main import main
from components.preprocess.outbrain import buckets, dataset
from components.preprocess.outbrain.features import CLICK_RATE, MULTIHOT, NUMERICAL, ONEHOT
from components.preprocess.outbrain.ids import Index, bucket
from recsys.feature_spec import FeatureSpec
from recsys.outbrain_tables import COLUMNS
from recsys.raw_data import RawOutbrain

SEED = 5
FOLDS = 5
MODES = ("out_of_fold", "reference")
NA = "\\N"


# The raw files: a few hundred clicks with every fault that is kept and counted.


def generated(seed: int = 1) -> dict[str, list[list]]:
    """Table name to its rows, shuffled; ids have gaps, some values are missing or not understood."""
    rng = random.Random(seed)
    tables: dict[str, list[list]] = {name: [] for name in COLUMNS}
    documents = [7 * n + 3 for n in range(60)]
    ads = [5 * n + 1 for n in range(30)]
    describe(tables, documents, rng)
    for ad in ads[:27]:  # the rest are not in promoted_content
        row = [ad, rng.choice(documents[:55]), rng.randrange(100, 105), rng.choice([7, 8, 9, ""])]
        tables["promoted_content"].append(row)
    for display in range(2, 260, 2):
        shown = rng.sample(ads, rng.randrange(2, 8))
        clicks = {10: [], 20: shown[:2]}.get(display, shown[:1])
        tables["clicks_train"] += [[display, ad, int(ad in clicks)] for ad in shown]
        event = [display, f"u{display}", rng.choice(documents), rng.randrange(13 * 86_400_000)]
        event += [rng.choice([1, 2, 3]), rng.choice(["US>CA>803", "US>NY>501", "SG>00", "GB", "DE>ö"])]
        for place, values in FAULTS.items():
            event[place] = values.get(display, event[place])
        if display != 120:
            tables["events"].append(event)
    tables["events"] += [[999, "u", documents[0], 5, 1, "GB"], [3, "u", documents[0], 5, 1, "GB"]]
    for rows in tables.values():
        rng.shuffle(rows)
    for name in ("clicks_train", "events", "promoted_content", "documents_meta", "documents_topics"):
        again = list(tables[name][0])  # a second row of a key: the first counts
        if name == "clicks_train":
            again[2] = 1 - again[2]
        elif name != "documents_topics":
            again[1] = 17
        tables[name].append(again)
    return tables


# Column of events to the display's value.
FAULTS = {2: {110: NA}, 3: {90: "", 100: -5}, 4: {30: 4, 40: "x", 50: NA, 60: ""}, 5: {70: "", 80: NA}}


def describe(tables: dict[str, list[list]], documents: list[int], rng: random.Random) -> None:
    """Adds what is known of documents; the last ten are not in documents_meta."""
    for document in documents[:50]:
        time = datetime(2016, 6, 14) - timedelta(days=rng.choice([-3, 0, 1, 50, 900, 3640, 3651, 5000]))
        time += timedelta(seconds=rng.randrange(86_400))
        text = rng.choice([time.isoformat(" ")] * 9 + ["", NA, "yesterday", "2016-02-30 00:00:00"])
        text = "1969-12-31 23:59:59" if document == documents[9] else text
        publisher = rng.choice([1, 2, 3, 40, "", NA])
        tables["documents_meta"].append([document, rng.choice([11, 12, NA]), publisher, text])
    for name, subjects in (
        ("topics", [*range(20)]),
        ("entities", [hashlib.md5(bytes([n])).hexdigest() for n in range(25)]),
        ("categories", [1000 + n for n in range(8)]),
    ):
        for document in documents[5:55]:
            for subject in rng.sample(subjects, rng.randrange(6)):
                tables[f"documents_{name}"].append([document, subject, f"{rng.random():.6f}"])
        tables[f"documents_{name}"].append([documents[0], subjects[0], "0"])  # a weight of 0


def write_raw(folder: Path, tables: dict[str, list[list]]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS[name], *rows])
    files = {name: f"{name}.csv" for name in COLUMNS}
    RawOutbrain(dataset="toy", files=tuple(files.values()), tables=files).write(folder)
    return folder


def run(raw: Path, target: Path, seed: int = SEED, **options) -> int:
    return main(
        ["--raw", str(raw), "--model", "wide_deep", "--options", json.dumps(options), "--seed", str(seed)]
        + ["--dataset", str(target / "dataset"), "--statistics", str(target / "statistics.html")]
    )


def columns(spec: FeatureSpec, mapping: str) -> dict[str, np.ndarray]:
    return spec.columns(mapping, spec.source_spec[mapping][0].features)


def prepared(raw: Path, target: Path, **options) -> tuple[FeatureSpec, dict[str, dict[str, np.ndarray]]]:
    assert run(raw, target, **options) == 0
    spec = FeatureSpec.read(target / "dataset")
    return spec, {mapping: columns(spec, mapping) for mapping in spec.source_spec}


# The reference: plain Python, row by row, from the fact sheet's formulas.


def mixed(number: int) -> int:
    word = (1 << 64) - 1
    x = (number + 0x9E3779B97F4A7C15) & word
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
    return x ^ (x >> 31)


def hashed(value, number: int) -> int:
    if isinstance(value, str):
        value = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
    return mixed(value & ((1 << 64) - 1)) % number


def drawn(display: int, seed: int, stream: int) -> int:
    return mixed(display ^ mixed(seed + (stream << 32)))


def number(text) -> int:
    return -1 if text in ("", NA) else int(text)


class Reference:
    """The features of every click, by (display, ad): ``rows[(display, ad)]`` is a dict of features."""

    def __init__(self, tables: dict[str, list[list]], mode: str):
        self.mode = mode
        self.meta, self.ads, self.events, self.clicks = {}, {}, {}, {}
        fresh = max(number(row[2]) for row in tables["documents_meta"])
        for row in tables["documents_meta"]:
            self.meta.setdefault(row[0], row[1:])
        nobody = sorted(document for document, row in self.meta.items() if number(row[1]) == -1)
        for place, document in enumerate(nobody):
            self.meta[document] = [self.meta[document][0], fresh + 2 + place, self.meta[document][2]]
        for row in tables["promoted_content"]:
            self.ads.setdefault(row[0], row[1:])
        for row in tables["events"]:
            self.events.setdefault(row[0], row[2:])
        for row in tables["clicks_train"]:
            self.clicks.setdefault((row[0], row[1]), row[2])
        self.subjects = {
            name: self.entries(tables[f"documents_{name}"]) for name in ("topics", "entities", "categories")
        }
        self.weights = {name: self.tf_idf(entries) for name, entries in self.subjects.items()}
        self.joined = {pair: self.join(*pair) for pair in sorted(self.clicks)}
        self.train = [pair for pair, row in self.joined.items() if self.is_train(pair[0], row["timestamp"])]
        self.test = [pair for pair in self.joined if pair not in set(self.train)]
        self.count()
        self.rows = {pair: self.features(pair) for pair in self.joined}

    @staticmethod
    def entries(rows) -> dict:
        entries = defaultdict(dict)
        for document, subject, confidence in rows:
            entries[document].setdefault(subject, float(confidence))
        return entries

    @staticmethod
    def tf_idf(entries) -> dict:
        height = max(entries) + 1
        frequency = defaultdict(int)
        for of_document in entries.values():
            for subject in of_document:
                frequency[subject] += 1
        weights = {}
        for document, of_document in entries.items():
            row = {s: c * math.log(height / frequency[s]) for s, c in of_document.items()}
            length = math.sqrt(sum(w * w for w in row.values()))
            weights[document] = {s: w / length for s, w in row.items()} if length else {}
        return weights

    def join(self, display: int, ad: int) -> dict:
        document, timestamp, platform, geo = self.events.get(display, (-1, -1, NA, NA))
        promoted, campaign, advertiser = (number(x) for x in self.ads.get(ad, (-1, -1, -1)))
        document, timestamp = number(document), max(number(timestamp), -1)
        row = {
            "ad_id": ad, "document_id": document, "timestamp": timestamp,
            "platform": int(platform) if str(platform) in ("1", "2", "3") else -1,
            "geo_location": "" if geo == NA else geo,
            "document_id_promo": promoted, "campaign_id": campaign, "advertiser_id": advertiser,
        }  # fmt: skip
        for suffix, of in (("", document), ("_promo", promoted)):
            source, publisher, time = self.meta.get(of, (-1, -1, NA))
            row[f"source_id{suffix}"], row[f"publisher_id{suffix}"] = number(source), number(publisher)
            row[f"publish_time{suffix}"] = self.milliseconds(time)
        return row

    @staticmethod
    def milliseconds(text: str) -> int:
        try:
            time = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        except ValueError:
            return -1
        return int(time.timestamp()) * 1000 if time.year >= 1970 else -1

    @staticmethod
    def is_train(display: int, timestamp: int) -> bool:
        early = timestamp != -1 and timestamp // 86_400_000 <= 10
        return early and (drawn(display, SEED, 0) >> 11) / 2**53 >= 0.2

    def count(self) -> None:
        self.clicked = defaultdict(lambda: defaultdict(list))  # key column -> value -> [(fold, clicked)]
        for pair in self.train:
            for key in {key for key, _ in CLICK_RATE.values()}:
                if self.joined[pair][key] != -1:
                    found = self.clicked[key][self.joined[pair][key]]
                    found.append((drawn(pair[0], SEED, 1) % FOLDS, self.clicks[pair]))
        self.logs, self.days = {}, {}
        for key in ("ad_id", "document_id_promo"):
            logs = [
                math.log(1 + len(self.clicked[key].get(self.joined[pair][key], []))) for pair in self.train
            ]
            self.logs[key] = mean(logs), stdev(logs)
        for time in ("publish_time", "publish_time_promo"):
            known = [self.days_since(self.joined[pair], time) for pair in self.train]
            self.days[time] = median(days for days in known if days is not None)

    @staticmethod
    def days_since(row: dict, time: str):
        if row[time] == -1 or row["timestamp"] == -1:
            return None
        days = (row["timestamp"] + 1_465_876_799_998 - row[time]) // 86_400_000
        return days if 0 <= days <= 3650 else 0

    def features(self, pair) -> dict:
        row = self.joined[pair]
        texts = {"geo_location": row["geo_location"], "geo_location_country": row["geo_location"][:2],
                 "geo_location_state": row["geo_location"][:5]}  # fmt: skip
        raw = {**row, **texts, "platform": 0 if row["platform"] == -1 else row["platform"] - 1}
        out = {name: hashed(raw[name], size) for name, (size, _) in ONEHOT.items()}
        for name, of in (("topic", "topics"), ("entity", "entities"), ("category", "categories")):
            first = list(self.subjects[of].get(row["document_id"], {}))[:3]
            size = MULTIHOT[f"{name}_id_list"][0]
            out[f"{name}_id_list"] = [hashed(s, size) for s in first] + [-1] * (3 - len(first))
        for name, weights in self.weights.items():
            left, right = weights.get(row["document_id"], {}), weights.get(row["document_id_promo"], {})
            similarity = sum(w * right.get(s, 0.0) for s, w in left.items())
            out[f"document_id_document_id_promo_sim_{name}"] = similarity
        leave_out = drawn(pair[0], SEED, 1) % FOLDS
        leave_out = leave_out if pair in self.train and self.mode == "out_of_fold" else None
        for name, (key, least) in CLICK_RATE.items():
            labels = [c for fold, c in self.clicked[key].get(row[key], []) if fold != leave_out]
            out[name] = sum(labels) / len(labels) if len(labels) >= least else 0.0
        for key, (average, deviation) in self.logs.items():
            log = math.log(1 + len(self.clicked[key].get(row[key], [])))
            out[f"{key}_count"] = (log - average) / deviation
        for time, middle in self.days.items():
            days = self.days_since(row, time)
            out[f"{time}_days_since_published"] = math.log(1 + (middle if days is None else days))
        return out


@pytest.fixture(scope="module")
def raw_tables() -> dict[str, list[list]]:
    return generated()


@pytest.fixture(scope="module")
def raw(raw_tables, tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("outbrain") / "raw", raw_tables)


@pytest.fixture(scope="module", params=MODES)
def compared(request, raw, raw_tables, tmp_path_factory):
    """Expected rows, and the dataset with its train rows left in the order of (display, ad)."""
    target = tmp_path_factory.mktemp(request.param)
    unshuffled = dataset.write_shards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "write_shards", lambda *a, shuffle: unshuffled(*a, shuffle=None))
        _, data = prepared(raw, target, ctr=request.param, ctr_folds=FOLDS)
    return Reference(raw_tables, request.param), data


@pytest.mark.parametrize("feature", [*ONEHOT, *MULTIHOT, *NUMERICAL])
def test_feature_matches_the_slow_reference(compared, feature):
    reference, data = compared
    for mapping, pairs in (("train", reference.train), ("test", reference.test)):
        assert len(pairs) > 100
        expected = np.array([reference.rows[pair][feature] for pair in pairs])
        assert len({str(value) for value in expected}) > 1, "the generated data leave this feature untested"
        actual = data[mapping][feature]
        if feature in NUMERICAL:
            np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(actual, expected)
        assert data[mapping]["clicked"].tolist() == [reference.clicks[pair] for pair in pairs]
    assert data["test"]["display_id"].tolist() == [display for display, _ in reference.test]


def test_the_click_rate_of_the_reference_holds_a_rows_own_label_and_out_of_fold_does_not(raw_tables):
    leaky, clean = (Reference(raw_tables, mode) for mode in MODES[::-1])
    differ = [pair for pair in clean.train if clean.rows[pair]["ad_id_ctr"] != leaky.rows[pair]["ad_id_ctr"]]
    assert len(differ) > 100
    assert all(clean.rows[pair] == leaky.rows[pair] for pair in clean.test)


def test_spec_and_counts_tell_what_became_of_every_row(raw, raw_tables, tmp_path):
    spec, data = prepared(raw, tmp_path)
    reference = Reference(raw_tables, "out_of_fold")
    counts = spec.metadata["counts"]
    clicks, events = raw_tables["clicks_train"], raw_tables["events"]
    assert counts["clicks_read"] == len(clicks)
    assert counts["clicks_repeated"] == 1
    assert counts["rows"] == len(clicks) - 1 == counts["rows_train"] + counts["rows_test"]
    assert counts["events_read"] == len(events)
    used = counts["displays"] - counts["displays_without_event"]
    assert used + counts["events_repeated"] + counts["events_without_clicks"] == len(events)
    assert counts["events_without_clicks"] == 2
    assert counts["displays"] == len({row[0] for row in clicks}) == 129
    known = {"none": 1, "several": 1, "event": 1}
    assert counts["displays_without_click"] == known["none"]
    assert counts["displays_with_several_clicks"] in (1, 2)  # a repeated click may add one
    assert counts["displays_without_event"] == known["event"]
    assert counts["displays_with_unreadable_platform"] == 2
    assert counts["displays_without_platform"] == 2
    assert counts["displays_without_geo_location"] == 2
    assert counts["displays_without_timestamp"] == 1
    assert counts["displays_with_unreadable_timestamp"] == 1
    meta = reference.meta
    viewed = [reference.events[d][0] for d in {d for d, _ in reference.joined} if d in reference.events]
    assert counts["displays_of_unknown_document"] == sum(document not in meta for document in viewed)
    assert counts["rows_of_unknown_ad"] == sum(ad not in reference.ads for _, ad in reference.joined) > 0
    assert counts["ads_of_unknown_document"] == sum(row[0] not in meta for row in reference.ads.values()) > 0
    texts = [row[2] for row in meta.values()]
    unreadable = [t for t in texts if t not in ("", NA) and reference.milliseconds(t) == -1]
    assert counts["documents_without_publish_time"] == sum(t in ("", NA) for t in texts) > 0
    assert counts["documents_with_unreadable_publish_time"] == len(unreadable) > 1
    assert counts["documents_without_publisher"] > 0
    for table in ("events", "ads", "documents", "topics"):
        assert counts[f"{table}_repeated"] == 1, table
    page = (tmp_path / "statistics.html").read_text()
    for name, value in counts.items():
        assert f"{name.replace('_', ' ')}</th><td>{value:,}<" in page, name

    assert spec.channel_spec["item"] == ("ad_id",)
    assert spec.channel_spec["group"] == ("display_id",)
    assert spec.channel_spec["onehot_categorical"] == tuple(ONEHOT)
    assert spec.channel_spec["multihot_categorical"] == tuple(MULTIHOT)
    assert spec.channel_spec["numerical"] == NUMERICAL
    assert "display_id" not in data["train"]
    assert spec.source_spec["validation"] == spec.source_spec["test"]
    assert spec.feature_spec["ad_id"] == {"dtype": "int32", "cardinality": 250_000, "embedding_size": 128}
    assert spec.feature_spec["entity_id_list"]["max_hotness"] == 3
    sizes = [entry["embedding_size"] for entry in spec.feature_spec.values() if "cardinality" in entry]
    assert sum(sizes) == 1235  # of the reference's deep part
    assert not (tmp_path / "dataset" / "work").exists()


def test_a_display_is_in_one_mapping_and_later_days_are_held_out(raw, raw_tables, tmp_path):
    spec, data = prepared(raw, tmp_path, validation_share=0.3)
    events = {row[0]: row[3] for row in raw_tables["events"]}
    late = {d for d, time in events.items() if number(time) >= 11 * 86_400_000}
    groups = {mapping: set(data[mapping]["display_id"].tolist()) for mapping in ("validation", "test")}
    assert not groups["validation"] & groups["test"]
    displays = {row[0] for row in raw_tables["clicks_train"]}
    assert late & displays <= groups["test"]
    assert 120 in groups["test"]  # no event
    early = displays - late - {120, 90, 100}
    test_share = len(early & groups["test"]) / len(early)
    assert 0.1 < test_share < 0.3
    assert 0.2 < len(groups["validation"]) / len(early) < 0.4
    rows = {mapping: len(data[mapping]["clicked"]) for mapping in data}
    assert sum(rows.values()) == spec.metadata["counts"]["rows"]
    for mapping in groups:
        assert (np.diff(data[mapping]["display_id"]) >= 0).all()
    train = displays - groups["test"] - groups["validation"]
    assert rows["train"] == len({tuple(r[:2]) for r in raw_tables["clicks_train"] if r[0] in train})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_neither_the_number_of_buckets_nor_the_order_of_the_files_changes_the_dataset(
    raw, raw_tables, tmp_path, monkeypatch
):
    assert run(raw, tmp_path / "one") == 0
    expected = files_of(tmp_path / "one" / "dataset")
    assert {"train/00000.parquet", "test/00000.parquet"} == set(expected)

    monkeypatch.setattr(buckets, "CLICKS_IN_MEMORY", 40)
    monkeypatch.setattr(buckets, "SAMPLES", 8)
    starts = buckets.ranges(raw / "clicks_train.csv")
    assert len(starts) > 10
    assert run(raw, tmp_path / "many") == 0
    assert files_of(tmp_path / "many" / "dataset") == expected

    distinct, keys = {}, {"clicks_train": 2, "events": 1, "promoted_content": 1, "documents_meta": 1}
    for name, rows in raw_tables.items():
        firsts = {tuple(row[: keys.get(name, 2)]): row for row in reversed(rows)}
        distinct[name] = [row for row in rows if row is firsts[tuple(row[: keys.get(name, 2)])]]
        if name in keys:
            distinct[name] = sorted(
                distinct[name],
                key=lambda row: mixed(row[0] * 100 + number(row[1] if isinstance(row[1], int) else 0)),
            )
    assert run(write_raw(tmp_path / "raw", distinct), tmp_path / "ordered") == 0
    assert files_of(tmp_path / "ordered" / "dataset") == expected
    assert run(raw, tmp_path / "seed", seed=SEED + 1) == 0
    assert files_of(tmp_path / "seed" / "dataset") != expected


def test_train_rows_are_shuffled_whole(raw, raw_tables, compared, tmp_path):
    reference, in_order = compared
    _, data = prepared(raw, tmp_path, ctr=reference.mode, ctr_folds=FOLDS)
    names = [*ONEHOT, *NUMERICAL, "clicked"]
    whole = [
        np.column_stack([d["train"][name] for name in names]).astype(np.float64) for d in (in_order, data)
    ]
    assert (whole[0] != whole[1]).any()
    assert sorted(map(tuple, whole[0])) == sorted(map(tuple, whole[1]))


def test_the_saved_workflow_repeats_the_held_out_features_in_another_process(compared, raw, tmp_path):
    """Without this project on its path: the operators travel in the workflow."""
    reference, data = compared
    assert run(raw, tmp_path, ctr=reference.mode, ctr_folds=FOLDS) == 0
    (tmp_path / "requests.json").write_text(json.dumps([reference.joined[pair] for pair in reference.test]))
    program = """
import json, sys, nvtabular, pandas
assert "components" not in sys.modules
workflow = nvtabular.Workflow.load(sys.argv[1])
requests = pandas.DataFrame(json.load(open(sys.argv[2])))
workflow.transform(requests).to_parquet(sys.argv[3])
"""
    command = [sys.executable, "-W", "ignore", "-c", program, tmp_path / "dataset" / "workflow"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*command, tmp_path / "requests.json", tmp_path / "out.parquet"],
        check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    import pandas as pd

    out = pd.read_parquet(tmp_path / "out.parquet")
    for name in (*ONEHOT, *NUMERICAL):
        assert out[name].dtype == data["test"][name].dtype
        np.testing.assert_array_equal(out[name], data["test"][name])
    for name in MULTIHOT:
        places = out[[f"{name}_{place}" for place in range(3)]]
        np.testing.assert_array_equal(places, data["test"][name])


def test_a_dask_cluster_gives_the_same_dataset(raw, tmp_path, monkeypatch):
    """What several GPUs would use, on processes of this machine."""
    from components.preprocess.outbrain import workflow

    assert run(raw, tmp_path / "alone") == 0
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(buckets, "CLICKS_IN_MEMORY", 100)
    monkeypatch.setattr(buckets, "SAMPLES", 8)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setattr(workflow, "gpu_workers", lambda: distributed.Client(cluster))
        assert run(raw, tmp_path / "cluster") == 0
    assert files_of(tmp_path / "cluster" / "dataset") == files_of(tmp_path / "alone" / "dataset")


def test_options_change_buckets_and_are_checked(raw, tmp_path, capsys):
    spec, data = prepared(raw, tmp_path, max_buckets=50)
    cardinalities = {entry["cardinality"] for entry in spec.feature_spec.values() if "cardinality" in entry}
    assert cardinalities == {4, 50}
    assert data["train"]["ad_id"].max() < 50
    for options, words in (
        ({"ctr": "leaky"}, "ctr must be one of out_of_fold, reference, not 'leaky'"),
        ({"ctr_fold": 3}, "did you mean 'ctr_folds'"),
        ({"test_share": 1.5}, "test_share must be at least 0 and less than 1, not 1.5"),
        ({"test_share": 0.5, "validation_share": 0.5}, "less than 1 together with test_share 0.5"),
        ({"train_last_day": -1}, "train_last_day must be 0 or more"),
        ({"test_share": 0.0, "train_last_day": 400}, "displays of unknown day"),
    ):
        capsys.readouterr()
        status = run(raw, tmp_path / "faulty", **options)
        if words == "displays of unknown day":  # held out whatever the options
            assert status == 0
            continue
        error = capsys.readouterr().err
        assert status == 2
        assert words in error
        assert error.count("\n") == 1


REFUSED = [
    ("clicks_train", 0, "display_id,ad_id", "no column 'clicked'; the file has display_id, ad_id"),
    ("clicks_train", 3, "1,2", "line 4: Expected 3 columns, got 2"),
    ("clicks_train", 3, "1,x,0", "line 4: ad_id: invalid value 'x'; it must be a whole number of 0 or more"),
    ("clicks_train", 3, "1,1.5,0", "line 4: ad_id: invalid value '1.5'"),
    ("clicks_train", 3, "-1,2,0", "line 4: display_id is -1; it must be a whole number of 0 or more"),
    ("clicks_train", 3, ",2,0", "line 4: display_id is missing; it must be a whole number"),
    ("clicks_train", 3, "\\N,2,0", "line 4: display_id is missing"),
    ("clicks_train", 3, "1,2,2", "line 4: clicked is 2; it must be 0 or 1"),
    ("clicks_train", 3, "1,2,-1", "line 4: clicked is -1; it must be 0 or 1"),
    ("clicks_train", 3, "1,2,", "line 4: clicked is missing; it must be 0 or 1"),
    ("clicks_train", 3, "99999999999999999999,2,0", "line 4: display_id: invalid value '999"),
    ("clicks_train", None, "", "no column 'display_id'; the file has no header"),
    ("clicks_train", None, "display_id,ad_id,clicked\n", "no clicks, only a header"),
    ("events", 0, "display_id,uuid,document_id,timestamp,geo_location,geo_location", "no column 'platform'"),
    ("events", 2, "4,u,-7,5,1,GB", "line 3: document_id is -7; it must be a whole number"),
    ("events", 2, "4,u,7,noon,1,GB", "line 3: timestamp: invalid value 'noon'; it must be a whole"),
    ("events", None, "display_id,uuid,document_id,timestamp,platform,geo_location\n", "no display falls to"),
    ("promoted_content", 2, "one,2,3,4", "line 3: ad_id: invalid value 'one'"),
    ("documents_meta", 2, "3,4,-5,\\N", "line 3: publisher_id is -5"),
    ("documents_topics", 2, "3,4,much", "line 3: confidence_level: invalid value 'much'; it must be a"),
    ("documents_topics", 2, "3,4,nan", "line 3: confidence_level is nan; it must be a finite number"),
    ("documents_topics", 2, "3,4,inf", "line 3: confidence_level is inf; it must be a finite number"),
    ("documents_topics", 2, "3,-4,0.5", "line 3: topic_id is -4"),
    ("documents_categories", 2, "3,,0.5", "line 3: category_id is missing"),
    ("documents_entities", 2, "3,,0.5", "line 3: entity_id is missing; it must be text"),
    ("documents_entities", 2, "3,\udcff\udcfe,0.5", "line 3: not UTF-8 text; save it as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "line", "text", "words"), REFUSED)
def test_a_malformed_file_is_refused_in_one_line(raw, tmp_path, capsys, table, line, text, words):
    folder = tmp_path / "raw"
    folder.mkdir()
    for path in raw.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / f"{table}.csv"
    lines = path.read_text(encoding="utf-8").split("\n")
    if line is None:
        lines = [text]
    else:
        lines[line] = text
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    assert run(folder, tmp_path) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert "no display falls" in words or str(path) in error
    assert not (tmp_path / "dataset").exists()


def test_a_table_without_a_file_is_named(raw, tmp_path, capsys):
    folder = write_raw(tmp_path / "raw", generated(2))
    files = {name: f"{name}.csv" for name in COLUMNS if name != "events"}
    RawOutbrain(dataset="toy", files=tuple(files.values()), tables=files).write(folder)
    assert run(folder, tmp_path) == 2
    assert "names no file for table 'events'" in capsys.readouterr().err


def test_documents_without_any_subject_are_no_fault(raw_tables, tmp_path):
    tables = {name: [] if name.startswith("documents_") else rows for name, rows in raw_tables.items()}
    _, data = prepared(write_raw(tmp_path / "raw", tables), tmp_path)
    assert (data["train"]["topic_id_list"] == -1).all()
    assert not data["test"]["document_id_document_id_promo_sim_topics"].any()
    assert not data["test"]["publish_time_days_since_published"].any()


@pytest.mark.parametrize("gap", [1, 1000])
def test_an_index_finds_what_it_holds_and_nothing_else(gap):
    """Dense ids are looked up in a table, sparse ones by a search."""
    ids = np.arange(1, 50, dtype=np.int64) * 3 * gap
    index = Index(ids)
    assert (index._direct is None) == (gap > 1)
    wanted = np.concatenate([ids[::-1], [-1, 0, 2 * gap, ids[-1] + 1, 2**62]])
    assert index(wanted).tolist() == [*range(48, -1, -1), 49, 49, 49, 49, 49]
    assert Index(ids[:0])(wanted).tolist() == [0] * len(wanted)


@pytest.mark.gpu
def test_the_hash_is_the_same_on_a_gpu():
    cupy = pytest.importorskip("cupy", reason="no CuPy, so no GPU to hash on")
    ids = np.concatenate([np.arange(-1, 1000), np.array([2**63 - 1, -(2**63)])])
    assert cupy.asnumpy(bucket(cupy.asarray(ids), 997)).tolist() == bucket(ids, 997).tolist()
