"""Trains a few steps on the backend of ``KERAS_BACKEND`` and saves what came out.

``take_steps.py MODEL DATASET OUTPUT``; runs in any environment that has Keras.
"""

import sys

import keras
import numpy as np

from recsys import counter_random, models
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec

SMALL = {
    "ncf": {
        "factors": 8,
        "layers": (16, 12, 6),
        "batch_size": 500,
        "micro_batch": 32,
        "verify_negatives": True,
    },
    "vae_cf": {"hidden": (24,), "latent": 8, "batch_size": 50, "topk": 20},
    "wide_deep": {"hidden": (24, 12), "batch_size": 512, "micro_batch": 128, "combiner": "mean"},
}
STEPS = 12


def take_steps(name: str, dataset: str, output: str) -> None:
    """Trains STEPS steps from seeded weights on the backend of this process."""
    module = models.load(name)
    model = module.Model(module.Config(**SMALL[name], learning_rate=0.002), FeatureSpec.read(dataset))
    network = model.network(1)
    for variable in network.trainable_variables:
        generator = np.random.default_rng(list(variable.path.encode()))
        variable.assign(generator.normal(0, 0.1, variable.shape))
    engine = create_engine(model, network, model.config, model.training_arrays())
    losses, step = [], 0
    while step < STEPS:
        for batch in model.batches(1, step):
            seed = counter_random.step_seed(1, step)
            losses.append(float(engine.train_step(model.batch(batch, seed, step))))
            step += 1
    metrics = model.evaluate(compile_inference, engine.weights(), "test", 50)
    engine.synchronize()
    weights = {
        variable.path: keras.ops.convert_to_numpy(variable.value) for variable in network.trainable_variables
    }
    np.savez(output, losses=losses, metrics=list(metrics.values()), **weights)


if __name__ == "__main__":
    take_steps(*sys.argv[1:])
