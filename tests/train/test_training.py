"""The train, evaluate and benchmark programs as a user runs them: processes, files, exit codes, signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from components.train.main import main as train_main

ROOT = Path(__file__).parents[2]
NCF = {"factors": 8, "layers": [16, 12, 6], "batch_size": 500, "epochs": 4, "learning_rate": 0.01}
WIDE = {"hidden": [24, 12], "batch_size": 480, "warmup_epochs": 1, "learning_rate": 0.02}
VAE = {"hidden": [24], "latent": 8, "batch_size": 50, "topk": 20, "epochs": 6, "validation_step": 3}


def command(step, folder: Path, **flags):
    outputs = {
        "train": ("checkpoint", "history", "learning_curve"),
        "evaluate": ("metrics", "report"),
        "benchmark": ("throughput", "report"),
    }[step]
    flags = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in flags.items()}
    flags |= {name: folder / name for name in outputs}
    return [
        sys.executable,
        "-m",
        f"components.{step}.main",
        *(str(x) for k, v in flags.items() for x in (f"--{k}", v)),
    ]


def run(step, folder, environment=None, **flags):
    return subprocess.run(
        command(step, folder, **flags),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


def train_ncf(folder, dataset, **changes):
    resume = changes.pop("resume", "")
    return run(
        "train",
        folder,
        dataset=dataset,
        model="ncf",
        hyperparameters={**NCF, **changes},
        seed=3,
        resume=resume,
    )


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "last.npz") as saved:
        return {name: saved[name] for name in saved.files if name != "state"}


@pytest.fixture(scope="session")
def unbroken(ncf_dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    done = train_ncf(folder, ncf_dataset)
    assert done.returncode == 0, done.stderr
    return folder


def test_train_then_evaluate_then_benchmark(unbroken, ncf_dataset, tmp_path):
    assert {path.name for path in (unbroken / "checkpoint").iterdir()} == {
        "model.keras", "config.json", "feature_spec.yaml", "history.json", "last.npz"
    }  # fmt: skip
    history = json.loads((unbroken / "history").read_text())
    assert history["epochs"] == 4
    about = json.loads((unbroken / "checkpoint" / "config.json").read_text())
    assert about["hyperparameters"]["learning_rate"] == 0.01
    assert about["seed"] == 3
    assert about["dataset_sha256"]
    assert about["versions"]["keras"]
    assert "<svg" in (unbroken / "learning_curve").read_text()

    for size in (1000, 13):
        done = run(
            "evaluate",
            tmp_path,
            dataset=ncf_dataset,
            checkpoint=unbroken / "checkpoint",
            options={"batch_size": size},
        )
        assert done.returncode == 0, done.stderr
        metrics = json.loads((tmp_path / "metrics").read_text())
        assert metrics["hr@10"] == pytest.approx(history["validation_hr@10"], abs=1e-12)
        assert metrics["popularity_hr@10"] < metrics["hr@10"]

    quick = {"train_steps": 5, "inference_seconds": 0.2, "batch_sizes": [1, 100]}
    done = run("benchmark", tmp_path, dataset=ncf_dataset, checkpoint=unbroken / "checkpoint", options=quick)
    assert done.returncode == 0, done.stderr
    throughput = json.loads((tmp_path / "throughput").read_text())
    assert throughput["train_samples_per_second_best"] >= throughput["train_samples_per_second_mean"] > 0
    assert (
        throughput["inference_latency_ms_p99_batch_1"] >= throughput["inference_latency_ms_p50_batch_1"] > 0
    )
    assert 0 < throughput["share_of_matrix_product_rate"] < 1
    assert throughput["peak_memory_mb"] > 50


@pytest.mark.parametrize(
    ("model", "settings"),
    [("ncf", {**NCF, "batch_size": 50, "epochs": 2}), ("wide_deep", {**WIDE, "batch_size": 32, "epochs": 2})],
)
def test_a_killed_run_resumes_to_the_same_weights_and_metrics(model, settings, tmp_path, request):
    # Small batches and a save after every step: some ten seconds in which the kill can come.
    dataset = request.getfixturevalue(f"{model.split('_')[0]}_dataset")
    flags = {"dataset": dataset, "model": model, "seed": 3, "hyperparameters": settings}
    done = run("train", tmp_path / "unbroken", **flags, resume="")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "killed"
    saving = {**flags, "hyperparameters": {**settings, "checkpoint_seconds": 0}, "resume": ""}
    killed = subprocess.Popen(command("train", folder, **saving), cwd=ROOT, stdout=subprocess.DEVNULL)
    partial = folder / "checkpoint.partial"
    while not (partial / "last.npz").exists():
        assert killed.poll() is None
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (folder / "checkpoint").exists()
    # As asked for, or as the launcher of an MPIJob that is started again.
    again = (
        {"resume": partial} if model == "ncf" else {"resume": "", "environment": {"RECSYS_RESUME_OWN": "1"}}
    )
    done = run("train", folder, **flags, **again)
    assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stdout
    expected = weights(tmp_path / "unbroken" / "checkpoint")
    for name, value in weights(folder / "checkpoint").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    histories = [json.loads((tmp_path / run / "history").read_text()) for run in ("unbroken", "killed")]
    metric = next(name for name in histories[0] if name.startswith("validation_"))
    assert histories[0][metric] == histories[1][metric]
    assert not partial.exists()


def test_wide_deep_trains_evaluates_and_is_benchmarked(wide_dataset, tmp_path):
    settings = {**WIDE, "epochs": 8, "embedding_sizes": {"device": 2}}
    done = run("train", tmp_path, dataset=wide_dataset, model="wide_deep", hyperparameters=settings, seed=1)
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "checkpoint"
    found = []
    for size in (None, 333):
        options = {"batch_size": size}
        done = run("evaluate", tmp_path, dataset=wide_dataset, checkpoint=checkpoint, options=options)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "metrics").read_text()))
        assert found[-1]["auc"] > 0.7 > found[-1]["item_ctr_auc"]
        assert found[-1]["map@12"] > found[-1]["item_ctr_map@12"]
    assert found[0]["map@12"] == found[1]["map@12"]
    assert "| map@12 |" in (tmp_path / "report").read_text()
    quick = {"train_steps": 3, "inference_seconds": 0.2, "batch_sizes": [4096, 20000]}
    done = run("benchmark", tmp_path, dataset=wide_dataset, checkpoint=checkpoint, options=quick)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "throughput").read_text())["inference_samples_per_second_best"] > 0


def test_a_checkpoint_does_not_fit_a_dataset_with_other_features(wide_dataset, ncf_dataset, tmp_path):
    done = run(
        "train",
        tmp_path,
        dataset=wide_dataset,
        model="wide_deep",
        hyperparameters={**WIDE, "epochs": 1},
        seed=1,
    )
    assert done.returncode == 0, done.stderr
    done = run("evaluate", tmp_path, dataset=ncf_dataset, checkpoint=tmp_path / "checkpoint", options={})
    assert done.returncode == 2
    assert "was trained with channel 'user' of 1 feature with 50 ids" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_a_resumable_state_and_says_how_to_continue(ncf_dataset, tmp_path, number):
    flags = {"dataset": ncf_dataset, "model": "ncf", "seed": 3, "resume": ""}
    flags["hyperparameters"] = {**NCF, "epochs": 100_000}
    process = subprocess.Popen(
        command("train", tmp_path, **flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "epoch 1/" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    partial = tmp_path / "checkpoint.partial"
    assert f"continue with --resume {partial}" in errors
    assert "Traceback" not in errors
    assert (partial / "last.npz").exists()
    assert not (tmp_path / "checkpoint").exists()


def test_vae_cf_trains_and_evaluates_and_a_finished_run_can_go_on(vae_dataset, tmp_path):
    flags = {"dataset": vae_dataset, "model": "vae_cf", "seed": 1}
    done = run("train", tmp_path, **flags, hyperparameters=VAE, resume="")
    assert done.returncode == 0, done.stderr
    done = run(
        "train", tmp_path, **flags, hyperparameters={**VAE, "epochs": 30}, resume=tmp_path / "checkpoint"
    )
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "checkpoint" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(1, 31))
    done = run("evaluate", tmp_path, dataset=vae_dataset, checkpoint=tmp_path / "checkpoint", options={})
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["ndcg@20"] > metrics["popularity_ndcg@20"]


def test_early_stop_at_the_target_and_late_first_validation(ncf_dataset, tmp_path):
    done = train_ncf(tmp_path, ncf_dataset, epochs=50, target=0.3, eval_after=3, checkpoint_seconds=0)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "checkpoint" / "history.json").read_text())
    assert ["hr@10" in entry for entry in history[:4]] == [False, False, False, True]
    assert len(history) < 50
    summary = json.loads((tmp_path / "history").read_text())
    assert summary["first_epoch_to_target"] == len(history)
    # Saves within an epoch neither count as training nor make an epoch look shorter.
    assert sum(entry["train_seconds"] for entry in history) == pytest.approx(
        summary["train_seconds"], abs=0.01
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float16"},
        {"precision": "bfloat16", "gradient_accumulation": 3},
        {"xla": False, "l2": 1e-6, "verify_negatives": True, "trace": True},
    ],
    ids=["float16 with loss scaling", "bfloat16 with accumulation", "without XLA, with L2, verified, traced"],
)
def test_every_engine_option_trains_to_a_useful_model(ncf_dataset, tmp_path, changes):
    done = train_ncf(tmp_path, ncf_dataset, epochs=25, **changes)
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "history").read_text())
    assert history["validation_hr@10"] > 0.55
    assert any((tmp_path / "checkpoint").glob("trace/**/*.pb")) == bool(changes.get("trace"))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_vae_cf_trains_in_mixed_precision(vae_dataset, tmp_path, precision):
    settings = {**VAE, "epochs": 60, "learning_rate": 0.01, "precision": precision, "validation_step": 10}
    done = run("train", tmp_path, dataset=vae_dataset, model="vae_cf", hyperparameters=settings, seed=1)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "history").read_text())["validation_ndcg@20"] > 0.5


def test_a_diverging_run_names_the_step(ncf_dataset, tmp_path):
    done = train_ncf(tmp_path, ncf_dataset, learning_rate=1e30)
    assert done.returncode == 2
    assert "the loss of step" in done.stderr
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"hyperparameters": {"epoch": 3}}, "unknown key 'epoch' (did you mean 'epochs'?)"),
        ({"hyperparameters": {"epochs": "three"}}, "epochs must be a whole number, not 'three'"),
        ({"hyperparameters": {"precision": "half"}}, "one of float32, bfloat16, float16"),
        ({"hyperparameters": {"topk": 99}}, "topk 99 is larger than the 41 candidates"),
        ({"model": "ncff"}, "allowed: ncf, vae_cf"),
        ({"model": "vae_cf"}, "needs mapping 'validation_input'"),
        ({"resume": "/nowhere"}, "no last.npz there"),
        ({"resume": "/etc/hostname"}, "no last.npz there"),
        ({"dataset": "/nowhere"}, "no such file or folder"),
        ({"seed": "x"}, "invalid int value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(ncf_dataset, tmp_path, capsys, flags, message):
    given = {"dataset": ncf_dataset, "model": "ncf", "seed": 3, "resume": "", "hyperparameters": {}, **flags}
    try:
        code = train_main(command("train", tmp_path, **given)[3:])
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("*[!l]")), "something was published"


def test_a_checkpoint_of_another_run_is_not_resumed(unbroken, ncf_dataset, tmp_path):
    done = train_ncf(tmp_path, ncf_dataset, resume=unbroken / "checkpoint", batch_size=400)
    assert done.returncode == 2
    assert "was saved with hyperparameters" in done.stderr


def test_a_broken_checkpoint_is_one_line(unbroken, ncf_dataset, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "feature_spec.yaml"):
        (broken / name).write_bytes((unbroken / "checkpoint" / name).read_bytes())
    for content, message in ((None, "model.keras is missing"), (b"not a model", "cannot be read")):
        if content:
            (broken / "model.keras").write_bytes(content)
        done = run("evaluate", tmp_path, dataset=ncf_dataset, checkpoint=broken, options={})
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
