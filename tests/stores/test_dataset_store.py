"""The steps on real object stores: datasets, checkpoints and results outside of the artifacts' folders."""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from components.train import workspace
from recsys import dataset_store, storage
from recsys.step import Outputs, Step, UserError
from tests.stores import servers

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["dataset_options.users=200", "dataset_options.items=150", "gate=", "benchmark.train_seconds=0.2"]
SMALL += ["benchmark.inference_seconds=0.05", "benchmark.batch_sizes=[1]", "hyperparameters.epochs=2"]
SMALL += ["hyperparameters.batch_size=1024"]


@pytest.fixture(autouse=True)
def _ready(monkeypatch, tmp_path):
    for name in ("preprocess", "train"):
        if not (ROOT / f".venv/{name}/bin/python").exists():
            pytest.skip(f"needs .venv/{name}; run make setup")
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(place, monkeypatch):
    """A folder of a store, past the proxy."""
    name = "STORAGE_EMULATOR_HOST" if place.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(name, place.server.address)
    return place.address


only_s3 = pytest.mark.parametrize("place", ["s3"], indirect=True)


def test_outputs_at_uris_appear_when_the_step_has_succeeded_and_its_marker_last(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    step = Step("toy", "Writes.")
    step.output("folder", "files")
    step.output("page", "a file")
    root = place.address
    flags = ["--folder", f"{root}/folder", "--page", f"{root}/page", "--executor_input"]
    given = {"outputFile": f"{root}/marker", "artifacts": {"page": {"artifacts": [{"name": "p"}]}}}
    flags.append(json.dumps({"outputs": given}))

    def work(arguments, outputs):
        (outputs.folder("folder") / "part").write_text("content")
        if fails:
            raise UserError("a mistake")
        outputs.metrics("page", {"hr": 0.5})

    fails = True
    assert step.run(work, flags) == 2
    assert not [request for request in place.proxy.requests if request.method in ("PUT", "POST")]
    fails = False
    assert step.run(work, flags) == 0
    assert storage.read_if_present(f"{root}/folder/part") == b"content"
    assert json.loads(storage.read_if_present(f"{root}/page")) == {"hr": 0.5}
    written = json.loads(storage.read_if_present(f"{root}/marker"))["artifacts"]
    assert written == {"page": {"artifacts": [{"name": "p", "metadata": {"hr": 0.5}}]}}
    sent = [request.path for request in place.proxy.requests if request.method in ("PUT", "POST")]
    assert "marker" in sent[-1] or place.scheme == "gs"  # whose name is in the body
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_file_is_kept_and_verified(store, tmp_path, monkeypatch):
    content = b"of a dataset" * 1000
    storage.write(f"{store}/1/train.parquet", content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "row_groups": [3, 1]}
    section = {"address": f"{store}/1", "files": {"train.parquet": entry, "gone.parquet": entry}}
    files = dataset_store.Files(tmp_path, {"dataset_store": section})
    uri = f"{store}/1/train.parquet"
    assert files.row_groups(uri) == [3, 1]
    assert not (tmp_path / "cache").exists(), "nothing was fetched for that"
    path = files.local(uri)
    assert path.read_bytes() == content
    assert path.parent == tmp_path / "cache"
    path.write_bytes(b"!" + content[1:])
    dataset_store._fetched.cache_clear()  # as another process
    assert files.local(uri).read_bytes() == content
    storage.write(uri, b"another object")
    dataset_store._fetched.cache_clear()
    assert files.local(uri).read_bytes() == content, "what is kept is right"
    assert files.local(f"{store}/1/of nobody") is None
    path.unlink()
    dataset_store._fetched.cache_clear()
    with pytest.raises(UserError, match="its SHA-256 is"):
        files.local(uri)
    assert not path.exists()
    with pytest.raises(UserError, match=r"1/gone\.parquet"):
        files.local(f"{store}/1/gone.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="RECSYS_CACHE .*file"):
        files.local(uri)


def pipeline(*words, code=0):
    """Folder and metrics of one local run."""
    command = [ROOT / ".venv/pipeline/bin/python", "-m", "pipelines.local", "ncf_synthetic", *SMALL, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    for key in servers.KEYS.values():
        assert key not in done.stdout + done.stderr
    folder = ROOT / re.search(r"runs/\S+?(?=/summary\.json)", done.stdout).group()
    metrics = json.loads((folder / "summary.json").read_text())["steps"].get("evaluate", {})
    return folder, {name: value for name, value in metrics.items() if name != "seconds"}


@pytest.fixture(scope="module")
def plain():
    """A run without a store."""
    return pipeline()


def trained_on(folder):
    return json.loads((folder / "train/checkpoint/config.json").read_text())["dataset_sha256"]


def test_a_run_with_a_store_reaches_the_same_and_the_next_one_prepares_nothing(store, plain, tmp_path):
    folder, metrics = pipeline(f"dataset_store={store}")
    assert metrics == pytest.approx(plain[1], rel=1e-3)
    assert trained_on(folder) == trained_on(plain[0])
    assert os.listdir(folder / "preprocess/dataset") == ["feature_spec.yaml"]
    assert f"published {store}" in (folder / "preprocess/log.txt").read_text()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert servers.KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path
    # Only what training and evaluation read has been fetched: no workflow, no tables of ids.
    files = {path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"}
    spec = yaml.safe_load((folder / "preprocess/dataset/feature_spec.yaml").read_text())
    listed = spec["metadata"]["dataset_store"]["files"]
    assert files == {listed[name]["sha256"] for name in ("train.parquet", "test.parquet")}
    assert len(listed) > 4
    # A wrong parameter ends the next one after its preparation.
    again, _ = pipeline(f"dataset_store={store}", "hyperparameters.epoch=1", code=2)
    assert "holds this dataset; nothing to prepare" in (again / "preprocess/log.txt").read_text()
    artifact = "preprocess/dataset/feature_spec.yaml"
    assert (again / artifact).read_bytes() == (folder / artifact).read_bytes()


def step(environment, program, **flags):
    """A step's program: the process that runs it."""
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return subprocess.Popen(
        [ROOT / f".venv/{environment}/bin/python", "-m", f"components.{program}", *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process, code=0):
    """What the step printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def download(folder, dataset="synthetic", **options):
    flags = {"dataset": dataset, "options": json.dumps(options), "seed": 1, "about": folder / "about"}
    ended(step("pipeline", "download.main", **flags, raw=folder / "raw"))
    return folder / "raw"


@pytest.fixture
def raw(tmp_path):
    return download(tmp_path, users=200, items=150)


def preprocess(raw, store, target, model="ncf", **options):
    flags = {"raw": raw, "model": model, "seed": 1, "dataset_store": store, "options": json.dumps(options)}
    return step(
        "preprocess", "preprocess.main", **flags, dataset=target / "dataset", statistics=target / "page"
    )


def train(dataset, out, program="train.main", settings=None, epochs=2, **flags):
    """A training step whose outputs are at ``out``, a folder or a URI."""
    hyperparameters = json.dumps({"epochs": epochs, "batch_size": 1024, **(settings or {})})
    flags = {"dataset": dataset, "model": "ncf", "hyperparameters": hyperparameters, **flags}
    flags |= {name: f"{out}/{name}" for name in workspace.OUTPUTS}
    return step("train", program, **flags, executor_input=json.dumps(executor_input(out)))


def executor_input(out):
    given = {name: {"artifacts": [{"name": name, "uri": f"{out}/{name}"}]} for name in workspace.OUTPUTS}
    return {"outputs": {"outputFile": f"{out}/executor_output.json", "artifacts": given}}


@pytest.mark.parametrize(("model", "place"), [("vae_cf", "s3"), ("wide_deep", "gs")], indirect=["place"])
def test_the_other_models_learn_and_score_the_same(model, store, tmp_path):
    settings = {"hidden": [16]}
    if model == "vae_cf":
        raw, options = download(tmp_path, users=200, items=150), {"heldout_users": 0.1}
    else:
        raw, options = download(tmp_path, "outbrain_synthetic", displays=3000), {}
        settings["warmup_epochs"] = 0
    for name, given in (("plain", ""), ("stored", store)):
        ended(preprocess(raw, given, tmp_path / name, model, **options))
        ended(train(tmp_path / name / "dataset", tmp_path / name, model=model, settings=settings))
    for entry, expected in zip(history(tmp_path / "stored"), history(tmp_path / "plain"), strict=True):
        assert entry == pytest.approx(expected, rel=1e-3)  # sums of several threads
    assert os.listdir(tmp_path / "stored/dataset") == ["feature_spec.yaml"]
    for name in ("plain", "stored"):
        flags = {"dataset": tmp_path / name / "dataset", "checkpoint": tmp_path / "plain/checkpoint"}
        outputs = {output: tmp_path / name / output for output in ("metrics", "report")}
        ended(step("train", "evaluate.main", **flags, **outputs))
    metrics = [json.loads((tmp_path / name / "metrics").read_text()) for name in ("plain", "stored")]
    for values in metrics:
        del values["seconds"]
    assert metrics[0] == pytest.approx(metrics[1])
    assert "other data" not in (tmp_path / "stored/report").read_text()


def history(address):
    entries = json.loads(storage.read_if_present(f"{address}/checkpoint/history.json"))
    return [{n: v for n, v in entry.items() if "second" not in n} for entry in entries]


@only_s3
def test_a_run_whose_outputs_are_uris_stops_resumes_and_hands_its_results_over(store, raw, tmp_path):
    ended(preprocess(raw, f"{store}/datasets", tmp_path))
    spec = yaml.safe_load((tmp_path / "dataset/feature_spec.yaml").read_text())
    dataset = spec["metadata"]["dataset_store"]["spec"]
    out = f"{store}/run"

    stopped = train(dataset, out, epochs=2000)
    for line in stopped.stdout:
        if "epoch 2/2000" in line:
            stopped.send_signal(signal.SIGTERM)
            break
    said = ended(stopped, 143)
    assert f"continue with --resume {out}/checkpoint" in said
    epoch = int(re.search(r"after epoch (\d+)", said)[1])
    names = {storage.file_name(address) for address in storage.list_folder(f"{out}/checkpoint/")}
    assert names == {"last.npz", "model.keras"}
    arguments = argparse.Namespace(
        dataset=tmp_path / "dataset", resume="", executor_input=executor_input(out)
    )
    place = workspace.place(arguments, "job")
    assert isinstance(place, workspace.ObjectStorage)
    assert not place.complete()
    assert place.state() == f"{out}/checkpoint"

    said = ended(train(dataset, out, epochs=epoch + 2, resume=f"{out}/checkpoint", program="train.launch"))
    assert f"resumed after epoch {epoch}" in said
    ended(train(tmp_path / "dataset", tmp_path / "plain", epochs=epoch + 2))
    assert history(out) == history(tmp_path / "plain")

    # What the launch step does with it.
    assert place.complete()
    outputs = Outputs({name: tmp_path / "taken" / name for name in workspace.OUTPUTS})
    place.take(outputs)
    outputs.publish()
    assert sorted(os.listdir(tmp_path / "taken")) == ["history", "learning_curve"]
    assert "<html" in (tmp_path / "taken/learning_curve").read_text()
    written = json.loads(storage.read_if_present(place.marker))["artifacts"]
    assert outputs._metadata["history"] == written["history"]["artifacts"][0]["metadata"]
    place.forget()
    assert not place.complete()
    # Kubeflow downloads the artifact for the next step.
    storage.download(f"{out}/checkpoint", tmp_path / "checkpoint")
    evaluate = {"dataset": dataset, "checkpoint": tmp_path / "checkpoint"}
    outputs = {"metrics": tmp_path / "metrics", "report": tmp_path / "report"}
    ended(step("train", "evaluate.main", **evaluate, **outputs))
    assert "other data" not in (tmp_path / "report").read_text()


@pytest.mark.parametrize("place", ["s3", "gs"], indirect=True)
def test_two_runs_at_once_publish_one_dataset(store, raw, tmp_path):
    for process in [preprocess(raw, store, tmp_path / name) for name in "ab"]:
        ended(process)
    specs = [(tmp_path / name / "dataset/feature_spec.yaml").read_text() for name in "ab"]
    assert specs[0] == specs[1]
    [address] = {
        file.rpartition("/")[0]
        for chunks in yaml.safe_load(specs[0])["source_spec"].values()
        for chunk in chunks
        for file in chunk["files"]
    }
    storage.download(address, tmp_path / "whole")


@only_s3
def test_what_is_wrong_with_a_store_is_one_line(store, raw, tmp_path):
    said = ended(preprocess(raw, "s3://no-such-bucket/x", tmp_path), 2)
    assert "no-such-bucket" in said.splitlines()[-1]
    assert "encoded" not in said, "it was told before the work"
    ended(preprocess(raw, store, tmp_path))
    spec = yaml.safe_load((tmp_path / "dataset/feature_spec.yaml").read_text())
    [file] = spec["source_spec"]["train"][0]["files"]
    content = storage.read_if_present(file)
    storage.write(file, content[:100] + b"x" + content[101:])
    said = ended(train(tmp_path / "dataset", tmp_path / "out"), 2)
    assert re.search(
        r"train\.parquet: its SHA-256 is \w+\.\.\., but \w+\.\.\. was published", said.splitlines()[-1]
    )
    client = servers.client(os.environ["AWS_ENDPOINT_URL"])
    client.delete_object(Bucket=servers.BUCKET, Key=file.split("/", 3)[3])
    said = ended(train(tmp_path / "dataset", tmp_path / "out"), 2)
    assert file in said.splitlines()[-1]


@only_s3
def test_a_source_may_be_in_a_store(store, raw, tmp_path):
    [table] = (path for path in raw.iterdir() if path.suffix == ".csv")
    columns = table.read_text().partition("\n")[0].split(",")
    storage.write(f"{store}/mine/ratings.csv", table.read_bytes())
    options = json.dumps({"user": columns[0], "item": columns[1], "rating": columns[2]})
    for number, source in enumerate([f"{store}/mine/ratings.csv", f"{store}/mine/"]):
        flags = {"dataset": "interactions", "source": source, "options": options, "about": tmp_path / "about"}
        ended(step("pipeline", "download.main", **flags, raw=tmp_path / f"raw{number}"))
        assert (tmp_path / f"raw{number}/ratings.csv").read_bytes() == table.read_bytes()
