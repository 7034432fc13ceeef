"""The Kubeflow interface of the download step."""

from kfp import dsl

from components import images


@dsl.container_component
def download(
    dataset: str,
    source: str,
    options: dict,
    seed: int,
    raw: dsl.Output[dsl.Dataset],
    about: dsl.Output[dsl.Markdown],
):
    """Fetches or generates the raw files of a dataset and verifies them."""
    return dsl.ContainerSpec(
        image=images.DOWNLOAD,
        command=["python", "-m", "components.download.main"],
        args=[
            "--dataset", dataset,
            "--source", source,
            "--options", options,
            "--seed", seed,
            "--raw", raw.path,
            "--about", about.path,
            "--executor_input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
