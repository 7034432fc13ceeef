"""Report pages: self-contained, escaped, equal bytes for equal data, and readable charts for any numbers."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from recsys import report

CURVES = {"train": [(step, math.exp(-step / 9)) for step in range(20)], "validation": [(19, 0.2)]}


def whole_page() -> str:
    return report.page(
        "Run",
        report.paragraph("A sentence."),
        report.facts({"users": 6040, "resume": None}, "Data"),
        report.table(["epoch", "ndcg@10"], [[1, 0.25], [2, 0.375]], "Epochs"),
        report.line_chart("Loss", CURVES, "step", "loss"),
        report.bar_chart("Throughput", ["1", "64"], [10.0, 500.0], "samples/s"),
    )


def texts(html: str) -> list[str]:
    """The texts of a page in reading order, tags and style left out."""
    found: list[str] = []

    class Reader(HTMLParser):
        inside = ""

        def handle_starttag(self, tag, attributes):
            self.inside = tag

        def handle_data(self, data):
            if data.strip() and self.inside != "style":
                found.append(data.strip())

    Reader().feed(html)
    return found


def lines(html: str) -> list[list[tuple[float, float]]]:
    """The points of each drawn line, in pixels."""
    paths = re.findall(r'd="M([^"hv]+)" class="line', html)
    return [
        [tuple(map(float, point)) for point in re.findall(r"([\d.-]+) ([\d.-]+)", path)] for path in paths
    ]


def test_a_page_needs_nothing_from_outside_and_runs_nothing():
    html = whole_page().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(|href|src=|javascript|onload", html)
    assert len(html) < 25_000


def test_equal_data_gives_equal_bytes():
    assert whole_page() == whole_page()


def test_every_text_is_escaped():
    evil = '<img src=x onerror=alert(1)>"&'
    html = report.page(
        evil,
        report.paragraph(evil),
        report.facts({evil: evil}, evil),
        report.table([evil], [[evil]], evil),
        report.line_chart(evil, {evil: [(0, 1), (1, 2)]}, evil, evil),
        report.bar_chart(evil, [evil], [1.0], evil),
    )
    assert "<img" not in html
    assert texts(html).count(evil) >= 9


def test_numbers_are_written_for_people():
    values = [1_234_567, 0.123456789, 1e-7, 1234567.8, 1234.5678, math.nan, True, None, np.float32(0.5)]
    cells = [cell for cell in texts(report.facts({str(place): value for place, value in enumerate(values)}))]
    assert cells[1::2] == ["1,234,567", "0.12346", "1e-07", "1,234,568", "1,234.6", "nan", "yes", "–", "0.5"]


def test_columns_of_numbers_are_right_aligned_and_columns_of_text_are_not():
    html = report.table(["split", "rows"], [["train", 10], ["test", np.int64(5)]])
    assert '<th>split</th>\n<th class="number">rows</th>' in html
    assert html.count('<td class="number">') == 2


def test_a_row_that_does_not_fit_its_headers_is_refused():
    with pytest.raises(ValueError, match=r"row \[1\] does not fit the headers"):
        report.table(["epoch", "loss"], [[1]], "Epochs")


def test_a_long_series_is_thinned_keeping_its_ends_and_its_shape():
    short = [(x, 1000 - x) for x in (0, 10_000, 19_999)]
    long = [(x, 1000 - x) for x in range(20_000)]
    chart = report.line_chart("Loss", {"all": long, "ends": short}, "step", "loss")
    thinned, ends = lines(chart)
    assert len(thinned) == report.MAX_POINTS
    assert (thinned[0], thinned[-1]) == (ends[0], ends[-1])
    assert len(chart) < 20_000


def test_few_epochs_are_marked_by_whole_numbers():
    shown = texts(report.line_chart("Loss", {"train": [(1, 0.5), (2, 0.4), (3, 0.3)]}, "epoch", "loss"))
    assert {"1", "2", "3"} <= set(shown)
    assert "1.2" not in shown


def test_points_that_are_not_finite_are_left_out():
    points = [(0, 1.0), (1, math.nan), (2, 3.0), (3, math.inf)]
    chart = report.line_chart("Loss", {"train": points}, "step", "loss")
    assert "nan" not in chart.lower()
    assert [len(line) for line in lines(chart)] == [2]


@pytest.mark.parametrize(
    "series",
    [{}, {"train": []}, {"train": [(1, 2.0)]}, {"train": [(1, 2.0), (2, 2.0)]}, {"train": [(0, 0.0)]}],
    ids=["no series", "an empty series", "one point", "a constant", "the origin"],
)
def test_a_line_chart_can_be_drawn_of(series):
    assert "<svg" in report.line_chart("Loss", series, "step", "loss")


def test_a_bar_shows_its_label_and_value():
    shown = texts(report.bar_chart("Throughput", ["batch 1", "batch 64"], [1234.5, math.nan], "users/s"))
    for text in ("Throughput", "batch 1", "batch 64", "1,234.5", "users/s"):
        assert text in shown


def test_bars_without_labels_are_refused():
    with pytest.raises(ValueError, match="1 labels for 2 values"):
        report.bar_chart("Throughput", ["batch 1"], [1.0, 2.0], "users/s")


def test_a_page_that_the_dashboard_cannot_show_is_refused():
    rows = [["x" * 100] for _ in range(10_000)]
    with pytest.raises(ValueError, match="'Run' has 1,.* bytes, allowed: 1,000,000"):
        report.page("Run", report.table(["text"], rows))
