"""The compiled pipeline with its real programs, as ``make run`` runs it: synthetic and real ratings."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
QUICK = ["benchmark.train_seconds=0.5", "benchmark.inference_seconds=0.1", "benchmark.batch_sizes=[1, 64]"]
STEPS = ["download", "preprocess", "train", "evaluate", "benchmark", "gate", "cleanup"]


@pytest.fixture(autouse=True)
def _environments():
    for name in ("preprocess", "train"):
        if not (ROOT / f".venv/{name}/bin/python").exists():
            pytest.skip(f"needs .venv/{name}; run make setup")


def run(name, *words):
    """Exit code, run folder, summary and output of one local run."""
    command = [sys.executable, "-m", "pipelines.local", name, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    output = done.stdout + done.stderr
    folder = ROOT / re.search(r"runs/\S+?(?=/summary\.json)", output).group()
    return done.returncode, folder, json.loads((folder / "summary.json").read_text()), output


def test_a_run_leaves_what_the_readme_promises():
    words = ["dataset_options.users=400", "dataset_options.items=200", "hyperparameters.epochs=6"]
    words += ["hyperparameters.batch_size=1024", "gate=hr@10>0.3"]
    code, folder, summary, output = run("ncf_synthetic", *QUICK, *words)
    assert code == 0, output
    assert summary["status"] == "succeeded"
    assert list(summary["step_seconds"]) == STEPS
    assert summary["steps"]["evaluate"]["hr@10"] > summary["steps"]["evaluate"]["popularity_hr@10"]
    assert summary["steps"]["benchmark"]["train_samples_per_second_mean"] > 0
    for step in STEPS:
        assert (folder / step / "log.txt").stat().st_size
    for artifact in (
        "download/raw/raw.yaml",
        "preprocess/dataset/feature_spec.yaml",
        "train/checkpoint/model.keras",
    ):
        assert (folder / artifact).is_file()
    pages = [
        folder / page
        for page in ("report.html", "preprocess/statistics", "train/learning_curve", "benchmark/report")
    ]
    for page in pages:
        content = page.read_text()
        assert "<html" in content
        assert not re.search(r"(?:src|href)=.https?:", content), f"{page} loads something from outside"
        assert len(content) < 1_000_000
    assert not list(folder.glob("*/*.partial"))


def test_a_missed_gate_fails_the_run_after_every_report():
    words = [
        "dataset_options.users=400",
        "dataset_options.items=200",
        "hyperparameters.epochs=1",
        "gate=ndcg@100>=0.99",
    ]
    code, folder, summary, output = run("vae_cf_synthetic", *QUICK, *words, "preparation.heldout_users=0.1")
    assert code == 1
    assert (summary["status"], summary["failed_step"]) == ("failed", "gate")
    assert "gate missed: ndcg@100" in output
    assert "evaluate" in summary["steps"]
    assert (folder / "benchmark" / "report").exists()


@pytest.mark.skipif(
    not (shutil.which("mpirun") and list((ROOT / ".venv/train").glob(".horovod-*"))),
    reason="needs mpirun and Horovod: make setup-horovod",
)
def test_two_workers_train_and_what_is_wrong_with_them_is_one_line():
    words = ["dataset_options.users=400", "dataset_options.items=200", "num_workers=2"]
    words += ["hyperparameters.epochs=2", "hyperparameters.batch_size=1024"]
    code, folder, summary, output = run("ncf_synthetic", *QUICK, *words, "gate=")
    assert code == 0, output
    assert summary["steps"]["train"]["epochs"] == 2
    assert "[0]" in (folder / "train/log.txt").read_text()
    code, _, summary, output = run("ncf_synthetic", *words, "hyperparameters.epoch=3")
    assert code == 2, output
    assert summary["failed_step"] == "train"
    assert "did you mean 'epochs'" in summary["error"]
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=interactions", "source=nowhere.csv"], "nowhere.csv"),
        (["preparation.min_user_ratings=100000"], "min_user_ratings"),
        (["preparation.rating_threshold=9"], "rating_threshold"),
        (["hyperparameters.epoch=3"], "did you mean 'epochs'"),
        (["hyperparameters.topk=500"], "topk 500 is larger than the 101 candidates"),
    ],
    ids=["no such file", "no user left", "no rating left", "unknown hyperparameter", "k too large"],
)
def test_a_users_mistake_ends_the_run_with_one_line_and_exit_code_2(words, message):
    small = ["dataset_options.users=200", "dataset_options.items=150"]
    code, _, summary, output = run(
        "ncf_synthetic", *([] if "dataset=interactions" in words else small), *words
    )
    assert code == 2, output
    assert message in summary["error"]
    assert "Traceback" not in output


OUTBRAIN = ["dataset_options.displays=12000", "hyperparameters.batch_size=1024", "hyperparameters.epochs=5"]


def test_wide_deep_recovers_what_is_planted_in_outbrain_files():
    code, folder, summary, output = run(
        "wide_deep_synthetic", *QUICK, *OUTBRAIN, "gate=map@12>=0.6, auc>=0.65"
    )
    assert code == 0, output
    metrics = summary["steps"]["evaluate"]
    assert metrics["map@12"] > metrics["item_ctr_map@12"] + 0.03
    assert metrics["auc"] > metrics["item_ctr_auc"] + 0.03
    assert "ad_id" in (folder / "preprocess" / "statistics").read_text()


def test_wide_deep_finds_nothing_in_shuffled_clicks():
    words = ["dataset_options.shuffle_clicks=true", "gate="]
    code, _, summary, output = run("wide_deep_synthetic", *QUICK, *OUTBRAIN, *words)
    assert code == 0, output
    assert summary["steps"]["evaluate"]["auc"] == pytest.approx(0.5, abs=0.02)


SPEC = """
feature_spec:
  who: {cardinality: auto}
  what: {cardinality: 300}
  kinds: {cardinality: 12, max_hotness: 3}
  liked:
source_spec:
  train:
    - {type: csv, features: [who, what, kinds, liked], files: [rows.csv]}
channel_spec:
  user: [who]
  item: [what]
  multihot_categorical: [kinds]
  label: [liked]
"""


@pytest.mark.parametrize(
    ("name", "words", "metric"),
    [
        (
            "wide_deep_feature_spec",
            [
                "hyperparameters.batch_size=512",
                "hyperparameters.learning_rate=0.01",
                "hyperparameters.epochs=15",
            ],
            "auc",
        ),
        ("ncf_synthetic", ["hyperparameters.batch_size=2048"], "hr@10"),
        ("vae_cf_synthetic", ["preparation.heldout_users=0.1", "hyperparameters.topk=50"], "ndcg@50"),
    ],
)
def test_a_csv_with_a_feature_spec_trains_every_model(name, words, metric, tmp_path):
    """Half of 300 items are liked by half of 400 users, the others by the others."""
    generator = np.random.default_rng(3)
    who, what = np.divmod(generator.permutation(400 * 300)[:16_000], 300)
    odds = np.where(who % 2 == what % 2, 0.9, 0.1)
    lines = [
        f'{a},{b},"{sorted({b % 12, b % 5})}",{int(liked)}\n'
        for a, b, liked in zip(who, what, generator.random(len(who)) < odds, strict=True)
    ]
    (tmp_path / "rows.csv").write_text("".join(lines))
    (tmp_path / "feature_spec.yaml").write_text(SPEC)
    own = ["dataset=feature_spec", f"source={tmp_path}/feature_spec.yaml", "gate="]
    code, _, summary, output = run(name, *QUICK, *own, *words)
    assert code == 0, output
    metrics = summary["steps"]["evaluate"]
    baseline = metrics[f"item_ctr_{metric}" if metric == "auc" else f"popularity_{metric}"]
    assert metrics[metric] > baseline + 0.05


COLUMNS = ["dataset=interactions", "dataset_options.user=userId", "dataset_options.item=movieId"]


@pytest.mark.skipif(
    not DATA.is_dir(), reason="MovieLens 100K is not at ../shared/data; its licence keeps it out of here"
)
@pytest.mark.parametrize(
    ("name", "words", "metric", "least"),
    [
        ("ncf_movielens_100k", [f"source={DATA}/ml-100k.zip"], "hr@10", 0.65),
        ("vae_cf_movielens_100k", [f"source={DATA}/ml-100k.zip"], "ndcg@100", 0.38),
        ("ncf_movielens_100k", [*COLUMNS, f"source={DATA}/ml-100k.csv"], "hr@10", 0.65),
        ("vae_cf_movielens_100k", [*COLUMNS, f"source={DATA}/ml-100k.csv"], "ndcg@100", 0.38),
        ("wide_deep_movielens_100k", [f"source={DATA}/ml-100k-ctr.csv"], "auc", 0.703),
    ],
    ids=["ncf zip", "vae_cf zip", "ncf csv", "vae_cf csv", "wide_deep csv"],
)
def test_real_ratings_reach_the_references_accuracy(name, words, metric, least):
    code, _, summary, output = run(name, *QUICK, *words)
    assert code == 0, output
    assert summary["steps"]["evaluate"][metric] >= least
