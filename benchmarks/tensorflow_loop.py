"""What a careful user writes in Keras: ``python -m benchmarks.tensorflow_loop MODEL FOLDER BATCH STEPS``.

Wide & Deep: a functional Keras model of stock layers, and a ``tf.function`` with one tape and two optimizers,
because ``Model.fit`` has place for one. The data are in memory beforehand. A fifth argument ``xla`` compiles
the whole step with XLA, which was slower on two cores.
"""

import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from recsys.feature_spec import FeatureSpec

folder, batch_size, steps = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
spec = FeatureSpec.read(folder)
one_hot, multi_hot = (spec.channel_spec[f"{kind}_categorical"] for kind in ("onehot", "multihot"))
columns = spec.columns("train", [*one_hot, *multi_hot, *spec.channel_spec["numerical"], "label"])
inputs = {name: columns[name] for name in (*one_hot, *multi_hot)}
inputs["numerical"] = np.column_stack([columns[name] for name in spec.channel_spec["numerical"]])


def embed(name, ids, width, initializer):
    """(batch, width); 1 is added to the ids of lists, so that -1 becomes the row of the padding."""
    rows, prefix = spec.feature_spec[name]["cardinality"], "wide_" if width == 1 else "deep_"
    if name in one_hot:
        return layers.Embedding(rows, width, initializer, name=prefix + name)(ids)
    found = layers.Embedding(rows + 1, width, initializer, name=prefix + name)(ids + 1)
    return ops.sum(found * ops.cast(ops.expand_dims(ids >= 0, 2), "float32"), axis=1)


def build():
    given = {n: keras.Input(v.shape[1:], dtype=v.dtype.name, name=n) for n, v in inputs.items()}
    ids = {name: given[name] for name in (*one_hot, *multi_hot)}
    parts = [embed(n, i, spec.feature_spec[n]["embedding_size"], "glorot_normal") for n, i in ids.items()]
    deep = layers.Concatenate()([*parts, given["numerical"]])
    for _ in range(5):
        deep = layers.Dropout(0.1)(layers.Dense(1024, "relu")(deep))
    wide = [embed(n, i, 1, "zeros") for n, i in ids.items()]
    wide.append(layers.Dense(1, kernel_initializer="zeros", name="wide_numerical")(given["numerical"]))
    return keras.Model(given, layers.Add()([layers.Dense(1)(deep), *wide]))


model = build()
wide = [v for v in model.trainable_variables if v.path.startswith("wide_")]
deep = [v for v in model.trainable_variables if not v.path.startswith("wide_")]
optimizers = keras.optimizers.RMSprop(0.00012, rho=0.5), keras.optimizers.Ftrl(0.02)
loss_function = keras.losses.BinaryCrossentropy(from_logits=True)


@tf.function(jit_compile="xla" in sys.argv[5:])
def train_step(batch, label):
    with tf.GradientTape() as tape:
        loss = loss_function(label, model(batch, training=True))
    gradients = tape.gradient(loss, [v.value for v in deep + wide])
    optimizers[0].apply(gradients[: len(deep)], deep)
    optimizers[1].apply(gradients[len(deep) :], wide)
    return loss


for optimizer, variables in zip(optimizers, (deep, wide), strict=True):
    optimizer.build(variables)
order = np.random.default_rng(0).permutation(len(columns["label"]))
begin = 0.0
for step in range(steps + 2):
    if step == 2:
        begin = time.perf_counter()
    start = step % (len(order) // batch_size) * batch_size
    chosen = order[start : start + batch_size]
    batch = {name: values[chosen] for name, values in inputs.items()}
    float(train_step(batch, columns["label"][chosen, None]))
print(json.dumps({"per_second": steps * batch_size / (time.perf_counter() - begin)}))
