"""The quality gate: the run fails when a metric of the evaluation misses its threshold.

It is a step of its own, after evaluate and benchmark, because Kubeflow registers a step's reports only when
the step has succeeded. The verdict is therefore also printed: of a missed gate, the log is what remains.
"""

import json
import operator
import re
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from recsys.step import Outputs, Step, UserError

MISSED = 1
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
RULE = re.compile(r"([^<>=,\s]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")

STEP = Step("evaluate.gate", "Fails when a metric of the evaluation misses its threshold.")
STEP.input("metrics", "the evaluate step's metrics: a JSON object of numbers")
STEP.parameter("gate", help='rules like "hr@10>=0.65, ndcg@10>=0.3"; empty text always passes')
STEP.output("verdict", "each rule with the metric's value, as Markdown")


@dataclass(frozen=True)
class Rule:
    """``metric operator threshold``, for example ``hr@10 >= 0.65``."""

    metric: str
    operator: str
    threshold: float

    def holds(self, value: float) -> bool:
        """Whether the metric's value passes."""
        return OPERATORS[self.operator](value, self.threshold)


def parse(gate: str, metrics: dict[str, float]) -> list[Rule]:
    """Parses rules separated by commas.

    Args:
        metrics: the metrics there are, by name.
    Raises:
        UserError: a rule that is not ``metric operator number``, or names a metric that does not exist.
    """
    rules = []
    known = ", ".join(sorted(metrics)) or "none"
    for text in filter(None, (part.strip() for part in gate.split(","))):
        match = RULE.fullmatch(text)
        if not match:
            raise UserError(
                f"--gate: {text!r} is not a rule like hr@10>=0.65 (operators {' '.join(OPERATORS)}; "
                f"metrics: {known})"
            )
        rule = Rule(match[1], match[2], float(match[3]))
        if rule.metric not in metrics:
            raise UserError(f"--gate: no metric {rule.metric!r}; the evaluation has: {known}")
        rules.append(rule)
    return rules


def read_metrics(path: Path) -> dict[str, float]:
    """Reads the numbers of a metrics file; other values are no metrics."""
    try:
        values = json.loads(path.read_text())
        return {key: value for key, value in values.items() if type(value) in (int, float)}
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"--metrics {path}: not a JSON object of metrics: {error}") from None


def markdown(rules: list[Rule], metrics: dict[str, float]) -> str:
    """The verdict as a Markdown table."""
    if not rules:
        return "No gate is set: every result passes.\n"
    rows = [
        f"| {rule.metric} | {metrics[rule.metric]:.6g} | {rule.operator} {rule.threshold:g} "
        f"| {'passed' if rule.holds(metrics[rule.metric]) else '**missed**'} |"
        for rule in rules
    ]
    return "\n".join(["| metric | value | gate | verdict |", "|---|---|---|---|", *rows]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when every rule holds, 1 when one is missed, 2 for a user's mistake."""
    missed: list[str] = []

    def judge(arguments: Namespace, outputs: Outputs) -> None:
        metrics = read_metrics(arguments.metrics)
        rules = parse(arguments.gate, metrics)
        verdict = markdown(rules, metrics)
        print(verdict, end="", flush=True)
        outputs.file("verdict").write_text(verdict)
        missed.extend(
            f"{rule.metric} is {metrics[rule.metric]:.6g}, not {rule.operator} {rule.threshold:g}"
            for rule in rules
            if not rule.holds(metrics[rule.metric])
        )

    code = STEP.run(judge, argv)
    if code == 0 and missed:
        # The verdict is published by now, so that a local run keeps it beside the failure.
        print(f"gate missed: {'; '.join(missed)}", file=sys.stderr)
        return MISSED
    return code


if __name__ == "__main__":
    sys.exit(main())
