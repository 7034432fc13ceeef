"""The Kubeflow interface of the train step."""

from kfp import dsl

from components import images


@dsl.container_component
def train(
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    hyperparameters: dict,
    seed: int,
    resume: str,
    checkpoint: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Metrics],
    learning_curve: dsl.Output[dsl.HTML],
):
    """Trains a model on a prepared dataset, keeping the best checkpoint by the validation metric."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["python", "-m", "components.train.main"],
        args=[
            "--dataset", dataset.path,
            "--model", model,
            "--hyperparameters", hyperparameters,
            "--seed", seed,
            "--resume", resume,
            "--checkpoint", checkpoint.path,
            "--history", history.path,
            "--learning_curve", learning_curve.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
