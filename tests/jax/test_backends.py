"""The same training steps on two Keras backends: equal weights in, equal losses and weights out.

Possible because randomness is a function of counters (:mod:`recsys.counter_random`) and no backend's own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TENSORFLOW = ROOT / ".venv/train/bin/python"
PROGRAM = Path(__file__).with_name("take_steps.py")


@pytest.mark.parametrize("name", ["ncf", "vae_cf"])
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
