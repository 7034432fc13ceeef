"""Mult-VAE: the sparse algebra equals the paper's dense formulas, evaluation is exact, structure is found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from planted import ITEMS, write_dataset

from recsys import counter_random
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import epoch_batches
from recsys.models.vae_cf import NOISE, Config, Model
from recsys.step import UserError

SMALL = {"hidden": (24,), "latent": 8, "batch_size": 50, "topk": 20, "total_anneal_steps": 100}


def build(dataset, **hyperparameters):
    model = Model(Config(**{**SMALL, **hyperparameters}), FeatureSpec.read(dataset))
    network = model.network(3)
    return model, network, create_engine(model, network, model.config, model.training_arrays())


def dense_rows(rows):
    matrix = np.zeros((rows.rows, ITEMS), np.float32)
    matrix[np.repeat(np.arange(rows.rows), rows.lengths()), rows.items] = 1
    return matrix


def dense_loss(model, network, engine, batch):
    """Liang et al., equation 6, with dense matrices and the step's own noise; no input dropout."""
    target = dense_rows(model._train)[batch["index"]] * batch["weight"][:, None]
    latent = model.config.latent
    counter = batch["sample"][:, None] * latent + np.arange(latent, dtype=np.int32)
    noise = counter_random.normal(counter, batch["seed"], NOISE)
    with tf.GradientTape() as tape:
        code = network(target)["code"]
        mean, log_variance = code[:, :latent], code[:, latent:]
        hidden = mean + tf.exp(log_variance / 2) * noise
        for name in [layer.name for layer in network.layers if layer.name.startswith(("decoder", "logits"))]:
            hidden = network.get_layer(name)(hidden)
        log_likelihood = tf.reduce_sum(target * tf.nn.log_softmax(hidden), axis=1)
        divergence = 0.5 * tf.reduce_sum(tf.exp(log_variance) + mean**2 - 1 - log_variance, axis=1)
        divergence *= batch["weight"]
        loss = tf.reduce_sum(batch["anneal"] * divergence - log_likelihood) * batch["scale"]
    gradients = tape.gradient(loss, network.trainable_variables)
    return float(loss), {
        v.path: g.numpy() for v, g in zip(network.trainable_variables, gradients, strict=True)
    }


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(24,), (24, 12)], ids=["one hidden layer", "two hidden layers"])
def test_loss_and_gradients_equal_the_dense_formulas(vae_dataset, activation, hidden):
    model, network, engine = build(vae_dataset, dropout=0.0, activation=activation, hidden=hidden)
    full = list(epoch_batches(model.examples, model.batch_examples, 1, 0))
    for number in (0, len(full) - 1):  # the last batch is filled up with examples of weight 0
        batch = model.batch(full[number], np.int32(5), 7)
        assert batch["anneal"] == pytest.approx(0.07)
        loss, gradients = engine.gradients(
            engine.weights(), engine.arrays, engine.put(batch), tf.constant(1.0)
        )
        expected_loss, expected = dense_loss(model, network, engine, batch)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(gradients[name].numpy(), value, rtol=2e-3, atol=2e-6, err_msg=name)


def test_input_dropout_leaves_out_its_share_and_keeps_the_scale(vae_dataset):
    model, _, engine = build(vae_dataset, batch_size=180)
    ones = {"encoder_0/kernel": tf.ones((ITEMS, 24))}
    totals = []
    for seed in range(30):
        batch = model.batch(next(epoch_batches(180, 180, 1, 0)), np.int32(seed), 0)
        hidden, _ = model.lookup(ones, engine.arrays, engine.put(batch), training=True)
        totals.append(hidden["hidden"].numpy()[:, 0])
    kept = np.array(totals) * np.sqrt(12) / 2  # number of the 12 items that stayed
    assert np.allclose(kept, kept.round(), atol=1e-4)
    assert kept.mean() == pytest.approx(6, abs=0.1)
    assert kept.var() == pytest.approx(3, abs=0.3)


def test_scores_equal_the_served_network_with_seen_items_masked(vae_dataset):
    model, network, engine = build(vae_dataset)
    given, _ = model.held_out("test")
    matrix = dense_rows(given)
    expected = np.where(matrix > 0, -np.inf, network(matrix)["logits"].numpy())
    from recsys.models.vae_cf import _evaluation_batch

    arrays = engine.put({"start": given.indptr, "item": given.items})
    batch = _evaluation_batch(np.arange(given.rows, dtype=np.int32), len(given.items), given.rows, given.rows)
    np.testing.assert_allclose(model.score(engine.weights(), arrays, batch), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_equals_a_dense_ranking_for_every_batch_size(vae_dataset):
    model, network, engine = build(vae_dataset)
    given, held_out = model.held_out("test")
    scores = np.where(dense_rows(given) > 0, -np.inf, network(dense_rows(given))["logits"].numpy())
    relevant = dense_rows(held_out)
    order = np.argsort(-scores, axis=1)[:, :20]
    hits = np.take_along_axis(relevant, order, axis=1)
    discount = 1 / np.log2(np.arange(2, 22))
    ideal = np.array([discount[: min(int(n), 20)].sum() for n in relevant.sum(axis=1)])
    expected = {
        "ndcg@20": ((hits * discount).sum(axis=1) / ideal).mean(),
        "recall@20": (hits.sum(axis=1) / np.minimum(20, relevant.sum(axis=1))).mean(),
    }
    for size in (1000, 30, 7, 1):
        values = model.evaluate(compile_inference, engine.weights(), "test", size)
        assert values == pytest.approx(expected, abs=1e-6)


def test_a_constant_model_and_its_ties_score_nothing(vae_dataset):
    model, network, engine = build(vae_dataset)
    for variable in network.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    assert model.evaluate(compile_inference, engine.weights(), "test", 100)["ndcg@20"] == 0.0


def test_training_recovers_the_planted_groups(vae_dataset):
    model, network, engine = build(vae_dataset, learning_rate=0.01, anneal_cap=0.05)
    step = 0
    for epoch in range(60):
        for batch in epoch_batches(model.examples, model.batch_examples, 1, epoch):
            engine.train_step(model.batch(batch, counter_random.step_seed(1, step), step))
            step += 1
    trained = model.evaluate(compile_inference, engine.weights(), "test", 100)
    popular = model.baseline_metrics("test")
    assert trained["ndcg@20"] > 2 * popular["ndcg@20"]
    assert trained["recall@20"] > 0.7


def test_the_network_serves_without_this_project(vae_dataset, tmp_path):
    model, network, _ = build(vae_dataset)
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    matrix = dense_rows(model.held_out("test")[0])
    np.testing.assert_array_equal(loaded(matrix)["logits"], network(matrix)["logits"])


def test_an_item_that_is_both_given_and_held_out_is_refused(tmp_path):
    train = {"user": np.zeros(20, np.int32), "item": np.arange(20, dtype=np.int32)}
    given = {"user": np.array([1, 1], np.int32), "item": np.array([4, 5], np.int32)}
    held_out = {"user": np.array([1], np.int32), "item": np.array([5], np.int32)}
    parts = {"input": given, "target": held_out}
    mappings = {"train": train} | {f"{g}_{p}": parts[p] for g in ("validation", "test") for p in parts}
    write_dataset(tmp_path, mappings, ("user", "item"))
    with pytest.raises(UserError, match="user 1 has item 5 in both 'test_input' and 'test_target'"):
        build(tmp_path)[0].baseline_metrics("test")


def test_k_larger_than_the_catalogue_is_one_line(vae_dataset):
    with pytest.raises(UserError, match="topk 200 is larger than the 120 items"):
        build(vae_dataset, topk=200)
