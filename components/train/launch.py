"""Train, with as many workers as asked for: here, with mpirun here, or as an MPIJob on the cluster.

=============  ===========================  ==========================================================
num_workers    where                        what trains
=============  ===========================  ==========================================================
1              anywhere, 0 or 1 GPU         this process
1              anywhere, several GPUs       mpirun here, one rank a GPU
more           outside a cluster            mpirun here
more           in a cluster, --kubeconfig   an MPIJob of ``num_workers`` pods, each with ``gpus`` GPUs
=============  ===========================  ==========================================================

All flags of ``components.train.main`` are flags of this program.
"""

import argparse
import copy
import os
import sys

import yaml

from components.train import main as trainer
from components.train import mpirun
from recsys.config import from_json
from recsys.step import USER_MISTAKE, Outputs, UserError, boolean, json_object


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


STEP = copy.deepcopy(trainer.STEP)
STEP.parser.prog = "python -m components.train.launch"
STEP.parameter("num_workers", _count, 1, "machines (pods) that train; outside a cluster, ranks on this one")
STEP.parameter("gpus", _count, 0, "of each worker, which has a rank for each; 0: CPU")
STEP.parameter(
    "workspace_claim",
    str,
    "recsys-workspace",
    "volume claim of this step and the MPIJob's pods, where the dataset is in no store",
)
STEP.parameter("workspace", str, "/workspace", "where it is mounted")
STEP.parameter(
    "storage_secret", str, "mlpipeline-minio-artifact", "Secret with the keys of S3, for the MPIJob's pods"
)
STEP.parameter("cluster", json_object, "{}", "JSON object: overlay, queue, env, timeouts (mpijob.Settings)")
STEP.parameter("kubeconfig", str, "", "of the cluster, for a start from outside of it")
STEP.parameter(
    "keep", boolean, False, "leave the MPIJob on the cluster when it has ended", nargs="?", const=True
)
STEP.parameter("dry_run", boolean, False, "print the MPIJob and do nothing", nargs="?", const=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the step. Exit code: the trainer's, that of the first rank that failed, or the launcher's."""
    arguments = STEP.parser.parse_args(argv)
    own = vars(trainer.STEP.parser.parse_known_args(argv)[0])
    ranks = arguments.num_workers * max(1, arguments.gpus)
    try:
        if arguments.num_workers < 1:
            raise UserError("--num_workers must be 1 or more, not 0")
        outside = not (arguments.kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST"))
        if arguments.dry_run or (arguments.num_workers > 1 and not outside):
            return _on_cluster(arguments, own, argv)
        if ranks == 1:
            return trainer.main(mpirun.flags(own))
        return mpirun.run(ranks, mpirun.flags(own), STEP.parser.prog)
    except UserError as mistake:
        print(f"{STEP.parser.prog}: {' '.join(str(mistake).split())}", file=sys.stderr, flush=True)
        return USER_MISTAKE


def _on_cluster(arguments: argparse.Namespace, own: dict, argv: list[str] | None) -> int:
    from components.train import kube, on_cluster  # one worker needs none of it
    from components.train.mpijob import Settings

    settings = from_json(Settings, arguments.cluster, "--cluster")
    if arguments.dry_run:
        connected = kube.in_cluster() or arguments.kubeconfig
        cluster = kube.Cluster(arguments.kubeconfig) if connected else None
        pod, namespace = (cluster.own_pod(), cluster.namespace) if cluster else ({}, "kubeflow")
        job, _ = on_cluster.manifest(arguments, own, settings, pod, namespace)
        print(yaml.safe_dump(job, sort_keys=False), end="")
        return 0

    def work(parsed: argparse.Namespace, outputs: Outputs) -> None:
        on_cluster.train(parsed, own, settings, outputs)

    try:
        return STEP.run(work, argv)
    except on_cluster.JobFailedError as failure:
        print(f"{STEP.parser.prog}: {' '.join(str(failure).split())}", file=sys.stderr, flush=True)
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
