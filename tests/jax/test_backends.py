"""The same training steps on two Keras backends: equal weights in, equal losses and weights out.

Possible because randomness is a function of counters (:mod:`recsys.counter_random`) and no backend's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TENSORFLOW = ROOT / ".venv/train/bin/python"
PROGRAM = Path(__file__).with_name("take_steps.py")


@pytest.mark.parametrize("name", ["ncf", "vae_cf", "wide_deep"])
def test_jax_and_tensorflow_take_the_same_steps(name, tmp_path, request):
    if not TENSORFLOW.exists():
        pytest.skip("needs .venv/train; run make setup")
    dataset = request.getfixturevalue(f"{name.split('_')[0]}_dataset")
    results = []
    for backend, python in (("tensorflow", str(TENSORFLOW)), ("jax", sys.executable)):
        output = tmp_path / f"{backend}.npz"
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        command = [python, str(PROGRAM), name, str(dataset), str(output)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(dict(np.load(output)))
    tensorflow, jax = results
    for key in tensorflow:
        np.testing.assert_allclose(jax[key], tensorflow[key], rtol=2e-3, atol=2e-5, err_msg=key)


def test_the_train_program_runs_on_jax_and_resumes_to_the_same_weights(ncf_dataset, tmp_path):
    def train(name, epochs, resume=""):
        settings = {"factors": 8, "layers": [16, 12, 6], "batch_size": 500, "epochs": epochs}
        flags = {
            "dataset": ncf_dataset,
            "model": "ncf",
            "hyperparameters": json.dumps(settings),
            "resume": resume,
        }
        flags |= {out: tmp_path / name / out for out in ("checkpoint", "history", "learning_curve")}
        command = [sys.executable, "-m", "components.train.main"]
        command += [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
        environment = {**os.environ, "KERAS_BACKEND": "jax"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / name / "checkpoint" / "last.npz") as saved:
            return {key: saved[key] for key in saved.files if key != "state"}

    unbroken = train("unbroken", 4)
    train("first", 2)
    resumed = train("second", 4, tmp_path / "first" / "checkpoint")
    for key in unbroken:
        np.testing.assert_array_equal(resumed[key], unbroken[key], err_msg=key)
