# SPDX-License-Identifier: Apache-2.0
"""The style of figures: options, files, labels, ticks, and looks of lines."""

import functools
import itertools

import numpy as np
import pytest
from driver import in_process
from matplotlib import cbook
from PIL import Image
from style import check_style

from experiments import analyze, claims, figures, reproduce, run, sweep
from experiments.figures import Style
from rn_jax.errors import InputError

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def draw(values):
    figure, [axes] = figures.panels()
    for label, value, style in figures.styled(values):
        axes.plot(figures.along(len(value)), value, **style, label=label)
    figures.finish(axes, xlabel=figures.along_label(), ylabel="y", ylim=(0, None))
    return figure


@pytest.mark.parametrize(
    "label",
    ["a$b$c", "$\\frac{$", "a\\$b$", "_a", "$HOME", "\U0001f600\t[x]", "a$" * 255],
)
def test_a_label_is_shown_as_it_is(label, tmp_path, saved_figures):
    values = {figures.as_text(label): [1, 2], "b": [2, 1]}
    place = tmp_path / "[x]" / "a"  # with a warning it would fail
    for width in (3.3, 6.8):
        with figures.using(Style(width=width)):
            figures.save(functools.partial(draw, values), place, title="", caption="")
        text = saved_figures[-1].legends[0].get_texts()[0].get_text()
        assert not cbook.is_math_text(text)
        shown = text.replace("\n", "").replace(r"\$", "$")
        assert shown.strip(" ") == label
        check_style(saved_figures[-1])


def test_files_of_every_format_and_the_caption(tmp_path, saved_figures):
    contents = []
    for number in range(2):
        with figures.using(Style(format="svg,pdf", width=3.3, font_size=7)):
            figures.save(
                functools.partial(draw, {"a": [1, 2]}),
                tmp_path / f"{number}.x",
                title="A title",
                caption="network a, seed 0",
            )
        files = {kind: tmp_path / f"{number}.x.{kind}" for kind in STARTS}
        contents.append({kind: file.read_bytes() for kind, file in files.items()})
        text = (tmp_path / f"{number}.x.txt").read_text()
        assert text == "A title\n\nnetwork a, seed 0\n"
    assert contents[0] == contents[1]  # nothing depends on the time
    for kind, start in STARTS.items():
        assert contents[0][kind].startswith(start)
    with Image.open(tmp_path / "0.x.png") as picture:
        assert picture.width == 3.3 * 200
    figure = saved_figures[-1]
    assert figure.get_suptitle() == "A title"
    assert figure.axes[0].xaxis.label.get_size() == 7
    with figures.using(Style(untitled=True)):
        figures.save(lambda: draw({"a": [1]}), tmp_path / "b", title="t", caption="")
    assert saved_figures[-1].get_suptitle() == ""
    assert figures.current() == figures.DEFAULT


@pytest.mark.parametrize(
    "option, says",
    [
        ("--format=png,gif", "--format must be png, pdf or svg, or several of them"),
        ("--format=", "--format must be png, pdf or svg"),
        ("--width=1", "--width must be from 2 to 20, not 1."),
        ("--width=nan", "--width must be from 2 to 20, not nan."),
        ("--font_size=30", "--font_size must be from 4 to 24, not 30."),
    ],
)
@pytest.mark.parametrize("command", [analyze, claims, reproduce, run, sweep])
def test_bad_options_get_a_sentence(command, option, says, monkeypatch, capsys):
    assert in_process(monkeypatch, [option], command) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_script_gets_the_same_sentence():
    with pytest.raises(InputError, match="not 'jpg'"):
        Style(format="jpg")


def test_looks_are_distinct_in_print():
    looks = [tuple(figures.look(index).values()) for index in range(28)]
    assert len(set(looks)) == len({look[:2] for look in looks}) == 28
    for one, two in itertools.pairwise(looks):
        assert all(a != b for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "width, font_size, count, columns",
    [(3.3, 8, 3, 1), (6.8, 8, 3, 3), (6.8, 12, 3, 2), (6.8, 8, 1, 1), (20, 8, 3, 3)],
)
def test_panels_stand_beside_each_other_where_there_is_room(
    width, font_size, count, columns
):
    with figures.using(Style(width=width, font_size=font_size)):
        figure, panels = figures.panels(count, sharey=True)
    assert figure.get_size_inches()[0] == width and len(panels) == count
    grid = panels[0].get_subplotspec().get_gridspec()
    assert (grid.ncols, grid.nrows) == (columns, -(-count // columns))


def test_ticks_of_whole_numbers_are_whole():
    [axes] = draw({"a": [1, 4]}).axes
    assert {1, 2} <= set(axes.get_xticks()) <= {0, 1, 2, 3}
    assert axes.get_ylim() == (0, 1.05 * 4)
    single = draw({"a": [1]}).axes[0].get_xticks()
    assert 1 in single and all(x == round(x) for x in single)
    with figures.using(Style(relative_depth=True)):
        [axes] = draw({"a": [1, 4]}).axes
    assert list(axes.lines[0].get_xdata()) == [0.5, 1]
    assert any(x != round(x) for x in axes.get_xticks())


def test_a_long_line_has_fewer_markers_and_all_points():
    [axes] = draw({"a": np.arange(200), "b": np.arange(50)}).axes
    long, short = axes.lines
    assert len(long.get_xdata()) == 200 and 20 <= 200 / long.get_markevery() <= 30
    assert short.get_markevery() is None


@pytest.mark.parametrize(
    "losses, scale",
    [
        ([17, 0.9, 0.5, 0.3], "log"),
        ([2.3, 1.5, 1.2, 1.0], "linear"),
        ([17, 0.9, 0.5, 0.0], "linear"),  # zero has no logarithm
        ([17, float("nan"), 0.5, 0.3], "log"),
        ([float("nan")], "linear"),
    ],
)
def test_the_axis_of_a_loss(losses, scale):
    [axes] = draw({"a": losses}).axes
    figures.scale_loss(axes)
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    known = [loss for loss in losses if loss == loss]
    assert all(low <= loss <= high for loss in known)
