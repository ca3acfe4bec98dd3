# SPDX-License-Identifier: Apache-2.0
"""The page about a run as HTML: what it tells, and that it needs nothing else."""

import re

import pytest
from plotly import offline
from test_report import Tables

from experiments import report, report_page


@pytest.fixture
def text(run):
    return report_page.page([report.read(str(run), "run", worst=3)], command="")


def test_fields_other_than_the_default_are_told(text):
    rows = {row[0]: row[1:] for row in Tables(text).rows}
    assert rows["batch_size"] == ["128", "240"]
    assert rows["stochastic_depth.last_survival"] == ["-", "0.5"]
    assert "momentum" not in rows


def test_the_page_loads_nothing(text):
    ours = text.replace(offline.get_plotlyjs(), "")
    sources = Tables(ours).sources
    assert sources and all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http" not in re.sub(r'"http://www\.w3\.org[^"]*"', "", ours)


def test_names_are_text_and_no_html(run):
    evil = "<script>alert(1)</script>&amp;"
    record = report.read(str(run), evil, worst=3)
    record = record.__class__(
        **{**vars(record), "class_names": [f"{evil}{k}" for k in range(10)]}
    )
    text = report_page.page([record], command=evil)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") >= 10
