"""Deletes the MPIJobs that a run has left: the pipeline's exit handler, which also runs after Terminate.

The train step deletes its job itself; this is for the step that was killed before it could. Nothing here
fails a run: what cannot be deleted is said, and ends with its workflow or its own deadline.
"""

import argparse
import logging
import sys

from components.train import kube
from components.train.kube import KEEP_LABEL, RUN_LABEL
from recsys.step import Outputs, Step, UserError

log = logging.getLogger(__name__)
STEP = Step("train.cleanup", "Deletes the MPIJobs that a run has left on the cluster.")
STEP.parameter("kubeconfig", str, "", "of the cluster, for a start from outside of it")
STEP.parameter("run_id", str, "", "the run; empty: that of this pod")


def main(argv: list[str] | None = None) -> int:
    """Runs the step."""
    return STEP.run(work, argv)


def work(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Deletes the jobs that carry the run's label."""
    if not (kube.in_cluster() or arguments.kubeconfig):
        log.info("outside a cluster: nothing to delete")
        return
    try:
        cluster = kube.Cluster(arguments.kubeconfig, outage_seconds=60)
        run = arguments.run_id or kube.run_id(cluster.own_pod())
        if not run:
            log.info("this pod belongs to no Kubeflow run: nothing to delete")
            return
        jobs = cluster.list(kube.JOBS, labelSelector=f"{RUN_LABEL}={run},!{KEEP_LABEL}")
        for job in jobs:
            cluster.delete(kube.JOBS, job["metadata"]["name"])
            log.info("MPIJob %s deleted", job["metadata"]["name"])
        log.info("%d MPIJobs of run %s were left", len(jobs), run)
    except (UserError, kube.UnreachableError) as problem:
        log.info("nothing deleted: %s", problem)


if __name__ == "__main__":
    sys.exit(main())
