"""Train: a prepared dataset -> the best checkpoint, its history, a learning-curve page."""

import os
import sys

from recsys.step import Step, json_object

STEP = Step("train", "Trains a model on a prepared dataset and keeps the best checkpoint.")
STEP.input("dataset", "folder with feature_spec.yaml")
STEP.parameter("model", help="file name in recsys/models, such as ncf or vae_cf")
STEP.parameter("hyperparameters", json_object, "{}", "JSON object, fields of the model's Config")
STEP.parameter("seed", int, 1, "of the initial weights, data order, dropout and negatives")
STEP.parameter(
    "resume", str, "", "checkpoint folder of an interrupted or finished run to continue; empty: start anew"
)
STEP.output("checkpoint", "best model, last state, config, feature spec, history")
STEP.output("history", "metrics of the training run")
STEP.output("learning_curve", "HTML page of loss and validation metric by epoch")


def main(argv: list[str] | None = None) -> int:
    """Runs the step. Exit code 128 + signal number when a signal stopped it; the state is saved then."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = STEP.parser.parse_args(argv)  # a wrong flag is told before TensorFlow takes its seconds
    del arguments

    from components.train.training import Stopped, train

    try:
        return STEP.run(train, argv)
    except Stopped as stop:
        print(f"{STEP.parser.prog}: {stop}", file=sys.stderr, flush=True)
        return 128 + stop.signal


if __name__ == "__main__":
    sys.exit(main())
