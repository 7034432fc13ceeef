"""The same training steps on two Keras backends: equal weights in, equal losses and weights out.

Possible because randomness is a function of counters (:mod:`recsys.counter_random`) and no backend's own.
Run as a program it takes the steps and saves what came out: ``test_backends.py MODEL DATASET OUTPUT``.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TENSORFLOW = ROOT / ".venv/train/bin/python"
SMALL = {
    "ncf": {
        "factors": 8,
        "layers": (16, 12, 6),
        "batch_size": 500,
        "micro_batch": 32,
        "verify_negatives": True,
    },
    "vae_cf": {"hidden": (24,), "latent": 8, "batch_size": 50, "topk": 20},
}
STEPS = 12


def take_steps(name: str, dataset: str, output: str) -> None:
    """Trains STEPS steps from seeded weights on the backend of this process."""
    from recsys import counter_random, models
    from recsys.engine import compiler, create_engine
    from recsys.feature_spec import FeatureSpec
    from recsys.input_pipeline import epoch_batches

    module = models.load(name)
    model = module.Model(module.Config(**SMALL[name], learning_rate=0.002), FeatureSpec.read(dataset))
    network = model.network(1)
    for variable in network.trainable_variables:
        generator = np.random.default_rng(list(variable.path.encode()))
        variable.assign(generator.normal(0, 0.1, variable.shape))
    engine = create_engine(model, network, model.config, model.training_arrays())
    losses, step = [], 0
    while step < STEPS:
        for batch in epoch_batches(model.examples, model.batch_examples, 1, step):
            seed = counter_random.step_seed(1, step)
            losses.append(float(engine.train_step(model.batch(batch, seed, step))))
            step += 1
    metrics = model.evaluate(compiler(True), engine.weights(), "test", 50)
    engine.synchronize()
    weights = {variable.path: np.asarray(variable.value) for variable in network.trainable_variables}
    np.savez(output, losses=losses, metrics=list(metrics.values()), **weights)


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
        command = [python, __file__, name, str(dataset), str(output)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(dict(np.load(output)))
    tensorflow, jax = results
    for key in tensorflow:
        np.testing.assert_allclose(jax[key], tensorflow[key], rtol=2e-3, atol=2e-5, err_msg=key)


if __name__ == "__main__":
    take_steps(*sys.argv[1:])
