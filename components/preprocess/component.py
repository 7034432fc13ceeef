"""The Kubeflow interface of the preprocess step."""

from kfp import dsl

from components import images


@dsl.container_component
def preprocess(
    raw: dsl.Input[dsl.Dataset],
    model: str,
    options: dict,
    seed: int,
    dataset_store: str,
    dataset: dsl.Output[dsl.Dataset],
    statistics: dsl.Output[dsl.HTML],
):
    """Filters, encodes and splits raw ratings into the dataset that a model trains on."""
    return dsl.ContainerSpec(
        image=images.PREPROCESS,
        command=["python", "-m", "components.preprocess.main"],
        args=[
            "--raw", raw.path,
            "--model", model,
            "--options", options,
            "--seed", seed,
            "--dataset_store", dataset_store,
            "--dataset", dataset.path,
            "--statistics", statistics.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
