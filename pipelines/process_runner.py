"""Runs a compiled pipeline through kfp.local with each container as a process, without Docker.

kfp.local orders the tasks, fills the placeholders and hands artifacts on; only the running of a container is
replaced. Its own runners cannot do that: the subprocess runner takes Python functions only, the other needs
Docker. So this file, and no other, reaches into kfp's private API, in five places:

* ``task_dispatcher`` looks up ``subprocess_task_handler.SubprocessTaskHandler`` when a task starts; a
  subclass that starts our process stands in its place;
* ``get_local_pipeline_resource_name`` names the folder of a run; ours is the run's id, so that a task's
  artifacts land in ``<root>/<run id>/<task>/<artifact>``;
* ``get_local_task_resource_name`` names the folder of a task after its component; a step that stands in two
  branches has a component for each (``train``, ``train-2``): the one that runs gets the step's name;
* ``get_dag_output_artifacts`` refuses ``dsl.OneOf`` of artifacts, which a cluster takes; ours is the output
  of the branch that has run;
* ``to_protobuf_value`` turns arguments into protobuf; it refuses a ``null`` inside a dict parameter, which a
  cluster takes, so protobuf's own conversion stands in its place.

kfp is pinned exactly, and ``tests/pipeline/test_local.py`` fails when one of these places has moved.
"""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format, struct_pb2
from kfp import components, local
from kfp.compiler import pipeline_spec_builder
from kfp.local import executor_input_utils, status, subprocess_task_handler
from kfp.local.orchestrator import orchestrator_utils

Launch = Callable[[str, Sequence[str], Mapping[str, Any]], None]


def run_compiled(
    compiled: Path, arguments: Mapping[str, Any], root: Path, run_id: str, launch: Launch
) -> None:
    """Runs every task of a compiled pipeline, in order, in this thread.

    Args:
        compiled: the pipeline's YAML.
        arguments: pipeline parameter to value.
        root: where ``<run_id>/<task>/`` are made.
        launch: called per task with image, command line (placeholders filled) and executor input; what it
            raises ends the run and comes out of here unchanged.
    """
    launched = False

    class Handler(subprocess_task_handler.SubprocessTaskHandler):
        def validate_image(self, image: str) -> None:
            """Any image: it is only a name for an environment."""

        def validate_not_container_component(self, full_command: list[str]) -> None:
            """Container components are what this is for."""

        def validate_not_containerized_python_component(self, full_command: list[str]) -> None:
            """Nothing is refused."""

        def run(self) -> status.Status:
            nonlocal launched
            launched = True
            flag = self.full_command.index("--executor_input")
            launch(self.image, self.full_command, json.loads(self.full_command[flag + 1]))
            return status.Status.SUCCESS

    pipeline = components.load_component_from_file(str(compiled))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    with (
        _replaced(subprocess_task_handler, "SubprocessTaskHandler", Handler),
        _replaced(executor_input_utils, "get_local_pipeline_resource_name", lambda _: run_id),
        _replaced(executor_input_utils, "get_local_task_resource_name", _step_name),
        _replaced(pipeline_spec_builder, "to_protobuf_value", _protobuf_value),
        _replaced(orchestrator_utils.OrchestratorUtils, "get_dag_output_artifacts", _output_artifacts),
        _muted(),
    ):
        pipeline(**arguments)
    if not launched:
        raise RuntimeError("kfp.local ran without our process runner: its private API has moved")


def _step_name(component: str) -> str:
    return re.sub(r"-\d+$", "", component.removeprefix("comp-"))


def _output_artifacts(dag_outputs_spec: Any, io_store: Any) -> dict[str, Any]:
    """Output name to the artifact of the one task that has run."""
    outputs = {}
    for name, choice in dag_outputs_spec.artifacts.items():
        for selector in choice.artifact_selectors:
            with contextlib.suppress(ValueError):  # this one has not
                outputs[name] = io_store.get_task_output(
                    selector.producer_subtask, selector.output_artifact_key
                )
    return outputs


def _protobuf_value(value: Any) -> struct_pb2.Value:
    return json_format.ParseDict(value, struct_pb2.Value())


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Silences kfp.local, which prints to stdout and warns of every setting that only a cluster honours."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.captureWarnings(False)
        yield
