"""What a careful user writes in JAX: ``python -m benchmarks.jax_loops MODEL FOLDER BATCH STEPS``.

One jitted step with donated state; the models are those of ``torch_loops``.
"""

import functools
import itertools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq

from recsys.feature_spec import FeatureSpec

name, folder, batch_size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = np.random.default_rng(0)


def weight(*shape):
    return jnp.asarray(draw.normal(0, 0.05, shape), jnp.float32)


def drop(key, values, rate=0.5):
    return values * (1 / (1 - rate)) * jax.random.bernoulli(key, 1 - rate, values.shape)


def ncf_loss(p, key, user, positive):
    keys = jax.random.split(key, 4)
    negative = jax.random.randint(keys[3], (4 * len(user),), 0, items)
    users_, items_ = jnp.tile(user, 5), jnp.concatenate([positive, negative])
    label = jnp.arange(5 * len(user)) < len(user)
    hidden = jnp.concatenate([p["user_mlp"][users_], p["item_mlp"][items_]], axis=1)
    for number in range(3):
        hidden = drop(keys[number], jax.nn.relu(hidden @ p[f"w{number}"] + p[f"b{number}"]))
    factors = p["user_mf"][users_] * p["item_mf"][items_]
    logit = (jnp.concatenate([factors, hidden], axis=1) @ p["head"])[:, 0] + p["head_bias"]
    return jnp.mean(jnp.maximum(logit, 0) - logit * label + jnp.log1p(jnp.exp(-jnp.abs(logit))))


def vae_loss(p, key, item, row, length):
    keys = jax.random.split(key, 2)
    valid = row < len(length)
    keep = jax.random.bernoulli(keys[0], 0.5, item.shape) * 2.0 * valid / jnp.sqrt(length)[row]
    summed = jax.ops.segment_sum(p["input"][item] * keep[:, None], row, len(length), indices_are_sorted=True)
    code = jnp.tanh(summed + p["input_bias"]) @ p["code"] + p["code_bias"]
    mean, log_variance = code[:, :200], code[:, 200:]
    divergence = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(1).mean()
    hidden = mean + jnp.exp(log_variance / 2) * jax.random.normal(keys[1], mean.shape)
    logits = jnp.tanh(hidden @ p["decoder"] + p["decoder_bias"]) @ p["logits"] + p["logits_bias"]
    likelihood = (logits[row, item] * valid).sum() - (length * jax.nn.logsumexp(logits, axis=1)).sum()
    return 0.1 * divergence - likelihood / len(length)


def wide_deep_loss(p, key, ids, numerical, label):
    """``ids`` holds a matrix (rows, hotness) for each feature; lists are filled up with -1."""
    keys = jax.random.split(key, 5)
    summed = [
        (table[ids] * (ids >= 0)[..., None]).sum(1) for table, ids in zip(p["tables"], ids, strict=True)
    ]
    wide = sum((table[ids] * (ids >= 0)).sum(1) for table, ids in zip(p["wide"]["tables"], ids, strict=True))
    hidden = jnp.concatenate([*summed, numerical], axis=1)
    for number, (kernel, bias) in enumerate(p["layers"]):
        hidden = drop(keys[number], jax.nn.relu(hidden @ kernel + bias), 0.1)
    logit = (hidden @ p["head"])[:, 0] + p["head_bias"] + wide + numerical @ p["wide"]["w"] + p["wide"]["b"]
    return jnp.mean(jnp.maximum(logit, 0) - logit * label + jnp.log1p(jnp.exp(-jnp.abs(logit))))


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def wide_deep_step(p, squares, linear, key, *batch):
    """RMSprop for the deep part, FTRL (power -0.5, no regularization) for the wide one."""
    value, g = jax.value_and_grad(wide_deep_loss)(p, key, *batch)
    wide, sums, g_wide = p.pop("wide"), squares.pop("wide"), g.pop("wide")
    new_sums = jax.tree.map(lambda s, g: s + g * g, sums, g_wide)
    linear = jax.tree.map(
        lambda z, g, s, n, w: z + g - (jnp.sqrt(n) - jnp.sqrt(s)) / 0.02 * w,
        linear,
        g_wide,
        sums,
        new_sums,
        wide,
    )
    wide = jax.tree.map(lambda z, n: -0.02 * z / jnp.sqrt(n), linear, new_sums)
    squares = jax.tree.map(lambda v, g: 0.5 * v + 0.5 * g * g, squares, g)
    p = jax.tree.map(lambda p, g, v: p - 0.00012 * g / (jnp.sqrt(v) + 1e-7), p, g, squares)
    return p | {"wide": wide}, squares | {"wide": new_sums}, linear, value


def make_step(loss, rate, beta_1, beta_2):
    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(p, m, v, key, *batch):
        value, g = jax.value_and_grad(loss)(p, key, *batch)
        m = jax.tree.map(lambda m, g: beta_1 * m + (1 - beta_1) * g, m, g)
        v = jax.tree.map(lambda v, g: beta_2 * v + (1 - beta_2) * g * g, v, g)
        return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), p, m, v), m, v, value

    return step


def ncf_batches():
    order, size = draw.permutation(len(user)), batch_size // 5
    for start in range(0, len(order) - size, size):
        chosen = order[start : start + size]
        yield 5 * size, (user[chosen], item[chosen])


def vae_batches():
    counts = np.bincount(user, minlength=users)
    starts = np.cumsum(counts) - counts
    order = draw.permutation(users)
    groups = [order[s : s + batch_size] for s in range(0, users - batch_size, batch_size)]
    slots = max(counts[group].sum() for group in groups)
    for chosen in groups:
        length = counts[chosen]
        row = np.full(slots, batch_size, np.int32)
        row[: length.sum()] = np.repeat(np.arange(batch_size), length)
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        flat = np.zeros(slots, np.int32)
        flat[: length.sum()] = item[np.repeat(starts[chosen], length) + place]
        yield batch_size, (flat, row, length.astype(np.float32))


def wide_deep_batches():
    order = draw.permutation(len(columns["label"]))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        matrices = [values[chosen] for values in ids]
        yield batch_size, (matrices, numerical[chosen], columns["label"][chosen])


if name == "wide_deep":
    spec = FeatureSpec.read(folder)
    names = [n for kind in ("onehot", "multihot") for n in spec.channel_spec[f"{kind}_categorical"]]
    columns = spec.columns("train", [*names, *spec.channel_spec["numerical"], "label"])
    ids = [columns[n].reshape(len(columns[n]), -1) for n in names]
    numerical = np.column_stack([columns[n] for n in spec.channel_spec["numerical"]])
else:
    table = pq.read_table(f"{folder}/train.parquet")
    user, item = table.column("user").to_numpy(), table.column("item").to_numpy()
    users, items = int(user.max()) + 1, int(item.max()) + 1
if name == "ncf":
    p = {"user_mf": weight(users, 64), "item_mf": weight(items, 64)}
    p |= {"user_mlp": weight(users, 128), "item_mlp": weight(items, 128), "head": weight(128, 1)}
    p |= {"w0": weight(256, 256), "w1": weight(256, 128), "w2": weight(128, 64), "head_bias": jnp.zeros(())}
    p |= {f"b{number}": jnp.zeros(width) for number, width in enumerate((256, 128, 64))}
    step_function, batches = make_step(ncf_loss, 0.0045, 0.25, 0.5), ncf_batches()
elif name == "wide_deep":
    shapes = [(spec.feature_spec[n]["cardinality"], spec.feature_spec[n]["embedding_size"]) for n in names]
    widths = [sum(width for _, width in shapes) + numerical.shape[1]] + [1024] * 5
    p = {"tables": [weight(*shape) for shape in shapes], "head": weight(1024, 1), "head_bias": jnp.zeros(())}
    p["layers"] = [(weight(a, b), jnp.zeros(b)) for a, b in zip(widths, widths[1:], strict=False)]
    wide = {"w": jnp.zeros(numerical.shape[1]), "b": jnp.zeros(())}
    p["wide"] = wide | {"tables": [jnp.zeros(rows) for rows, _ in shapes]}
    step_function, batches = (
        wide_deep_step,
        itertools.chain.from_iterable(wide_deep_batches() for _ in range(99)),
    )
else:
    p = {"input": weight(items, 600), "code": weight(600, 400), "decoder": weight(200, 600)}
    p |= {"logits": weight(600, items), "logits_bias": jnp.zeros(items), "input_bias": jnp.zeros(600)}
    p |= {"code_bias": jnp.zeros(400), "decoder_bias": jnp.zeros(600)}
    step_function, batches = make_step(vae_loss, 0.004, 0.9, 0.9), vae_batches()
m, v = jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p)
if name == "wide_deep":
    # What the two optimizers accumulate: squares (of FTRL from 0.1), and FTRL's linear term.
    m["wide"], v = jax.tree.map(lambda w: jnp.full_like(w, 0.1), p["wide"]), v["wide"]
begin, units = 0.0, 0
for step, (done, batch) in zip(range(steps + 2), batches, strict=False):
    if step == 2:
        begin = time.perf_counter()
    p, m, v, value = step_function(p, m, v, jax.random.key(step), *batch)
    value.block_until_ready()
    units += done * (step >= 2)
print(json.dumps({"per_second": units / (time.perf_counter() - begin)}))
