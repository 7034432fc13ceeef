"""The local runner, on the compiled pipeline, with real processes that stand in for the steps.

A stand-in takes its step's flags and fills its outputs; what else it does comes to it the way options do:
``hyperparameters.behave=crash``.
"""

import inspect
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import kfp
import pytest
from kfp.local import executor_input_utils, subprocess_task_handler, task_dispatcher
from kfp.local.orchestrator import orchestrator_utils

from pipelines import local, parameters
from pipelines.local import ROOT, Workplace
from pipelines.pipeline import COMPILED
from recsys.step import UserError

STEPS = ["download", "preprocess", "train", "evaluate", "benchmark", "gate", "cleanup"]
STAND_INS = STEPS[:5]
STAND_IN = """
import json, os, shutil, signal, subprocess, sys
from recsys.step import Step, UserError, json_object

NAME, INPUTS, PARAMETERS, OUTPUTS = {spec!r}
STEP = Step(NAME, "stand-in")
for flag in INPUTS:
    STEP.input(flag, "")
for flag, kind in PARAMETERS.items():
    STEP.parameter(flag, {{"STRUCT": json_object, "NUMBER_INTEGER": int}}.get(kind, str))
for flag in OUTPUTS:
    STEP.output(flag, "")


def work(arguments, outputs):
    print(f"{{NAME}} works\\n\\r50 %\\r100 %", flush=True)
    for flag, title in OUTPUTS.items():
        if title in ("system.Dataset", "system.Model"):
            folder = outputs.folder(flag, keep=title == "system.Model")
            (folder / "arguments.json").write_text(json.dumps(vars(arguments), default=str))
        elif title == "system.Metrics":
            outputs.metrics(flag, {{"hr@10": 0.7, "loss": float("nan"), "by": NAME}})
        else:
            outputs.file(flag).write_text(f"<p>{{NAME}} & its {{flag}}</p>")
    options = getattr(arguments, "options", None) or getattr(arguments, "hyperparameters", {{}})
    behave = options.get("behave", "")
    if behave == "mistake":
        raise UserError("--options: no key 'behave'; allowed: none")
    if behave == "crash":
        raise RuntimeError("boom")
    if behave == "vanish":
        os._exit(0)
    if behave == "orphan":
        subprocess.Popen(["sleep", "600"])
    if behave.startswith("SIG"):
        number = signal.Signals[behave]
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        os.kill(os.getppid(), number)
        signal.sigwait([number])  # passed on by the runner
        (folder / "state").write_text("epoch 3")
        if options.get("stubborn"):
            os.kill(os.getppid(), number)
            signal.sigwait([number])
            signal.sigwait([number])
        sys.exit(1)


def main():
    code = STEP.run(work)
    arguments = STEP.parser.parse_args()
    options = getattr(arguments, "options", None) or getattr(arguments, "hyperparameters", {{}})
    if options.get("behave") == "lose":
        shutil.rmtree(getattr(arguments, next(iter(OUTPUTS))))
    return code


sys.exit(main())
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Two run files, and a folder with stand-ins of all steps but gate and cleanup, which are real."""
    pipeline = parameters.compiled_spec(COMPILED)
    for step in STAND_INS:
        component = pipeline["components"][f"comp-{step}"]
        inputs, outputs = component["inputDefinitions"], component["outputDefinitions"]["artifacts"]
        spec = (
            step,
            list(inputs.get("artifacts", {})),
            {name: value["parameterType"] for name, value in inputs["parameters"].items()},
            {name: value["artifactType"]["schemaTitle"] for name, value in outputs.items()},
        )
        folder = tmp_path / "components" / step
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        program = pipeline["deploymentSpec"]["executors"][f"exec-{step}"]["container"]["command"][2]
        (folder / f"{program.rpartition('.')[2]}.py").write_text(STAND_IN.format(spec=spec))
    (tmp_path / "components/__init__.py").touch()
    for program in ("evaluate/gate.py", "train/cleanup.py", "train/kube.py"):
        shutil.copy(ROOT / "components" / program, tmp_path / "components" / program)
    run_files = tmp_path / "run_files"
    run_files.mkdir()
    for name in ("first", "second"):
        (run_files / f"{name}.yaml").write_text("model: ncf\ndataset: synthetic\ngate: hr@10>=0.6\n")
    # The stand-ins find this project's recsys, but their own components.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, COMPILED, run_files, dict.fromkeys(local.ENVIRONMENTS, Path(sys.executable)))


@pytest.fixture
def run(workplace):
    """Runs ``make run``'s program; returns exit code, the run folders and their summaries."""

    def start(*argv):
        code = local.main(list(argv), workplace)
        folders = sorted((workplace.root / "runs").glob("*"))
        return code, folders, [json.loads((folder / "summary.json").read_text()) for folder in folders]

    return start


def test_leaves_a_folder_per_step_a_summary_and_a_report(run, capfd):
    code, [folder], [summary] = run("first", "seed=7", "hyperparameters.epochs=3")
    assert code == 0
    assert re.fullmatch(r"\d{8}-\d{6}-first", folder.name)
    for artifact in ("download/raw", "preprocess/dataset", "train/checkpoint"):
        assert (folder / artifact / "arguments.json").is_file()
    for artifact in ("preprocess/statistics", "evaluate/report", "gate/verdict"):
        assert (folder / artifact).is_file()
    assert all((folder / step / "log.txt").is_file() for step in STEPS)
    log = (folder / "train/log.txt").read_text()
    assert "train works" in log
    assert "50 %" not in log  # a progress bar's steps belong on a terminal, not in a log

    assert (summary["run"], summary["id"], summary["status"]) == ("first", folder.name, "succeeded")
    assert summary["parameters"]["hyperparameters"] == {"epochs": 3}
    assert summary["parameters"]["seed"] == 7
    assert summary["steps"]["evaluate"] == {"hr@10": 0.7, "by": "evaluate"}
    assert list(summary["step_seconds"]) == STEPS
    assert "error" not in summary

    report = (folder / "report.html").read_text()
    assert "0.7" in report
    assert "learning_curve" in report
    assert 'href="train/checkpoint"' in report

    lines = capfd.readouterr().out.splitlines()
    assert "train      | train works" in lines
    assert any(re.fullmatch(r"evaluate +hr@10 +0\.7", line) for line in lines)
    assert lines[-3:-1] == [f"runs/{folder.name}/summary.json", f"runs/{folder.name}/report.html"]
    assert lines[-1].startswith("first: succeeded after ")


def test_steps_get_the_parameters_as_they_were_given(run):
    _, [folder], _ = run(
        "first",
        "hyperparameters.learning_rate=1e-3",
        "hyperparameters={epochs: 3, hidden: [600, 200], target: 1.0, name: null}",
        "hyperparameters.flag=true",
        "source=data/my ratings.zip",
        "seed=11",
    )
    train = json.loads((folder / "train/checkpoint/arguments.json").read_text())
    assert train["hyperparameters"] == {
        "epochs": 3,
        "hidden": [600, 200],
        "target": 1.0,
        "name": None,
        "flag": True,
    }
    assert (train["model"], train["seed"], train["resume"]) == ("ncf", 11, "")
    assert train["dataset"] == str(folder / "preprocess" / "dataset")
    download = json.loads((folder / "download/raw/arguments.json").read_text())
    assert download["source"] == str(folder.parents[1] / "data/my ratings.zip")


@pytest.mark.parametrize(
    ("behave", "code", "error"),
    [
        ("mistake", 2, "no key 'behave'"),
        ("crash", 1, "RuntimeError: boom"),
        ("vanish", 1, "ended before its work did"),
        ("lose", 1, "output 'dataset' is missing"),
    ],
)
def test_a_failing_step_ends_the_run_with_its_exit_code(run, capfd, behave, code, error):
    found, [folder], [summary] = run("first", f"preparation.behave={behave}")
    assert found == code
    assert (summary["status"], summary["failed_step"]) == ("failed", "preprocess")
    assert error in summary["error"]
    assert not (folder / "train").exists()
    assert not list(folder.glob("*/*.tmp"))
    assert (folder / "report.html").is_file()
    assert capfd.readouterr().out.splitlines()[-1].endswith(f"preprocess: {summary['error']}")


def test_missed_gate_fails_the_run_after_everything_is_reported(run):
    code, [folder], [summary] = run("first", "gate=hr@10>=0.9")
    assert code == 1
    assert summary["failed_step"] == "gate"
    assert summary["error"] == "gate missed: hr@10 is 0.7, not >= 0.9"
    assert summary["steps"]["benchmark"]["hr@10"] == 0.7
    assert "**missed**" in (folder / "gate/verdict").read_text()


def test_several_runs_go_on_after_a_failure_and_the_worst_exit_code_counts(run):
    code, folders, summaries = run("first,second", "gate=hr@11>=0.9")
    assert code == 2
    assert [summary["run"] for summary in summaries] == ["first", "second"]
    assert len(set(folders)) == 2


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interruption_lets_the_step_save_its_state_and_says_how_to_resume(run, capfd, name, code):
    found, [folder], [summary] = run(
        "first,second", "dataset_options.text=a b", f"hyperparameters.behave={name}"
    )
    assert found == code
    assert (summary["status"], summary["failed_step"]) == ("interrupted", "train")
    partial = folder / "train/checkpoint.partial"
    assert (partial / "state").read_text() == "epoch 3"
    assert not (folder / "train/checkpoint").exists()

    line = capfd.readouterr().out.splitlines()[-1]
    command = shlex.split(line.removeprefix("to resume: "))
    assert command[:3] == ["make", "run", "RUN=first"]
    assert shlex.split(command[3].removeprefix("PARAMS=")) == [
        "dataset_options.text=a b",
        f"hyperparameters.behave={name}",
        f"resume=runs/{folder.name}/train/checkpoint.partial",
    ]


def test_resume_reaches_the_step_as_an_absolute_path(run, workplace):
    _, [folder], _ = run("first", "--params", "resume=runs/old/train/checkpoint.partial 'gate='")
    train = json.loads((folder / "train/checkpoint/arguments.json").read_text())
    assert train["resume"] == str(workplace.root / "runs/old/train/checkpoint.partial")


def test_second_interruption_ends_a_step_that_does_not_stop(run):
    code, _, [summary] = run("first", "hyperparameters={behave: SIGINT, stubborn: true}")
    assert (code, summary["status"]) == (130, "interrupted")


def test_no_process_of_a_step_outlives_it(run):
    code, *_ = run("first", "hyperparameters.behave=orphan")  # would wait 600 s for the pipe to close
    assert code == 0


def test_missing_environment_is_a_users_mistake_that_names_the_remedy(run, workplace):
    workplace.environments["recsys-train"] = workplace.root / ".venv/train/bin/python"
    code, _, [summary] = run("first")
    assert code == 2
    assert "make setup" in summary["error"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["frist"], "unknown run 'frist' (did you mean 'first'?); runs: first, second"),
        (["first,third"], "unknown run 'third'"),
        ([","], "RUN is empty; runs: first, second"),
        (["first", "sed=7"], "unknown parameter 'sed' (did you mean 'seed'?)"),
        (["first", "hyperparameter.epochs=7"], "did you mean 'hyperparameters'?"),
        (["first", "seed"], "'seed' is not key=value"),
        (["first", "seed=many"], "seed must be a whole number, not 'many'"),
        (["first", "seed=1.5"], "seed must be a whole number, not 1.5"),
        (["first", "seed=true"], "seed must be a whole number, not True"),
        (["first", "hyperparameters=3"], "hyperparameters must be key: value pairs"),
        (["first", "model.name=ncf"], "model is not a dict"),
        (["first", "hyperparameters.x=[1"], "not valid YAML"),
        (["first", "hyperparameters.x=.inf"], "JSON can carry"),
        (["first", "--params", "gate='hr"], "No closing quotation"),
    ],
)
def test_wrong_command_line_is_one_line_and_starts_nothing(workplace, capfd, argv, message):
    assert local.main(argv, workplace) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (workplace.root / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: ncf", "'dataset' is missing"),
        ("model: ncf\nhyperparameter: {}", "did you mean 'hyperparameters'?"),
        ("model: [ncf]\ndataset: x", "model must be text"),
        ("- model", "key: value lines"),
        ("model: {", "not a YAML file"),
    ],
)
def test_wrong_run_file_is_refused_by_name(workplace, content, message):
    path = workplace.run_files / "first.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        parameters.resolve("first", [], COMPILED, workplace.run_files)
    assert str(path) in str(raised.value)


def test_run_file_numbers_are_numbers(workplace):
    (workplace.run_files / "first.yaml").write_text(
        "model: ncf\ndataset: synthetic\ngpus: 2\nhyperparameters: {epsilon: 1e-8, since: 2020-01-01}"
    )
    values = parameters.resolve("first", [], COMPILED, workplace.run_files)
    assert values["hyperparameters"] == {"epsilon": 1e-8, "since": "2020-01-01"}
    assert (values["gpus"], values["seed"]) == ("2", 1)


def test_private_api_of_kfp_is_where_the_process_runner_expects_it():
    """When this fails, kfp has moved: mend pipelines/process_runner.py, then the pinned version here."""
    assert kfp.__version__ == "2.17.0"
    constructor = inspect.signature(subprocess_task_handler.SubprocessTaskHandler.__init__)
    assert list(constructor.parameters)[1:] == [
        "image",
        "full_command",
        "pipeline_root",
        "runner",
        "env_vars",
    ]
    assert list(inspect.signature(subprocess_task_handler.SubprocessTaskHandler.run).parameters) == ["self"]
    dispatcher = inspect.getsource(task_dispatcher.run_single_task_implementation)
    assert "subprocess_task_handler.SubprocessTaskHandler" in dispatcher
    assert "pipeline_spec_builder.to_protobuf_value" in inspect.getsource(
        executor_input_utils.construct_executor_input
    )
    component = inspect.signature(executor_input_utils.get_local_task_resource_name)
    assert list(component.parameters) == ["component_name"]
    artifacts = inspect.signature(orchestrator_utils.OrchestratorUtils.get_dag_output_artifacts)
    assert list(artifacts.parameters) == ["dag_outputs_spec", "io_store"]
    naming = inspect.signature(executor_input_utils.get_local_pipeline_resource_name)
    assert list(naming.parameters) == ["pipeline_name"]
    root = executor_input_utils.construct_local_task_root("runs", "id", "train")
    assert root == os.path.join("runs", "id", "train")
