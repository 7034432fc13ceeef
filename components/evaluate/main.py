"""Evaluate: a checkpoint and a held-out split -> the paper's metrics, beside those of a baseline."""

import os
import sys

from recsys.step import Step, json_object

STEP = Step("evaluate", "Computes the metrics of a checkpoint on held-out data.")
STEP.input("dataset", "folder with feature_spec.yaml, or its URI", remote=True)
STEP.input("checkpoint", "folder that the train step wrote")
STEP.parameter("options", json_object, "{}", 'JSON object: {"mapping": "test", "batch_size": 4096}')
STEP.output("metrics", "the metrics, and those of the baseline (popularity, or click rates of items)")
STEP.output("report", "the same as a Markdown table")


def main(argv: list[str] | None = None) -> int:
    """Runs the step."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    STEP.parser.parse_args(argv)  # a wrong flag is told before TensorFlow takes its seconds

    from components.evaluate.evaluation import evaluate

    return STEP.run(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
