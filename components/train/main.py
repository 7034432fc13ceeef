"""Train: a prepared dataset -> the best checkpoint, its history, a learning-curve page."""

import os
import sys

from recsys import distributed
from recsys.step import USER_MISTAKE, Step, UserError, json_object

STEP = Step("train", "Trains a model on a prepared dataset and keeps the best checkpoint.")
STEP.input("dataset", "folder with feature_spec.yaml, or its URI", remote=True)
STEP.parameter("model", help="file name in recsys/models, such as ncf or vae_cf")
STEP.parameter("hyperparameters", json_object, "{}", "JSON object, fields of the model's Config")
STEP.parameter("seed", int, 1, "of the initial weights, data order, dropout and negatives")
STEP.parameter(
    "resume",
    str,
    "",
    "checkpoint (folder or URI) of an interrupted or finished run to continue; empty: start anew",
)
STEP.output("checkpoint", "best model, last state, config, feature spec, history")
STEP.output("history", "metrics of the training run")
STEP.output("learning_curve", "HTML page of loss and validation metric by epoch")


def main(argv: list[str] | None = None) -> int:
    """Runs the step, on one rank of several under mpirun.

    Returns:
        128 + signal number when a signal stopped the run; the state is saved then.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = STEP.parser.parse_args(argv)  # a wrong flag is told before TensorFlow takes its seconds

    from components.train.loop import Stopped
    from components.train.training import train

    try:
        if distributed.is_first():
            return STEP.run(train, argv)
        train(arguments, None)
        return 0
    except distributed.CommonError:
        distributed.wait_for_the_end()
        return USER_MISTAKE
    except UserError as error:
        tell(f"rank {distributed.rank()}: {error}")
        return USER_MISTAKE
    except Stopped as stop:
        if distributed.is_first():
            tell(str(stop))
        else:
            distributed.wait_for_the_end()
        return 128 + stop.signal
    except Exception as error:
        if not distributed.is_gone(error):
            raise
        tell(f"rank {distributed.rank()}: stopped, because another worker has ended")
        return 1


def tell(message: str) -> None:
    """One line for the user."""
    print(f"{STEP.parser.prog}: {' '.join(message.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
