"""The gate: passes, fails after its verdict is written, and names what a rule got wrong."""

import json

import pytest

from components.evaluate import gate

METRICS = {"hr@10": 0.66, "ndcg@10": 0.38, "loss": 12.0}


@pytest.fixture
def judge(tmp_path):
    """Runs the gate's program; returns exit code and verdict (``None``: not written)."""

    def run(rules, metrics=METRICS):
        (tmp_path / "metrics").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))
        verdict = tmp_path / "verdict"
        code = gate.main(["--metrics", str(tmp_path / "metrics"), "--gate", rules, "--verdict", str(verdict)])
        return code, verdict.read_text() if verdict.exists() else None

    return run


@pytest.mark.parametrize(
    "rules",
    ["", "  ", "hr@10>=0.66", "hr@10 > 0.6, ndcg@10>=3e-1,", "loss<=12,loss<12.5", "hr@10>=.5,hr@10<1"],
)
def test_passes(judge, rules):
    code, verdict = judge(rules)
    assert code == 0
    assert "missed" not in verdict


@pytest.mark.parametrize("rules", ["hr@10>0.66", "loss<12", "hr@10>=0.6,ndcg@10>=0.5"])
def test_missed_threshold_is_exit_code_1_with_the_verdict_published(judge, rules, capfd):
    code, verdict = judge(rules)
    printed = capfd.readouterr()
    assert code == 1
    assert verdict.count("**missed**") == 1
    assert verdict in printed.out  # on a cluster, the log is all that is left of a failed step
    assert len(printed.err.splitlines()) == 1


def test_missed_line_says_metric_value_and_threshold(judge, capfd):
    judge("ndcg@10>=0.5")
    assert capfd.readouterr().err.strip() == "gate missed: ndcg@10 is 0.38, not >= 0.5"


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ("hr@1>=0.5", "no metric 'hr@1'"),
        ("hr@10=0.5", "'hr@10=0.5' is not a rule"),
        ("hr@10", "'hr@10' is not a rule"),
        ("hr@10>=high", "'hr@10>=high' is not a rule"),
        ("hr@10>=nan", "is not a rule"),
    ],
)
def test_wrong_rule_is_a_users_mistake_that_lists_the_metrics(judge, rules, named, capfd):
    code, verdict = judge(rules)
    error = capfd.readouterr().err
    assert (code, verdict) == (2, None)
    assert named in error
    assert "hr@10, loss, ndcg@10" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[1]", "no json"])
def test_broken_metrics_file_is_one_line(judge, content, capfd):
    assert judge("hr@10>=0.5", content)[0] == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
