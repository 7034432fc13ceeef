"""Training on several ranks, started by a real mpirun on this machine."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recsys import distributed
from recsys.input_pipeline import share_of
from recsys.step import UserError

ROOT = Path(__file__).parents[2]
NCF = {"factors": 8, "layers": [16, 12, 6], "batch_size": 500, "epochs": 3, "learning_rate": 0.01}
VAE = {"hidden": [24], "latent": 8, "batch_size": 50, "topk": 20, "epochs": 6, "validation_step": 3}
WIDE = {"hidden": [24, 12], "batch_size": 480, "warmup_epochs": 1, "epochs": 2, "learning_rate": 0.02}
MODELS = {"ncf": NCF, "vae_cf": VAE, "wide_deep": WIDE}
ANSWER_SECONDS = 60  # from a signal or a death to the end of mpirun; a stuck rank gives up after 25

pytestmark = [
    pytest.mark.skipif(
        not (shutil.which("mpirun") and importlib.util.find_spec("horovod")),
        reason="several ranks need Open MPI and Horovod: make setup-horovod",
    ),
    pytest.mark.timeout(900),
]


def mpirun(ranks: int) -> list[str]:
    options = "--oversubscribe --bind-to none --mca mpi_yield_when_idle 1"
    return ["mpirun", "-np", str(ranks), *options.split()]


def environment(**more: str) -> dict[str, str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **root, "TF_CPP_MIN_LOG_LEVEL": "2", **more}


def command(folder: Path, ranks: int, model: str, dataset: Path, resume="", **changes) -> list[str]:
    flags = {
        "dataset": dataset,
        "model": model,
        "seed": 3,
        "resume": resume,
        "hyperparameters": json.dumps({**MODELS[model], **changes}),
        **{name: folder / name for name in ("checkpoint", "history", "learning_curve")},
    }
    started = mpirun(ranks) if ranks > 1 else []
    program = [sys.executable, "-m", "components.train.main"]
    return [
        *started,
        *program,
        *(str(part) for flag, value in flags.items() for part in (f"--{flag}", value)),
    ]


def run(folder: Path, ranks: int, model: str, dataset: Path, env=None, **changes):
    return subprocess.run(
        command(folder, ranks, model, dataset, **changes),
        cwd=ROOT,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=600,
    )


def start(folder: Path, ranks: int, model: str, dataset: Path, patience=1, **changes) -> subprocess.Popen:
    """A run that goes on until something ends it, after it has saved a state.

    Args:
        patience: seconds that mpirun waits between SIGTERM and SIGKILL; it always waits all of them.
    """
    changes = {"epochs": 100_000, "checkpoint_seconds": 1, **changes}
    process = subprocess.Popen(
        command(folder, ranks, model, dataset, **changes),
        cwd=ROOT,
        env=environment(OMPI_MCA_odls_base_sigkill_timeout=str(patience)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 180
    while not (folder / "checkpoint.partial" / "last.npz").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    return process


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, in order."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().decode(errors="replace")
        if number := re.search(r"OMPI_COMM_WORLD_RANK=(\d+)", variables):
            found[int(number[1])] = int(child)
    return [found[number] for number in sorted(found)]


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "last.npz") as saved:
        return {name: saved[name] for name in saved.files if name.startswith("weight/")}


def metrics(folder: Path) -> dict[str, float]:
    history = json.loads((folder / "history").read_text())
    (name,) = (key for key in history if key.startswith("validation_"))
    return {name: history[name], "train_loss": history["train_loss"], "steps": history["steps"]}


def assert_equal_runs(folder: Path, expected: Path, tolerance: float = 2e-4) -> None:
    wanted = weights(expected / "checkpoint")
    for name, value in weights(folder / "checkpoint").items():
        np.testing.assert_allclose(value, wanted[name], rtol=tolerance, atol=tolerance, err_msg=name)
    assert metrics(folder) == pytest.approx(metrics(expected), rel=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, request):
    """Runs of one process, by model."""
    done: dict[str, Path] = {}

    def get(model: str) -> Path:
        if model not in done:
            folder = done[model] = tmp_path_factory.mktemp(f"{model}_alone")
            result = run(folder, 1, model, dataset_of(request, model))
            assert result.returncode == 0, result.stderr
        return done[model]

    return get


def dataset_of(request, model: str) -> Path:
    return request.getfixturevalue(f"{model.split('_')[0]}_dataset")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("model", MODELS)
def test_several_ranks_reach_the_weights_and_metrics_of_one(model, ranks, alone, request, tmp_path):
    done = run(tmp_path, ranks, model, dataset_of(request, model))
    assert done.returncode == 0, done.stderr
    assert f"{ranks} workers: " in done.stdout
    assert done.stdout.count("best ") == 1  # the first rank alone reports
    assert_equal_runs(tmp_path, alone(model))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "history", "learning_curve"}
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {
        "model.keras", "config.json", "feature_spec.yaml", "history.json", "last.npz"
    }  # fmt: skip


def test_a_number_of_ranks_that_divides_nothing_changes_nothing(alone, ncf_dataset, tmp_path):
    done = run(tmp_path, 3, "ncf", ncf_dataset)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path, alone("ncf"))


def test_compressed_gradients_and_loss_scaling_train_as_well(alone, ncf_dataset, tmp_path):
    done = run(tmp_path, 2, "ncf", ncf_dataset, compress_gradients=True, precision="float16")
    assert done.returncode == 0, done.stderr
    found, expected = metrics(tmp_path), metrics(alone("ncf"))
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)


def test_exchanges_between_three_ranks():
    done = subprocess.run(
        [*mpirun(3), sys.executable, str(Path(__file__).with_name("exchanges.py")), "3"],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees") == 3


def test_a_state_of_two_ranks_is_continued_by_one_and_by_three(ncf_dataset, tmp_path):
    done = run(tmp_path / "two", 2, "ncf", ncf_dataset, epochs=1)
    assert done.returncode == 0, done.stderr
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        done = run(folder, ranks, "ncf", ncf_dataset, epochs=3, resume=tmp_path / "two" / "checkpoint")
        assert done.returncode == 0, done.stderr
        assert "resumed after epoch 1" in done.stdout
    assert_equal_runs(tmp_path / "3", tmp_path / "1")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_the_last_state_can_be_resumed(victim, ncf_dataset, tmp_path):
    process = start(tmp_path, 2, "ncf", ncf_dataset)
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=ANSWER_SECONDS)
    print(f"ended {time.monotonic() - begin:.1f} s after the kill")
    assert process.returncode != 0
    assert "signal 9 (Killed)" in errors
    done = run(tmp_path / "on", 2, "ncf", ncf_dataset, epochs=1, resume=tmp_path / "checkpoint.partial")
    assert done.returncode == 0, done.stderr


def test_a_signal_to_mpirun_saves_a_state_and_says_how_to_continue(ncf_dataset, tmp_path):
    process = start(tmp_path, 2, "ncf", ncf_dataset, patience=10, checkpoint_seconds=5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=ANSWER_SECONDS)
    assert process.returncode != 0
    assert errors.count("continue with --resume") == 1
    assert "stopped by SIGTERM after epoch" in errors
    assert "Traceback" not in errors
    step = int(re.search(r"stopped by SIGTERM after epoch \d+, step (\d+)", errors)[1])
    with np.load(tmp_path / "checkpoint.partial" / "last.npz") as saved:
        assert json.loads(saved["state"].tobytes())["progress"]["step"] == step


def test_a_signal_to_one_rank_stops_all_at_the_same_step(ncf_dataset, tmp_path):
    process = start(tmp_path, 2, "ncf", ncf_dataset, checkpoint_seconds=5)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=ANSWER_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.count("continue with --resume") == 1


def test_a_rank_that_waits_for_one_that_hangs_gives_up_after_a_signal(ncf_dataset, tmp_path):
    process = start(tmp_path, 2, "ncf", ncf_dataset, checkpoint_seconds=5)
    first, second = ranks_of(process)
    os.kill(second, signal.SIGSTOP)
    time.sleep(2)
    os.kill(first, signal.SIGTERM)
    _, errors = process.communicate(timeout=ANSWER_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert "as if a worker were gone; continue with --resume" in errors


def test_a_rank_that_hangs_ends_the_run(ncf_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv(distributed.STALL_VARIABLE, "45")  # which a compilation on a busy machine stays below
    process = start(tmp_path, 2, "ncf", ncf_dataset)
    os.kill(ranks_of(process)[0], signal.SIGSTOP)
    _, errors = process.communicate(timeout=45 + ANSWER_SECONDS)
    assert process.returncode == 1
    assert "rank 1: no answer of another worker for 45 s" in errors


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_tables_reach_the_weights_and_metrics_of_whole_ones(ranks, ncf_dataset, tmp_path):
    done = run(tmp_path / "begun", 1, "ncf", ncf_dataset, epochs=1)
    assert done.returncode == 0, done.stderr
    begun = tmp_path / "begun" / "checkpoint"
    for name, workers, flags in (("whole", 1, {}), ("sharded", ranks, {"embedding_parallel": True})):
        done = run(tmp_path / name, workers, "ncf", ncf_dataset, resume=begun, **flags)
        assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path / "sharded", tmp_path / "whole")
    # What was put together serves in one process, and goes on there.
    outputs = {name: tmp_path / name for name in ("metrics", "report")}
    flags = {
        "dataset": ncf_dataset,
        "checkpoint": tmp_path / "sharded" / "checkpoint",
        "options": "{}",
        **outputs,
    }
    evaluate = [sys.executable, "-m", "components.evaluate.main"]
    evaluate += [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    subprocess.run(evaluate, cwd=ROOT, env=environment(), check=True, capture_output=True)
    hit_rate = json.loads((tmp_path / "metrics").read_text())["hr@10"]
    assert hit_rate == pytest.approx(metrics(tmp_path / "sharded")["validation_hr@10"], abs=1e-9)
    done = run(tmp_path / "on", 1, "ncf", ncf_dataset, epochs=4, resume=tmp_path / "sharded" / "checkpoint")
    assert done.returncode == 0, done.stderr


def test_sharded_tables_start_alike_on_any_number_of_ranks(ncf_dataset, tmp_path):
    for ranks in (2, 3):
        done = run(tmp_path / str(ranks), ranks, "ncf", ncf_dataset, embedding_parallel=True, epochs=1)
        assert done.returncode == 0, done.stderr
    assert_equal_runs(tmp_path / "3", tmp_path / "2")
    table = weights(tmp_path / "2" / "checkpoint")["weight/user_mf/embeddings"]
    assert 0.005 < table.std() < 0.05


@pytest.mark.parametrize(
    ("changes", "env", "message"),
    [
        ({"learning_rate": 1e30}, {}, "the loss of step"),
        ({"topk": 99}, {}, "topk 99 is larger than the 41 candidates"),
        ({"embedding_parallel": True, "l2": 0.1}, {}, "embedding_parallel must be false with l2"),
        ({"batch_size": 5}, {}, "a batch of 1 examples cannot be shared by 2 workers"),
        ({"resume": "/nowhere"}, {}, "no last.npz there"),
        ({}, {"RECSYS_NUM_WORKERS": "3"}, "RECSYS_NUM_WORKERS is 3, there are 2"),
        ({}, {"RECSYS_NUM_HOSTS": "2"}, "RECSYS_NUM_HOSTS is 2, there is 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_that_all_ranks_see_is_told_once(changes, env, message, ncf_dataset, tmp_path):
    done = run(tmp_path, 2, "ncf", ncf_dataset, env=env, **changes)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("python -m components.train.main")]
    assert message in told[0]
    assert len(told) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "checkpoint").exists()


def test_workers_that_do_not_know_of_each_other_fail(ncf_dataset, tmp_path):
    done = run(tmp_path, 1, "ncf", ncf_dataset, env={"RECSYS_NUM_WORKERS": "2"})
    assert done.returncode == 2
    assert "RECSYS_NUM_WORKERS is 2, there is 1" in done.stderr


def test_only_tensorflow_trains_on_several_ranks(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(UserError, match="KERAS_BACKEND jax trains with one worker, not 2; use tensorflow"):
        distributed.init()


def test_the_number_of_workers_must_divide_the_lanes_of_a_stream(wide_dataset, tmp_path):
    done = run(tmp_path, 3, "wide_deep", wide_dataset)
    assert done.returncode == 2
    assert "batch_size 480 cannot be shared by 3 workers" in done.stderr


def test_a_full_disk_ends_all_ranks_with_one_line(ncf_dataset, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = run(disk, 2, "ncf", ncf_dataset, factors=64, layers=[128, 12], checkpoint_seconds=0)
        assert done.returncode == 2
        told = [
            line for line in done.stderr.splitlines() if line.startswith("python -m components.train.main")
        ]
        assert len(told) == 1
        assert "No space left on device" in told[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 8])
@pytest.mark.parametrize(("rows", "micro_batch"), [(209_715, 0), (209_920, 1024), (480, 96), (8, 8)])
def test_shares_hold_the_batch_and_whole_micro_batches(rows, micro_batch, ranks, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(ranks))
    share, micro = share_of(rows, micro_batch)
    assert rows <= share * ranks < rows * 1.02 + ranks * max(1, share // max(micro, 1) + 1)
    assert micro <= max(micro_batch, 0)
    assert not micro_batch or share % micro == 0
    if ranks == 1 and rows % max(micro_batch, 1) == 0:
        assert (share, micro) == (rows, micro_batch)
