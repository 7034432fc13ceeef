"""What a careful user writes in PyTorch: ``python -m benchmarks.torch_loops MODEL FOLDER BATCH STEPS``.

NCF with four embedding tables, dropout, fused Adam; VAE-CF with an embedding bag for the input and the loss
from gathered logits and one logsumexp, so neither builds what it does not need; Wide & Deep with embedding
bags that skip the padding, one of them for all scalars of the wide part, and its data in memory beforehand.
"""

import json
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from recsys.feature_spec import FeatureSpec

name, folder, batch_size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


class NeuMF(nn.Module):
    def __init__(self):
        super().__init__()
        self.user_mf, self.item_mf = nn.Embedding(users, 64), nn.Embedding(items, 64)
        self.user_mlp, self.item_mlp = nn.Embedding(users, 128), nn.Embedding(items, 128)
        self.layers = nn.ModuleList([nn.Linear(256, 256), nn.Linear(256, 128), nn.Linear(128, 64)])
        self.head = nn.Linear(128, 1)

    def forward(self, user, item):
        hidden = torch.cat([self.user_mlp(user), self.item_mlp(item)], dim=1)
        for layer in self.layers:
            hidden = nn.functional.dropout(torch.relu(layer(hidden)), 0.5, self.training)
        return self.head(torch.cat([self.user_mf(user) * self.item_mf(item), hidden], dim=1))[:, 0]


class MultVae(nn.Module):
    def __init__(self):
        super().__init__()
        self.input = nn.EmbeddingBag(items, 600, mode="sum")
        self.bias = nn.Parameter(torch.zeros(600))
        self.code, self.decoder, self.logits = nn.Linear(600, 400), nn.Linear(200, 600), nn.Linear(600, items)

    def loss(self, item, row, length):
        offset = torch.cumsum(length, 0) - length
        keep = (torch.rand(len(item)) < 0.5).float() * 2 / length.float().sqrt()[row]
        code = self.code(torch.tanh(self.input(item, offset, per_sample_weights=keep) + self.bias))
        mean, log_variance = code[:, :200], code[:, 200:]
        divergence = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean()
        hidden = torch.tanh(self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)))
        logits = self.logits(hidden)
        likelihood = logits[row, item].sum() - (length * torch.logsumexp(logits, 1)).sum()
        return 0.1 * divergence - likelihood / len(length)


class WideDeep(nn.Module):
    """Ids are matrices (rows, columns) with 1 added, so that 0 is the padding of a list."""

    def __init__(self, features):
        super().__init__()
        # A one-hot feature is a bag of one id.
        self.tables = nn.ModuleList(
            [
                nn.EmbeddingBag(f["cardinality"] + 1, f["embedding_size"], mode="sum", padding_idx=0)
                for f in features
            ]
        )
        self.spans = [f.get("max_hotness", 1) for f in features]
        counts = torch.tensor([f["cardinality"] for f in features])
        offsets = torch.cumsum(counts, 0) - counts
        self.register_buffer("offsets", torch.repeat_interleave(offsets, torch.tensor(self.spans)))
        self.wide = nn.EmbeddingBag(int(counts.sum()) + 1, 1, mode="sum", padding_idx=0)
        self.wide_numerical = nn.Linear(numerical.shape[1], 1)
        width, layers = sum(f["embedding_size"] for f in features) + numerical.shape[1], []
        for _ in range(5):
            layers += [nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.1)]
            width = 1024
        self.deep = nn.Sequential(*layers, nn.Linear(1024, 1))
        for parameter in (self.wide.weight, self.wide_numerical.weight, self.wide_numerical.bias):
            nn.init.zeros_(parameter)

    def forward(self, ids, numerical):
        parts = [table(part) for table, part in zip(self.tables, ids.split(self.spans, dim=1), strict=True)]
        wide = self.wide((ids + self.offsets) * (ids > 0)) + self.wide_numerical(numerical)
        return (self.deep(torch.cat([*parts, numerical], dim=1)) + wide)[:, 0]


class Ftrl(torch.optim.Optimizer):
    """FTRL-Proximal without regularization, learning rate power -0.5."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, {"rate": rate})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["sum"], state["linear"] = torch.full_like(weight, 0.1), torch.zeros_like(weight)
                root = state["sum"].sqrt()
                state["sum"].addcmul_(weight.grad, weight.grad)
                new_root = state["sum"].sqrt()
                state["linear"] += weight.grad - (new_root - root) / group["rate"] * weight
                weight.copy_(-group["rate"] * state["linear"] / new_root)


class Both:
    """Two optimizers that step together."""

    def __init__(self, model):
        wide = [*model.wide.parameters(), *model.wide_numerical.parameters()]
        deep = [*model.tables.parameters(), *model.deep.parameters()]
        self.optimizers = [torch.optim.RMSprop(deep, 0.00012, alpha=0.5, eps=1e-7), Ftrl(wide, 0.02)]

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def ncf_step(model, optimizer, order, step):
    chosen = order[step * (batch_size // 5) : (step + 1) * (batch_size // 5)]
    positive = item[chosen]
    negative = torch.randint(0, items, (4 * len(chosen),))
    pairs = user[chosen].repeat(5), torch.cat([positive, negative])
    label = torch.cat([torch.ones(len(chosen)), torch.zeros(4 * len(chosen))])
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(*pairs), label)
    loss.backward()
    optimizer.step()
    return 5 * len(chosen), loss.item()


def vae_step(model, optimizer, order, step):
    chosen = order[step * batch_size : (step + 1) * batch_size]
    length = counts[chosen]
    row = torch.repeat_interleave(torch.arange(len(chosen)), length)
    place = torch.arange(len(row)) - torch.repeat_interleave(torch.cumsum(length, 0) - length, length)
    optimizer.zero_grad()
    loss = model.loss(item[starts[chosen][row] + place], row, length)
    loss.backward()
    optimizer.step()
    return len(chosen), loss.item()


def wide_deep_step(model, optimizer, order, step):
    chosen = order[step * batch_size : (step + 1) * batch_size]
    optimizer.zero_grad()
    logits = model(ids[chosen], numerical[chosen])
    loss = nn.functional.binary_cross_entropy_with_logits(logits, label[chosen])
    loss.backward()
    optimizer.step()
    return len(chosen), loss.item()


if name == "wide_deep":
    spec = FeatureSpec.read(folder)
    names = [n for kind in ("onehot", "multihot") for n in spec.channel_spec[f"{kind}_categorical"]]
    columns = spec.columns("train", [*names, *spec.channel_spec["numerical"], "label"])
    ids = torch.from_numpy(np.column_stack([columns[n] for n in names])).long() + 1
    numerical = torch.from_numpy(np.column_stack([columns[n] for n in spec.channel_spec["numerical"]]))
    label = torch.from_numpy(columns["label"].copy())
    model = WideDeep([spec.feature_spec[n] for n in names])
    optimizer, run, examples, per_batch = Both(model), wide_deep_step, len(label), batch_size
else:
    table = pq.read_table(f"{folder}/train.parquet")
    user, item = (torch.from_numpy(table.column(c).to_numpy().copy()).long() for c in ("user", "item"))
    users, items = int(user.max()) + 1, int(item.max()) + 1
    counts = torch.bincount(user, minlength=users)
    starts = torch.cumsum(counts, 0) - counts
    model = NeuMF() if name == "ncf" else MultVae()
    rate, betas = (0.0045, (0.25, 0.5)) if name == "ncf" else (0.004, (0.9, 0.9))
    optimizer = torch.optim.Adam(model.parameters(), rate, betas, fused=True)
    run, examples, per_batch = (
        (ncf_step, len(user), batch_size // 5) if name == "ncf" else (vae_step, users, batch_size)
    )
order = torch.randperm(examples)
begin, units = 0.0, 0
for step in range(steps + 2):
    if step == 2:
        begin = time.perf_counter()
    done, _ = run(model, optimizer, order, step % (examples // per_batch))
    units += done * (step >= 2)
print(json.dumps({"per_second": units / (time.perf_counter() - begin)}))
