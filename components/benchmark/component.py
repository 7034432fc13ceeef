"""The Kubeflow interface of the benchmark step."""

from kfp import dsl

from components import images


@dsl.container_component
def benchmark(
    dataset: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
    options: dict,
    throughput: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
):
    """Measures training throughput, and inference throughput and latency, on the machine it runs on."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["python", "-m", "components.benchmark.main"],
        args=[
            "--dataset", dataset.path,
            "--checkpoint", checkpoint.path,
            "--options", options,
            "--throughput", throughput.path,
            "--report", report.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
