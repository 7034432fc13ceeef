"""Wide & Deep: the step equals the plain network, two optimizers, padding, schedule, exact evaluation."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from planted import CLICK_CHANNELS, write_clicks

from recsys import counter_random
from recsys.categorical import categoricals, layer_name
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.models.wide_deep import Config, Model
from recsys.optimizers import WarmupAndDrops
from recsys.step import UserError

SMALL = {"hidden": (24, 12), "batch_size": 480, "epochs": 4, "warmup_epochs": 1.0, "micro_batch": 96}


def build(dataset, seed=3, **hyperparameters):
    model = Model(Config(**{**SMALL, **hyperparameters}), FeatureSpec.read(dataset))
    network = model.network(seed)
    return model, network, create_engine(model, network, model.config, model.training_arrays())


def randomize(network, generator):
    for variable in network.trainable_variables:
        variable.assign(generator.normal(0, 0.3, variable.shape))


def by_name(model, columns):
    """A batch's matrices as the inputs of the network."""
    inputs = {}
    for feature in model.features:
        ids = columns["multihot" if feature.hotness else "onehot"]
        piece = ids[:, feature.start : feature.start + max(feature.hotness, 1)]
        inputs[feature.label] = piece if feature.hotness else piece[:, 0]
    inputs.update({name: columns["numerical"][:, n] for n, name in enumerate(model.numerical)})
    return inputs


def train(model, engine, epochs):
    step, losses = 0, []
    for epoch in range(epochs):
        for batch in model.batches(1, epoch):
            seed = counter_random.step_seed(1, step)
            losses.append(float(engine.train_step(model.batch(batch, seed, step))))
            step += 1
    return losses


@pytest.mark.parametrize("combiner", ["sum", "mean"])
def test_loss_and_gradients_equal_those_of_the_plain_network(wide_dataset, combiner):
    model, network, engine = build(wide_dataset, dropout=0.0, combiner=combiner)
    randomize(network, np.random.default_rng(0))
    batch = next(model.batches(1, 0))
    step = model.batch(batch, np.int32(0), 0)
    with tf.GradientTape() as tape:
        logits = network(by_name(model, batch.columns), training=False)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(batch.columns["label"][:, 0], logits)
        expected_loss = tf.reduce_mean(entropy)
    expected = tape.gradient(expected_loss, network.trainable_variables)
    loss, gradients = engine.gradients(engine.weights(), {}, engine.put(step), tf.constant(1.0))
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    for variable, gradient in zip(network.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(
            gradients[variable.path],
            tf.convert_to_tensor(gradient),
            rtol=2e-4,
            atol=1e-6,
            err_msg=variable.path,
        )


def test_a_forward_pass_equals_loops_in_plain_numpy(wide_dataset):
    """Every term by hand: embeddings, masked mean of lists, hidden layers, wide scalars, biases."""
    model, network, _ = build(wide_dataset, combiner="mean")
    randomize(network, np.random.default_rng(1))
    weights = {v.path: v.numpy() for v in network.trainable_variables}
    columns = next(model.batches(1, 0)).columns
    scored = model.score({k: tf.constant(v) for k, v in weights.items()}, columns).numpy()
    cardinalities = {"user": 50, "item": 40, "device": 4, "topics": 9}
    assert {f.name: f.cardinality for f in model.features} == cardinalities
    for row in range(20):
        lists = {name: [int(columns["onehot"][row, n])] for n, name in enumerate(("user", "item", "device"))}
        lists["topics"] = [int(i) for i in columns["multihot"][row] if i >= 0]
        deep, wide, offset = [], 0.0, 0
        for name, ids in lists.items():
            table = weights[f"deep_{name}/embeddings"]
            deep += list(sum((table[i] for i in ids), np.zeros(table.shape[1])) / max(len(ids), 1))
            wide += sum(float(weights["wide/embeddings"][offset + i, 0]) for i in ids)
            offset += cardinalities[name]
        hidden = np.array(deep + list(columns["numerical"][row]))
        for number in range(2):
            hidden = np.maximum(
                hidden @ weights[f"dense_{number}/kernel"] + weights[f"dense_{number}/bias"], 0
            )
        numbers = (
            columns["numerical"][row] @ weights["wide_numerical/kernel"] + weights["wide_numerical/bias"]
        )
        logit = hidden @ weights["head/kernel"] + weights["head/bias"] + wide + numbers
        assert scored[row] == pytest.approx(logit[0], abs=1e-4)


def test_each_part_has_its_optimizer(wide_dataset):
    """One step of FTRL on the wide part and of RMSprop on the deep part, by their published formulas."""
    model, network, engine = build(wide_dataset, dropout=0.0, warmup_epochs=0.0, learning_rate=0.01)
    before = {v.path: v.numpy() for v in network.trainable_variables}
    step = model.batch(next(model.batches(1, 0)), np.int32(0), 0)
    _, gradients = engine.gradients(engine.weights(), {}, engine.put(step), tf.constant(1.0))
    gradients = {name: np.asarray(value) for name, value in gradients.items()}
    engine.train_step(step)
    for variable in network.trainable_variables:
        g, w = gradients[variable.path], before[variable.path]
        if variable.path.startswith("wide"):
            # McMahan et al. 2013 with z_0 = 0, n_0 = 0.1, no l1 or l2: w = -z lr / sqrt(n).
            expected = -(g - (np.sqrt(0.1 + g * g) - np.sqrt(0.1)) / 0.02 * w) * 0.02 / np.sqrt(0.1 + g * g)
        else:
            expected = w - 0.01 / 4 * g / np.sqrt(0.5 * g * g + 1e-7)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-3, atol=2e-5, err_msg=variable.path)


def test_the_schedule_warms_up_and_drops_twice():
    schedule = WarmupAndDrops(0.8, 6 * 10, 20 * 10)
    rates = [float(schedule(step)) for step in range(200)]
    assert rates[0] == pytest.approx(0.8 / 60)
    assert rates[29] == pytest.approx(0.4)
    assert rates[58] == pytest.approx(0.8 * 59 / 60)
    assert rates[59:130] == pytest.approx([0.2] * 71)
    assert rates[130:] == pytest.approx([0.1] * 70)


def test_the_default_network_has_the_parameters_of_the_reference(tmp_path):
    """91,777,245 of them, counted from the shapes; the network itself is not built."""
    onehot = {"ad_id": (250000, 128), "document_id": (300000, 128), "platform": (4, 19)}
    onehot |= {"document_id_promo": (100000, 128), "campaign_id": (5000, 128), "advertiser_id": (2500, 64)}
    onehot |= {"source_id": (4000, 64), "geo_location": (2500, 64), "geo_location_country": (300, 64)}
    onehot |= {"geo_location_state": (2000, 64), "publisher_id": (1000, 64), "source_id_promo": (4000, 64)}
    onehot |= {"publisher_id_promo": (1000, 64)}
    multihot = {"topic_id_list": (350, 64), "entity_id_list": (10000, 64), "category_id_list": (100, 64)}
    features = {
        name: {"cardinality": cardinality, "embedding_size": size}
        for name, (cardinality, size) in {**onehot, **multihot}.items()
    }
    for name in multihot:
        features[name]["max_hotness"] = 3
    numerical = tuple(f"n{number}" for number in range(13))
    source = FeatureSpec.read(write_clicks(tmp_path, 32, 32, 32))
    spec = dataclasses.replace(
        source,
        feature_spec={**source.feature_spec, **features},
        channel_spec={
            "onehot_categorical": tuple(onehot),
            "multihot_categorical": tuple(multihot),
            "numerical": numerical,
            "label": ("clicked",),
        },
    )
    model = Model.__new__(Model)
    model.config, model.spec, model.numerical = Config(), spec, list(numerical)
    model.features = categoricals(spec, {})
    width = sum(feature.size for feature in model.features) + 13
    assert width == 1248
    tables = sum(feature.cardinality * feature.size for feature in model.features)
    wide = sum(feature.cardinality for feature in model.features) + 13 + 1
    dense = width * 1024 + 1024 + 4 * (1024 * 1024 + 1024) + 1024 + 1
    assert tables + wide + dense == 91_777_245


def test_planted_clicks_are_learned_and_shuffled_ones_are_not(wide_dataset, tmp_path):
    settings = {"learning_rate": 0.03, "epochs": 16}
    model, _, engine = build(wide_dataset, **settings)
    losses = train(model, engine, 16)
    assert np.mean(losses[-10:]) < 0.88 * np.mean(losses[:10])
    metrics = model.evaluate(compile_inference, engine.weights(), "test", 700)
    baseline = model.baseline_metrics("test")
    assert metrics["auc"] > 0.74 > 0.6 > baseline["auc"]
    assert metrics["map@12"] > baseline["map@12"] + 0.08
    assert metrics["log_loss"] < 0.6

    model, _, engine = build(write_clicks(tmp_path, 6000, 4000, 700, shuffle_labels=True), **settings)
    train(model, engine, 3)
    assert model.evaluate(compile_inference, engine.weights(), "test", 700)["auc"] == pytest.approx(
        0.5, abs=0.03
    )


@pytest.mark.parametrize("batch_size", [1, 7, 700, 10_000])
def test_evaluation_takes_every_row_whatever_the_batch(tmp_path, batch_size):
    folder = write_clicks(tmp_path, 200, 203, 50)
    model, network, engine = build(folder)
    randomize(network, np.random.default_rng(2))
    metrics = model.evaluate(compile_inference, engine.weights(), "test", batch_size)
    spec = FeatureSpec.read(folder)
    columns = spec.columns("test", list(spec.feature_spec))
    inputs = {name: columns[name] for name in ("user", "item", "device", "topics", "price", "age")}
    logits = network(inputs).numpy().astype(float)
    label = columns["clicked"]
    assert metrics["log_loss"] == pytest.approx(np.mean(np.logaddexp(0, logits) - logits * label), abs=1e-6)
    precisions = []
    for display in np.unique(columns["display"]):
        rows = np.flatnonzero(columns["display"] == display)
        order = rows[np.argsort(-logits[rows])]
        hits = [rank for rank, row in enumerate(order, 1) if label[row]]
        if hits:
            precisions.append(np.mean([n / rank for n, rank in enumerate(hits, 1)]))
    assert metrics["map@12"] == pytest.approx(np.mean(precisions), abs=1e-9)


def test_without_groups_the_best_epoch_is_that_of_auc(wide_dataset):
    channels = {name: features for name, features in CLICK_CHANNELS.items() if name != "group"}
    spec = dataclasses.replace(FeatureSpec.read(wide_dataset), channel_spec=channels)
    model = Model(Config(**SMALL), spec)
    assert model.metric == "auc"
    assert set(model.baseline_metrics("test")) == {"auc", "log_loss"}


@pytest.mark.parametrize(
    "kept",
    [
        ("user", "numerical"),
        ("numerical",),
        ("multihot_categorical",),
        ("user", "item", "onehot_categorical"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_any_mix_of_inputs_trains_in_any_precision(wide_dataset, kept, precision):
    channels = {name: CLICK_CHANNELS[name] for name in (*kept, "label")}
    spec = dataclasses.replace(FeatureSpec.read(wide_dataset), channel_spec=channels)
    model = Model(Config(**SMALL, precision=precision), spec)
    network = model.network(1)
    engine = create_engine(model, network, model.config, {})
    before = {v.path: v.numpy() for v in network.trainable_variables}
    losses = train(model, engine, 1)
    assert np.isfinite(losses).all()
    assert all((v.numpy() != before[v.path]).any() for v in network.trainable_variables)
    assert 0 < model.evaluate(compile_inference, engine.weights(), "test", 500)["log_loss"] < 1


def test_accumulated_gradients_make_one_update_of_both_parts(wide_dataset):
    model, network, engine = build(wide_dataset, gradient_accumulation=3)
    before = {v.path: v.numpy() for v in network.trainable_variables}
    batches = [
        model.batch(batch, np.int32(0), 0) for batch, _ in zip(model.batches(1, 0), range(3), strict=False)
    ]
    for number, batch in enumerate(batches, 1):
        engine.train_step(batch)
        changed = [(v.numpy() != before[v.path]).any() for v in network.trainable_variables]
        assert all(changed) if number == 3 else not any(changed)


def test_embedding_sizes_come_from_json_then_spec_then_cardinality(wide_dataset):
    model = Model(Config(**SMALL, embedding_sizes={"user": 5}), FeatureSpec.read(wide_dataset))
    assert {f.name: f.size for f in model.features} == {"user": 5, "item": 13, "device": 3, "topics": 5}
    with pytest.raises(UserError, match=r"embedding_sizes has 'usr', which is no categorical feature"):
        Model(Config(**SMALL, embedding_sizes={"usr": 5}), FeatureSpec.read(wide_dataset))


def test_awkward_feature_names_train_and_score(wide_dataset):
    """A slash would split a variable's path, `head` is a layer of the network."""
    source = FeatureSpec.read(wide_dataset)
    channels = {"user": ("user",), "item": ("item",), "numerical": ("price",), "label": ("clicked",)}
    spec = dataclasses.replace(source, channel_spec=channels)
    model = Model(Config(**SMALL), spec)
    assert [layer_name(name, 4) for name in ("ad_id", "a/b", "head", "deep_x", "two words")] == [
        "ad_id", "feature_4", "feature_4", "feature_4", "feature_4",
    ]  # fmt: skip
    assert set(model.network(1).input) == {"user", "item", "price"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_epochs": 5.0}, r"warmup_epochs must be in \[0, epochs \(4\)\]"),
        ({"combiner": "max"}, "combiner must be one of sum, mean"),
        ({"hidden": ()}, "hidden must be one or more positive widths"),
        ({"wide_learning_rate": 0.0}, "wide_learning_rate must be more than 0"),
        ({"embedding_sizes": {"user": 0}}, "embedding_sizes must be an object of positive widths"),
    ],
)
def test_wrong_hyperparameters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Config(**{**SMALL, **change})


def test_a_dataset_without_inputs_or_with_one_label_is_refused(wide_dataset, tmp_path):
    spec = FeatureSpec.read(wide_dataset)
    with pytest.raises(UserError, match="wide_deep needs a feature in one of the channels user, item"):
        Model(Config(**SMALL), dataclasses.replace(spec, channel_spec={"label": ("clicked",)}))
    with pytest.raises(UserError, match="model wide_deep needs exactly one feature in channel 'label'"):
        Model(Config(**SMALL), dataclasses.replace(spec, channel_spec={"user": ("user",)}))


def test_the_saved_network_scores_like_the_model(wide_dataset, tmp_path):
    model, network, engine = build(wide_dataset, combiner="mean")
    randomize(network, np.random.default_rng(4))
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    columns = next(model.batches(1, 0)).columns
    expected = model.score(engine.weights(), columns).numpy()
    np.testing.assert_allclose(loaded(by_name(model, columns)).numpy(), expected, rtol=1e-4, atol=1e-5)
