"""The promises of ``recsys.step``, kept by real processes: what a launcher, a shell and a retry rely on."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.step import Outputs, atomic_write, boolean, finite, json_object

REPOSITORY = Path(__file__).resolve().parents[2]

# A step like those under components/: --act says what goes wrong in the middle of its work.
PROGRAM = """
import signal, sys
from recsys.step import Step, UserError, boolean, json_object

STEP = Step("demo", "Copies text.")
STEP.input("text", "a file")
STEP.parameter("act", default="")
STEP.parameter("rate", float, 0.5)
STEP.parameter("wanted", boolean, False)
STEP.parameter("options", json_object, "{}")
STEP.parameter("keep", boolean, False)
STEP.output("copy", "a folder")
STEP.output("score", "metrics")

def work(arguments, outputs):
    folder = outputs.folder("copy", keep=arguments.keep)
    found = sorted(path.name for path in folder.iterdir())
    (folder / "half.txt").write_text("half")
    if arguments.act == "hang":
        print("half done", flush=True)
        signal.pause()
    if arguments.act == "mistake":
        raise UserError("--text: wrong;\\n allowed: right")
    if arguments.act == "crash":
        raise ZeroDivisionError("a bug")
    if arguments.act == "nothing":
        return
    if arguments.act == "empty":
        (folder / "half.txt").unlink()
    else:
        (folder / "whole.txt").write_text(arguments.text.read_text())
    outputs.describe("copy", {"rate": arguments.rate, "wanted": arguments.wanted, **arguments.options})
    outputs.metrics("score", {"hr@10": 0.5, "loss": float("nan"), "found": ",".join(found)})

sys.exit(STEP.run(work))
"""


@pytest.fixture
def step(tmp_path):
    """Starts the demo step: ``step("--flag", "value")``; ``wait=False`` returns it running."""
    (tmp_path / "demo.py").write_text(PROGRAM)
    (tmp_path / "text").write_text("first")

    def start(*flags, wait=True):
        paths = ["--text", tmp_path / "text", "--copy", tmp_path / "copy", "--score", tmp_path / "score"]
        process = subprocess.Popen(
            [sys.executable, tmp_path / "demo.py", *paths, *flags],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        process.out, process.err = process.communicate(timeout=60)
        return process

    return start


def executor_input(folder: Path) -> str:
    """What Kubeflow puts in place of {{$}}: two outputs, one of them with metadata already."""
    return json.dumps(
        {
            "inputs": {"parameterValues": {}},
            "outputs": {
                "outputFile": str(folder / "deep" / "executor_output.json"),
                "artifacts": {
                    "copy": {
                        "artifacts": [
                            {
                                "name": "projects/1/copy",
                                "type": {"schemaTitle": "system.Dataset"},
                                "uri": "minio://b/run/copy",
                                "metadata": {"display_name": "copy"},
                            }
                        ]
                    },
                    "score": {"artifacts": [{"name": "score", "uri": "minio://b/run/score"}]},
                },
            },
        }
    )


def test_success_leaves_the_outputs_under_their_names_and_nothing_else(step, tmp_path):
    done = step()
    assert (done.returncode, done.err) == (0, "")
    assert (tmp_path / "copy" / "whole.txt").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "demo.py", "score", "text"]


def test_a_killed_step_leaves_no_output_and_the_next_attempt_is_clean(step, tmp_path):
    process = step("--act", "hang", "--executor_input", executor_input(tmp_path), wait=False)
    assert process.stdout.readline() == "half done\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "score").exists()
    assert not (tmp_path / "deep").exists()
    assert step().returncode == 0
    assert json.loads((tmp_path / "score").read_text())["found"] == ""
    assert not (tmp_path / "copy.partial").exists()


def test_a_folder_kept_for_resuming_survives_a_crash_and_a_kill(step, tmp_path):
    assert step("--keep", "true", "--act", "crash").returncode == 1
    assert not (tmp_path / "copy").exists()
    process = step("--keep", "true", "--act", "hang", wait=False)
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert step("--keep", "true").returncode == 0
    assert json.loads((tmp_path / "score").read_text())["found"] == "half.txt"


def test_a_rerun_replaces_the_older_output(step, tmp_path):
    step()
    (tmp_path / "copy" / "stale.txt").write_text("of the first run")
    (tmp_path / "text").write_text("second")
    assert step().returncode == 0
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["half.txt", "whole.txt"]
    assert (tmp_path / "copy" / "whole.txt").read_text() == "second"


@pytest.mark.parametrize(("act", "named"), [("nothing", "score"), ("empty", "copy")])
def test_a_promised_output_that_is_missing_or_empty_fails_the_step(step, tmp_path, act, named):
    failed = step("--act", act, "--executor_input", executor_input(tmp_path))
    assert failed.returncode == 1
    assert f"without writing its outputs: {named}\n" in failed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.py", "text"]


def test_a_bug_keeps_its_traceback_and_leaves_nothing(step, tmp_path):
    failed = step("--act", "crash")
    assert failed.returncode == 1
    assert "Traceback" in failed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.py", "text"]


MISTAKES = {
    "a mistake found at work": (["--act", "mistake"], "--text: wrong; allowed: right"),
    "an input that does not exist": (["--text", "no/such/file"], "--text no/such/file: no such file"),
    "an unknown flag": (["--colour", "red"], "unrecognized arguments: --colour red"),
    "an abbreviated flag": (["--opt", "{}"], "unrecognized arguments: --opt"),
    "a number that is text": (["--rate", "fast"], "invalid float value: 'fast'"),
    "a boolean that is neither": (["--wanted", "maybe"], "'maybe' is not true or false"),
    "options that are not JSON": (["--options", "{a: 1}"], "not valid JSON"),
    "options that are a list": (["--options", "[1]"], "is not a JSON object"),
}


@pytest.mark.parametrize(("flags", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_the_users_mistake_is_one_line_and_exit_code_2(step, tmp_path, flags, named):
    failed = step(*flags)
    assert failed.returncode == 2
    assert failed.err.startswith("python -m components.demo.main: ")
    assert named in failed.err
    assert failed.err.count("\n") == 1
    assert not (tmp_path / "copy").exists()


def test_the_executor_output_is_what_the_strict_launcher_accepts(step, tmp_path):
    flags = ["--rate", "0.001", "--wanted", "true", "--options", '{"users": 10, "best": NaN}']
    assert step(*flags, "--executor_input", executor_input(tmp_path)).returncode == 0

    def refuse(token):
        raise AssertionError(f"protojson refuses {token}")

    text = (tmp_path / "deep" / "executor_output.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "artifacts": {
            "copy": {
                "artifacts": [
                    {
                        "name": "projects/1/copy",
                        "uri": "minio://b/run/copy",
                        "metadata": {"display_name": "copy", "rate": 0.001, "wanted": True, "users": 10},
                    }
                ]
            },
            "score": {
                "artifacts": [
                    {"name": "score", "uri": "minio://b/run/score", "metadata": {"hr@10": 0.5, "found": ""}}
                ]
            },
        }
    }
    json.loads((tmp_path / "score").read_text(), parse_constant=refuse)


def test_a_failed_step_writes_no_executor_output(step, tmp_path):
    assert step("--act", "mistake", "--executor_input", executor_input(tmp_path)).returncode == 2
    assert not (tmp_path / "deep").exists()


# KFP's Go driver writes true, null as "" and floats as %g; kfp.local writes JSON: true, null, 1e-05.
@pytest.mark.parametrize("text", ["true", "True", "1", " TRUE "])
def test_true_in_every_spelling_of_the_backends(text):
    assert boolean(text) is True


@pytest.mark.parametrize("text", ["false", "False", "0", "", "null"])
def test_false_and_absent_in_every_spelling_of_the_backends(text):
    assert boolean(text) is False


@pytest.mark.parametrize("text", ["", "null", "{}", " {} "])
def test_absent_options_are_the_empty_object(text):
    assert json_object(text) == {}


@pytest.mark.parametrize("text", ["1e-05", "1E-05", "0.00001", "0.000010"])
def test_floats_in_every_spelling_of_the_backends(step, tmp_path, text):
    assert step("--rate", text, "--executor_input", executor_input(tmp_path)).returncode == 0
    written = json.loads((tmp_path / "deep" / "executor_output.json").read_text())
    assert written["artifacts"]["copy"]["artifacts"][0]["metadata"]["rate"] == 1e-5


def test_finite_keeps_what_json_can_carry_at_any_depth():
    values = {
        "loss": math.nan,
        "hr": np.float32(0.5),
        "users": np.int64(3),
        "by_epoch": [0.1, math.inf],
        "best": {"epoch": 2, "loss": -math.inf},
        "resumed": None,
        "amp": True,
    }
    kept = finite(values)
    assert kept == {
        "hr": 0.5,
        "users": 3,
        "by_epoch": [0.1, None],
        "best": {"epoch": 2},
        "resumed": None,
        "amp": True,
    }
    assert kept["amp"] is True
    json.dumps(kept, allow_nan=False)


def test_a_step_outside_kubeflow_needs_no_executor_input(tmp_path):
    outputs = Outputs({"report": tmp_path / "report.md"})
    outputs.file("report").write_text("# Report")
    outputs.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_an_atomic_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    atomic_write(path, "old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
