# SPDX-License-Identifier: Apache-2.0
"""What holds for every figure."""

import re

from matplotlib.lines import Line2D
from matplotlib.offsetbox import DrawingArea


def check_style(figure):
    """Check labels of axes, whole ticks, and that the legend has every look."""
    found = []
    for legend in figure.legends:
        for area in legend.findobj(DrawingArea):
            found += area.get_children()
    shown = {marker(line) for line in found if isinstance(line, Line2D)}
    colours = {line.get_color() for line in found if isinstance(line, Line2D)}
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        left = axes.yaxis.get_tick_params()
        assert axes.get_ylabel() or not left["labelleft"]
        if axes.xaxis.get_visible():
            assert axes.get_xlabel()
        whole = re.match("epoch|.*(block|layer)", axes.get_xlabel())
        if whole and "relative" not in axes.get_xlabel():
            assert all(x == round(x) for x in axes.get_xticks()), axes.get_xlabel()
        for line in axes.lines:
            if len(line.get_xdata()) and marker(line):
                assert marker(line) in shown
            if len(line.get_xdata()) and line.get_linestyle() != "None":
                assert line.get_color() in {*colours, "black"}
    assert "\n" not in figure.get_suptitle()


def marker(line):
    """The line's marker, hollow or filled; None without one."""
    if line.get_marker() in ("None", "", " ", None):
        return None
    return line.get_marker(), line.get_markerfacecolor() in ("white", "none")
