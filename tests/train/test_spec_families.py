"""Bring your own: the reference's families of specs, from generated csv to a trained and evaluated model."""

import numpy as np
import pytest
from spec_families import families, save

from recsys import counter_random, generate_csv, transcode
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.models.wide_deep import Config, Model


@pytest.mark.parametrize("name", families())
def test_a_family_of_specs_trains_and_evaluates(name, tmp_path):
    spec = save(tmp_path / "spec", families()[name])
    csv, parquet = tmp_path / "csv", tmp_path / "parquet"
    flags = ["--spec", spec, "--output", csv, "--rows", 6000, "--seed", 1, "--signal", 3]
    assert generate_csv.main([str(word) for word in flags]) == 0
    flags = ["--input", csv, "--output", parquet, "--chunk_size", 700]
    assert transcode.main([str(word) for word in flags]) == 0

    settings = {"hidden": (32,), "batch_size": 240, "learning_rate": 0.01, "epochs": 5, "warmup_epochs": 1.0}
    model = Model(Config(**settings, xla=False), FeatureSpec.read(parquet))
    engine = create_engine(model, model.network(1), model.config, {})
    losses = []
    for epoch in range(5):
        for batch in model.batches(1, epoch):
            seed = counter_random.step_seed(1, len(losses))
            losses.append(float(engine.train_step(model.batch(batch, seed, len(losses)))))
    assert np.mean(losses[-25:]) < 0.95 * np.mean(losses[:25])
    metrics = model.evaluate(compile_inference, engine.weights(), "test", 1000)
    assert metrics["auc"] > 0.6
    assert ("map@12" in metrics) == (name != "no_categorical")
