"""What a careful user writes in PyTorch: ``python -m benchmarks.torch_loops MODEL FOLDER BATCH STEPS``.

NCF with four embedding tables, dropout, fused Adam; VAE-CF with an embedding bag for the input and the loss
from gathered logits and one logsumexp, so neither builds what it does not need.
"""

import json
import sys
import time

import pyarrow.parquet as pq
import torch
from torch import nn

name, folder, batch_size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
table = pq.read_table(f"{folder}/train.parquet")
user, item = (torch.from_numpy(table.column(column).to_numpy().copy()).long() for column in ("user", "item"))
users, items = int(user.max()) + 1, int(item.max()) + 1


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


counts = torch.bincount(user, minlength=users)
starts = torch.cumsum(counts, 0) - counts
model = NeuMF() if name == "ncf" else MultVae()
rate, betas = (0.0045, (0.25, 0.5)) if name == "ncf" else (0.004, (0.9, 0.9))
optimizer = torch.optim.Adam(model.parameters(), rate, betas, fused=True)
run = ncf_step if name == "ncf" else vae_step
order = torch.randperm(len(user) if name == "ncf" else users)
per_epoch = len(order) // (batch_size // 5 if name == "ncf" else batch_size)
begin, units = 0.0, 0
for step in range(steps + 2):
    if step == 2:
        begin = time.perf_counter()
    done, _ = run(model, optimizer, order, step % per_epoch)
    units += done * (step >= 2)
print(json.dumps({"per_second": units / (time.perf_counter() - begin)}))
