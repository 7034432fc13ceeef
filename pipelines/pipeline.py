"""The pipeline: from a dataset's name to a trained, evaluated, benchmarked and gated model.

``python -m pipelines.pipeline [FILE]`` compiles it. ``pipelines/pipeline.yaml`` is committed: it is what
``make run`` runs and what a cluster gets; a test fails when it is out of date.
"""

import sys
from pathlib import Path

from kfp import compiler, dsl, kubernetes

from components.benchmark.component import benchmark as measure
from components.download.component import download
from components.evaluate.component import evaluate
from components.evaluate.component import gate as judge
from components.preprocess.component import preprocess
from components.train.component import cleanup, train

NAME = "recsys"
COMPILED = Path(__file__).with_name("pipeline.yaml")
# Key in the Secret to variable; Kubeflow's own Secret has the first two.
STORAGE_KEYS = {
    "accesskey": "AWS_ACCESS_KEY_ID",
    "secretkey": "AWS_SECRET_ACCESS_KEY",
    "endpoint": "AWS_ENDPOINT_URL",
    "region": "AWS_REGION",
}


def _describe(
    task: dsl.PipelineTask, name: str, cpu: str, memory: str, gpus: str | None = None
) -> dsl.PipelineTask:
    """Names a task and requests its resources; limits of 0 GPUs are legal in Kubernetes and mean none."""
    task.set_display_name(name).set_cpu_request(cpu).set_memory_request(memory)
    if gpus is not None:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    return task


@dsl.pipeline(
    name=NAME,
    description="Trains and measures a recommender: download, preprocess, train, evaluate, benchmark, gate.",
)
def recsys(
    model: str,
    dataset: str,
    source: str = "",
    dataset_options: dict = {},  # noqa: B006 (Kubeflow reads the default, nobody mutates it)
    preparation: dict = {},  # noqa: B006
    hyperparameters: dict = {},  # noqa: B006
    evaluation: dict = {},  # noqa: B006
    benchmark: dict = {},  # noqa: B006
    gate: str = "",
    seed: int = 1,
    dataset_store: str = "",
    resume: str = "",
    gpus: str = "0",
    num_workers: str = "1",
    workspace_claim: str = "recsys-workspace",
    storage_secret: str = "mlpipeline-minio-artifact",
    cluster: dict = {},  # noqa: B006
):
    """Every step is a program in a container; ``components/<step>/component.py`` is its interface.

    Args:
        model: a file name in ``recsys/models/``: ``ncf``, ``vae_cf``, ``wide_deep``.
        dataset: a dataset's name: ``synthetic``, ``movielens-20m``, ``interactions``, ...
        source: takes the data from this path or URI instead of the dataset's own address.
        dataset_options: options of the dataset (sizes, column names).
        preparation: filters and split; the defaults are those of the model's reference.
        hyperparameters: the model's ``Config``; the defaults are the reference's.
        evaluation: options of the evaluate step.
        benchmark: options of the benchmark step.
        gate: metrics that the run must reach, for example ``hr@10>=0.65``; empty: none.
        seed: of everything random.
        dataset_store: folder or URI where prepared datasets are kept, to be read from there and found again
            by the next run; empty: they travel as artifacts.
        resume: a checkpoint (path or URI) of an interrupted run to go on from; empty: train from the start.
        gpus: number of GPUs of the steps that use the model, and of each worker; ``0`` for CPU. It is text
            because the backend fills a resource limit from text only: from an integer parameter it reads ""
            and drops the limit.
        num_workers: ``1`` trains in the step's own pod; more start an MPIJob with as many.
        workspace_claim: volume claim that the train step shares with the workers of an MPIJob; one worker
            needs none, and several with a ``dataset_store`` neither.
        storage_secret: Secret with what opens ``s3://`` and ``minio://``: ``accesskey``, ``secretkey``,
            perhaps ``endpoint`` and ``region``; one that does not exist leaves it to the service account.
        cluster: of the MPIJob: overlay, queue, timeouts; the fields of ``Settings`` in
            ``components/train/mpijob.py``.
    """
    # After Terminate too, which leaves the train step half a second to delete its job.
    left = cleanup()
    with dsl.ExitHandler(left, name="Pipeline"):
        raw = download(dataset=dataset, source=source, options=dataset_options, seed=seed)
        prepared = preprocess(
            raw=raw.outputs["raw"], model=model, options=preparation, seed=seed, dataset_store=dataset_store
        )
        training = {
            "dataset": prepared.outputs["dataset"],
            "model": model,
            "hyperparameters": hyperparameters,
            "seed": seed,
            "resume": resume,
            "num_workers": num_workers,
            "gpus": gpus,
            "workspace_claim": workspace_claim,
            "storage_secret": storage_secret,
            "cluster": cluster,
        }
        # The same step three times: with GPUs, or without them and with or without the claim.
        with dsl.If(num_workers == "1", name="One worker"):
            alone = train(**training)
        with dsl.Elif(dataset_store != "", name="Several workers and a store"):
            remote = train(**training)
        with dsl.Else(name="Several workers"):
            launched = train(**training)
        checkpoint = dsl.OneOf(*(task.outputs["checkpoint"] for task in (alone, remote, launched)))
        model_and_data = {"dataset": prepared.outputs["dataset"], "checkpoint": checkpoint}
        evaluated = evaluate(**model_and_data, options=evaluation)
        # After the evaluation, so that no other step of the run shares the machine with the measurement.
        measured = measure(**model_and_data, options=benchmark).after(evaluated)
        # After the benchmark too, so that a missed gate fails the run when all reports are there.
        judged = judge(metrics=evaluated.outputs["metrics"], gate=gate).after(measured)

    # No set_retry: it would also repeat a user's mistake, and the download retries its requests by itself.
    # Nodes that go away are already covered by Argo's default retry on errors.
    _describe(raw, "Download and verify", cpu="500m", memory="1Gi")
    _describe(prepared, "Encode and split", cpu="2", memory="8Gi")
    _describe(alone, "Train", cpu="2", memory="8Gi", gpus=gpus)
    for task in (remote, launched):
        _describe(task, "Train on several workers", cpu="250m", memory="512Mi")
    kubernetes.mount_pvc(launched, pvc_name=workspace_claim, mount_path="/workspace")
    _describe(evaluated, "Evaluate", cpu="2", memory="8Gi", gpus=gpus)
    # A measurement and a verdict belong to their run: never from the cache.
    _describe(measured, "Benchmark", cpu="2", memory="8Gi", gpus=gpus).set_caching_options(False)
    _describe(judged, "Gate", cpu="100m", memory="256Mi").set_caching_options(False)
    _describe(left, "Clean up", cpu="100m", memory="256Mi").set_caching_options(False)
    for task in (raw, prepared, alone, remote, launched, evaluated, measured):
        kubernetes.use_secret_as_env(task, storage_secret, STORAGE_KEYS, optional=True)


def compile_pipeline(path: str | Path = COMPILED) -> Path:
    """Compiles the pipeline to ``path`` and returns it; equal sources give equal bytes."""
    compiler.Compiler().compile(recsys, str(path))
    return Path(path)


if __name__ == "__main__":
    print(f"compiled {compile_pipeline(*sys.argv[1:2])}")
