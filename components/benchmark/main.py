"""Benchmark: a checkpoint and its dataset -> training and inference throughput, latency percentiles."""

import os
import sys

from recsys.step import Step, json_object

STEP = Step("benchmark", "Measures training throughput, inference throughput and latency on this machine.")
STEP.input("dataset", "folder with feature_spec.yaml, or its URI", remote=True)
STEP.input("checkpoint", "folder that the train step wrote")
STEP.parameter(
    "options", json_object, "{}", 'JSON object, such as {"train_seconds": 10, "batch_sizes": [1, 1024]}'
)
STEP.output("throughput", "the headline numbers")
STEP.output("report", "HTML page with all of them, hardware and versions")


def main(argv: list[str] | None = None) -> int:
    """Runs the step."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    STEP.parser.parse_args(argv)  # a wrong flag is told before TensorFlow takes its seconds

    from components.benchmark.measure import benchmark

    return STEP.run(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
