"""Throughput of this project's training step: ``python -m benchmarks.ours MODEL FOLDER BATCH STEPS``."""

import itertools
import json
import sys
import time
from pathlib import Path

from recsys import counter_random, device, models
from recsys.engine import create_engine
from recsys.feature_spec import FeatureSpec

name, folder, batch_size, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
module = models.load(name)
model = module.Model(module.Config(batch_size=batch_size), FeatureSpec.read(folder))
engine = create_engine(model, model.network(1), model.config, model.training_arrays())
gflops = device.matrix_product_rate(4096, 3) / 1e9
begin, units = 0.0, 0
batches = itertools.chain.from_iterable(model.batches(1, epoch) for epoch in itertools.count())
full = (batch for batch in batches if batch.examples == model.batch_examples)
for step, batch in enumerate(itertools.islice(full, steps + 2)):
    if step == 2:
        begin = time.perf_counter()
    loss = engine.train_step(model.batch(batch, counter_random.step_seed(1, step), step))
    device.synchronize(loss)
    units += (step >= 2) * batch.examples * model.units_per_example
rate = units / (time.perf_counter() - begin)
print(json.dumps({"per_second": rate, "gflops": gflops, "flops_per_unit": model.flops_per_unit()}))
