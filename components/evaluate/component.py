"""The Kubeflow interfaces of the evaluate step and of the gate behind it."""

from kfp import dsl

from components import images


@dsl.container_component
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    options: dict,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.Markdown],
):
    """Computes the paper's metrics of a checkpoint on the held-out test data."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["python", "-m", "components.evaluate.main"],
        args=[
            "--dataset", dataset.path,
            "--checkpoint", checkpoint.path,
            "--options", options,
            "--metrics", metrics.path,
            "--report", report.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip


@dsl.container_component
def gate(
    metrics: dsl.Input[dsl.Metrics],
    gate: str,
    verdict: dsl.Output[dsl.Markdown],
):
    """Fails the run when a metric misses its threshold."""
    return dsl.ContainerSpec(
        image=images.DOWNLOAD,
        command=["python", "-m", "components.evaluate.gate"],
        args=[
            "--metrics", metrics.path,
            "--gate", gate,
            "--verdict", verdict.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
