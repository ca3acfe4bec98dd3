# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown."""

from experiments import markdown


def test_table():
    assert markdown.table(["name", "n"], [["a|b", "1"], ["c\nd  e", ""]], words=1) == [
        "| name | n |",
        "| --- | ---: |",
        "| a\\|b | 1 |",
        "| c d e |  |",
    ]
    assert markdown.table(["name", "n"], [])[1] == "| --- | --- |"
