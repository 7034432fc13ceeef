"""NeuMF: the fast algebra equals the plain network, negatives are what they claim, evaluation is exact."""

import itertools

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from planted import write_dataset

from recsys import counter_random
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import epoch_batches
from recsys.models.ncf import Config, Model
from recsys.step import UserError

SMALL = {"factors": 8, "layers": (16, 12, 6), "batch_size": 500}


def build(dataset, **hyperparameters):
    model = Model(Config(**{**SMALL, **hyperparameters}), FeatureSpec.read(dataset))
    network = model.network(3)
    return model, network, create_engine(model, network, model.config, model.training_arrays())


def first_batch(model, seed=11):
    batch = next(epoch_batches(model.examples, model.batch_examples, 1, 0))
    return model.batch(batch, np.int32(seed), 0)


def plain_loss_and_gradients(model, network, engine, batch):
    """Autodiff of the stock network on the pairs that the step draws, in one piece."""
    tensors = engine.put(batch)
    user = engine.arrays["user"].numpy()[batch["index"]]
    negative, exists = model._negatives(engine.arrays, tf.constant(user), tensors)
    item = np.c_[engine.arrays["item"].numpy()[batch["index"]], negative.numpy()]
    label = np.zeros(item.shape, np.float32)
    label[:, 0] = 1
    weight = batch["weight"][:, None] * np.c_[np.ones((len(user), 1)), exists.numpy()]
    with tf.GradientTape() as tape:
        logits = network({"user": np.repeat(user, item.shape[1]), "item": item.ravel()}, training=False)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(label.ravel(), logits[:, 0])
        loss = tf.reduce_sum(entropy * weight.ravel()) * batch["scale"]
    gradients = tape.gradient(loss, network.trainable_variables)
    return float(loss), {
        v.path: tf.convert_to_tensor(g).numpy()
        for v, g in zip(network.trainable_variables, gradients, strict=True)
    }


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "verify"),
    [(100_000, 0, False), (500, 0, False), (500, 32, False), (500, 32, True)],
    ids=["projected tables", "projected rows", "micro-batches", "verified negatives"],
)
def test_loss_and_gradients_equal_those_of_the_plain_network(ncf_dataset, batch_size, micro_batch, verify):
    model, network, engine = build(
        ncf_dataset, dropout=0.0, batch_size=batch_size, micro_batch=micro_batch, verify_negatives=verify
    )
    batch = first_batch(model)
    loss, gradients = engine.gradients(engine.weights(), engine.arrays, engine.put(batch), tf.constant(1.0))
    expected_loss, expected = plain_loss_and_gradients(model, network, engine, batch)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name].numpy(), value, rtol=1e-3, atol=1e-7, err_msg=name)


def test_dropout_acts_in_training_and_not_in_scoring(ncf_dataset):
    losses = {}
    for rate in (0.0, 0.5):
        model, network, engine = build(ncf_dataset, dropout=rate)
        keras.utils.set_random_seed(1)
        for variable in network.trainable_variables:
            variable.assign(keras.random.normal(variable.shape, stddev=0.3))
        loss, _ = engine.gradients(
            engine.weights(), engine.arrays, engine.put(first_batch(model)), tf.constant(1.0)
        )
        losses[rate] = float(loss)
        user, item = np.array([1, 2], np.int32), np.array([[3], [4]], np.int32)
        plain = network({"user": user, "item": item[:, 0]}).numpy()
        np.testing.assert_allclose(model.score(engine.weights(), user, item).numpy(), plain, rtol=1e-5)
    assert abs(losses[0.5] - losses[0.0]) > 1e-3


def test_verified_negatives_are_never_known_and_uniform_over_the_rest(ncf_dataset):
    model, _, engine = build(ncf_dataset, verify_negatives=True, batch_size=100_000)
    known = {pair for pair in zip(*(engine.arrays[name].numpy() for name in ("user", "item")), strict=True)}
    user = engine.arrays["user"].numpy()
    drawn = []
    for seed in range(40):
        batch = engine.put(first_batch(model, seed))
        users = tf.gather(engine.arrays["user"], batch["index"])
        items, exists = model._negatives(engine.arrays, users, batch)
        assert (exists.numpy() == 1).all()
        pairs = np.c_[np.repeat(users.numpy(), 4), items.numpy().ravel()]
        assert not known & {tuple(pair) for pair in pairs}
        drawn.append(pairs)
    pairs = np.concatenate(drawn)
    mine = pairs[pairs[:, 0] == 5, 1]
    counts = np.bincount(mine, minlength=model.items)
    unknown = np.setdiff1d(np.arange(model.items), [i for u, i in known if u == 5])
    expected = len(mine) / len(unknown)
    assert counts[unknown].sum() == len(mine)
    assert ((counts[unknown] - expected) ** 2 / expected).sum() < 2 * len(unknown)
    assert len(user)


def test_unverified_negatives_are_drawn_from_all_items(ncf_dataset):
    model, _, engine = build(ncf_dataset, batch_size=100_000)
    batch = engine.put(first_batch(model))
    items, _ = model._negatives(engine.arrays, tf.gather(engine.arrays["user"], batch["index"]), batch)
    assert set(np.unique(items)) == set(range(model.items))


def test_a_user_who_knows_every_item_trains_without_negatives(tmp_path):
    everything = {
        "user": np.zeros(120, np.int32),
        "item": np.arange(120, dtype=np.int32),
        "label": np.ones(120, np.float32),
    }
    other = {
        "user": np.array([1], np.int32),
        "item": np.array([4], np.int32),
        "label": np.ones(1, np.float32),
    }
    train = {name: np.concatenate([everything[name], other[name]]) for name in other}
    series = {
        "user": np.array([1, 1], np.int32),
        "item": np.array([2, 3], np.int32),
        "label": np.array([1, 0], np.float32),
    }
    mappings = {"train": train, "validation": series, "test": series}
    write_dataset(tmp_path / "d", mappings, ("user", "item", "label"), {"test_samples_per_series": 2})
    model, _, engine = build(tmp_path / "d", verify_negatives=True, topk=1)
    assert np.isfinite(float(engine.train_step(first_batch(model))))


def test_evaluation_equals_a_slow_ranking_by_hand_for_every_batch_size(ncf_dataset):
    model, network, engine = build(ncf_dataset, topk=5)
    for variable in network.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.path)).normal(0, 0.3, variable.shape))
    table = pq.read_table(ncf_dataset / "validation.parquet").to_pydict()
    scores = network(
        {"user": np.array(table["user"], np.int32), "item": np.array(table["item"], np.int32)}
    ).numpy()[:, 0]
    hits, gains, users = 0, 0.0, 0
    rows = list(zip(table["user"], table["item"], table["label"], scores, strict=True))
    for _, series in itertools.groupby(rows, key=lambda row: row[0]):
        series = list(series)
        positive = next(row for row in series if row[2] == 1)
        competitors = {item: score for _, item, _, score in series if item != positive[1]}
        rank = 1 + sum(score >= positive[3] for score in competitors.values())
        users += 1
        hits += rank <= 5
        gains += 1 / np.log2(rank + 1) if rank <= 5 else 0
    for size in (1000, 64, 7):
        values = model.evaluate(compile_inference, engine.weights(), "test", size)
        assert values == pytest.approx({"hr@5": hits / users, "ndcg@5": gains / users}, abs=1e-12)


def test_equal_scores_and_nan_scores_score_nothing(ncf_dataset):
    for value in (0.0, np.nan):
        model, network, engine = build(ncf_dataset)
        for variable in network.trainable_variables:
            variable.assign(np.full(variable.shape, value))
        assert model.evaluate(compile_inference, engine.weights(), "test", 100)["hr@10"] == 0.0


def test_training_recovers_the_planted_groups(ncf_dataset):
    model, _, engine = build(ncf_dataset, layers=(32, 32, 16), learning_rate=0.01, dropout=0.2)
    step = 0
    for epoch in range(25):
        for batch in epoch_batches(model.examples, model.batch_examples, 1, epoch):
            engine.train_step(model.batch(batch, counter_random.step_seed(1, step), step))
            step += 1
    trained = model.evaluate(compile_inference, engine.weights(), "test", 100)
    # An oracle that knows the groups ranks the positive among about 7 of the user's own group.
    assert trained["hr@10"] > 0.75
    assert model.baseline_metrics("test")["hr@10"] < 0.45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 60}, "topk 60 is larger than the 41 candidates"),
        ({"layers": (15, 8)}, "layers must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"batch_size": 0}, "batch_size must be more than 0"),
    ],
)
def test_wrong_hyperparameters_are_one_line(ncf_dataset, change, message):
    with pytest.raises(UserError, match=message):
        Model(Config(**{**SMALL, **change}), FeatureSpec.read(ncf_dataset)).baseline_metrics("test")


def test_series_with_two_positives_are_refused(tmp_path):
    train = {
        "user": np.zeros(2, np.int32),
        "item": np.arange(2, dtype=np.int32),
        "label": np.ones(2, np.float32),
    }
    write_dataset(
        tmp_path,
        {"train": train, "validation": train, "test": train},
        ("user", "item", "label"),
        {"test_samples_per_series": 2},
    )
    with pytest.raises(UserError, match="exactly one row with label 1"):
        Model(Config(**SMALL, topk=1), FeatureSpec.read(tmp_path)).baseline_metrics("test")
