"""The Kubeflow interfaces of the train step, and of what removes the jobs that it may leave behind."""

from kfp import dsl

from components import images


@dsl.container_component
def train(
    dataset: dsl.Input[dsl.Dataset],
    model: str,
    hyperparameters: dict,
    seed: int,
    resume: str,
    num_workers: str,
    gpus: str,
    workspace_claim: str,
    storage_secret: str,
    cluster: dict,
    checkpoint: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Metrics],
    learning_curve: dsl.Output[dsl.HTML],
):
    """Trains a model on a prepared dataset, keeping the best checkpoint by the validation metric."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["python", "-m", "components.train.launch"],
        args=[
            "--dataset", dataset.path,
            "--model", model,
            "--hyperparameters", hyperparameters,
            "--seed", seed,
            "--resume", resume,
            "--num_workers", num_workers,
            "--gpus", gpus,
            "--workspace_claim", workspace_claim,
            "--storage_secret", storage_secret,
            "--cluster", cluster,
            "--checkpoint", checkpoint.path,
            "--history", history.path,
            "--learning_curve", learning_curve.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip


@dsl.container_component
def cleanup():
    """Deletes the MPIJobs that a run has left on the cluster."""
    return dsl.ContainerSpec(
        image=images.DOWNLOAD,
        command=["python", "-m", "components.train.cleanup"],
        args=["--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
