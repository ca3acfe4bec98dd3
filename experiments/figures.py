# SPDX-License-Identifier: Apache-2.0
"""The style of all figures, and their files.

A command draws within `using(style)`. A function that draws calls `panels`, plots each
value with the look that `styled` gives it and a label, and calls `finish` for each
panel; `save` adds the legend and the title. Figures are drawn without a display.
"""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rn_jax.errors import InputError
from rn_jax.filesystem import make_folder, replace_file

T = TypeVar("T")

FORMATS = ("png", "pdf", "svg")

# Okabe and Ito 2008: nearly all readers can distinguish them. Dashes and markers differ
# too, for print in black and white.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#000000"),
)
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The colours of numbers, by their name in Matplotlib and in Plotly.
COLOUR_MAP = "Blues"
# The dashes of training, validation and test.
PARTS = {"train": "--", "val": ":", "test": "-"}
# A line at a reference value, such as the error of the whole network.
REFERENCE: dict[str, Any] = {"linestyle": ":", "linewidth": 0.8}
# A line that only marks a place, such as an epoch.
MARK: dict[str, Any] = {"color": "0.6", "linewidth": 0.8, "zorder": 0}
# The marker of a block that changes the shape.
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markersize": 6}

# Inches of the narrowest panel beside another one, with text of 8 points.
_NARROWEST = 2.2
# Lines of more points have markers on some of them only.
_MOST_MARKERS = 60
# A loss is drawn on a logarithmic axis if the largest is this many times the median.
_FAR = 10


@dataclass(frozen=True)
class Style:
    """The settings of figures. Commands have an option for each of them.

    Attributes:
        format: formats of the figures, with commas between: png, pdf, svg. A PNG is
            always written, because reports show it.
        width: width of the figures in inches; 3.3 fits one column of a paper, 6.8 two.
        font_size: size of the figures' text in points.
        relative_depth: place blocks and layers by their relative depth l/L, to compare
            networks of different depths.
        untitled: omit the title of the figures; papers have a caption instead.

    Raises:
        InputError: a format is unknown, or a size is out of range.
    """

    format: str = "png"
    width: float = 6.8
    font_size: float = 8.0
    relative_depth: bool = False
    untitled: bool = False

    def __post_init__(self):
        if not set(self.format.split(",")) <= set(FORMATS):
            raise InputError(
                "--format must be png, pdf or svg, or several of them with commas "
                f"between, not {self.format!r}."
            )
        for name, low, high in (("width", 2, 20), ("font_size", 4, 24)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    f"--{name} must be from {low} to {high}, not {value:g}."
                )

    @property
    def formats(self) -> list[str]:
        """The formats of the files, each once."""
        return list(dict.fromkeys(["png", *self.format.split(",")]))

    @property
    def settings(self) -> Any:
        """The settings of Matplotlib."""
        return {
            "axes.axisbelow": True,
            "axes.labelsize": "medium",
            "axes.linewidth": 0.6,
            "axes.titlesize": "medium",
            "axes.xmargin": 0.02,
            "figure.titlesize": "large",
            "font.size": self.font_size,
            "grid.alpha": 0.3,
            "grid.linewidth": 0.5,
            "image.cmap": COLOUR_MAP,
            "legend.fontsize": "small",
            "lines.linewidth": 1.2,
            "lines.markersize": 3.5,
            "pdf.fonttype": 42,  # fonts that can be edited, as publishers require
            "svg.hashsalt": "rn_jax",  # the same drawing gives the same file
            "xtick.labelsize": "small",
            "ytick.labelsize": "small",
        }


DEFAULT = Style()

_STYLE = ContextVar("style", default=DEFAULT)


def current() -> Style:
    """Return the style of the innermost `using`, or the default."""
    return _STYLE.get()


@contextlib.contextmanager
def using(style: Style) -> Iterator[None]:
    """Draw and save figures in a style inside the context."""
    token = _STYLE.set(style)
    try:
        yield
    finally:
        _STYLE.reset(token)


# --- Drawing --------------------------------------------------------------------------


def look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of the line of that index."""
    again, colour = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "linestyle": _DASHES[(colour + again) % len(_DASHES)],
        "marker": _MARKERS[(colour + again) % len(_MARKERS)],
    }


def styled(values: Mapping[str, T]) -> Iterator[tuple[str, T, dict[str, Any]]]:
    """Yield each label with its value and the look of its line."""
    for index, (label, value) in enumerate(values.items()):
        yield label, value, look(index)


def panels(
    count: int = 1,
    *,
    height: float | None = None,
    aspect: float = 0.62,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the style's width, and its panels.

    Panels that would be too narrow beside each other are placed below each other.

    Args:
        count: number of panels.
        height: height of a panel in inches; None: by its width and `aspect`.
        aspect: height over width, for panels of neither extreme height.
        sharey: whether the panels have the same vertical axis.
    """
    style = current()
    narrowest = _NARROWEST * max(1, style.font_size / 8)
    columns = max(1, min(count, int(style.width / narrowest)))
    rows = math.ceil(count / columns)
    if height is None:
        height = float(np.clip(aspect * style.width / columns, 1.9, 3.4))
    figure = Figure(figsize=(style.width, rows * height), layout="constrained")
    found: list[Axes] = []
    for place in range(count):
        shared = found[0] if sharey and found else None
        axes = figure.add_subplot(rows, columns, place + 1, sharey=shared)
        axes.tick_params(labelleft=not sharey or place % columns == 0)
        found.append(axes)
    return figure, found


def along(count: int) -> np.ndarray:
    """Return the places of blocks or layers: 1, ..., or relative depths, f[count]."""
    places = np.arange(1, count + 1)
    return places / count if current().relative_depth else places


def along_label(name: str = "block", symbol: str = "l") -> str:
    """Return the label of the axis of `along`."""
    if current().relative_depth:
        return f"relative depth of the {name}"
    return f"{name} ${symbol}$"


def finish(axes: Axes, **settings: Any) -> None:
    """Set what `Axes.set` takes, and the ticks, the grid and the number of markers.

    An axis of whole numbers, such as epochs, has ticks at whole numbers. With a `ylim`
    of (0, None) the axis begins at zero and holds all that is drawn.
    """
    axes.set(**settings)
    axes.grid(visible=True)
    if settings.get("ylim") == (0, None):
        _begin_at_zero(axes)
    if not axes.yaxis.get_tick_params()["labelleft"]:  # the panel on the left has it
        axes.set_ylabel("")
    lines = [line for line in axes.lines if line.get_transform() is axes.transData]
    places = [np.asarray(line.get_xdata(), float) for line in lines]
    whole = all((x == np.rint(x)).all() for x in places)  # NaN is none
    if places and whole and axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(whole_numbers())
    for line, x in zip(lines, places, strict=True):
        if len(x) > _MOST_MARKERS and line.get_linestyle() not in ("None", "", " "):
            line.set_markevery(len(x) // (_MOST_MARKERS // 3))


def _begin_at_zero(axes):
    together = axes.get_shared_y_axes().get_siblings(axes)
    tops = [each.dataLim.ymax for each in together if math.isfinite(each.dataLim.ymax)]
    axes.set_ylim(0, 1.05 * max(tops, default=0) or 1)


def whole_numbers() -> MaxNLocator:
    """Return a locator of ticks at whole numbers, also of a single one."""
    return MaxNLocator(integer=True, min_n_ticks=1)


def has_outliers(losses: Iterable[float]) -> bool:
    """Return whether a linear axis would flatten most of the losses against zero."""
    values = [loss for loss in losses if math.isfinite(loss)]
    if not values or min(values) <= 0:
        return False
    return max(values) > _FAR * float(np.median(values))


def scale_loss(axes: Axes) -> None:
    """Draw losses from zero on, or logarithmically if a few are far larger."""
    losses = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    if has_outliers(np.concatenate(losses)):
        axes.set_yscale("log")
    else:
        _begin_at_zero(axes)


def as_text(label: str) -> str:
    """Escape a label, such as a folder's name, so that Matplotlib shows it unchanged.

    Text between two "$" would be mathematics, and a label that begins with "_" would be
    left out of legends.
    """
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


# --- Files ----------------------------------------------------------------------------


def save(
    draw: Callable[[], Figure], path: epath.PathLike, *, title: str, caption: str
) -> None:
    """Draw a figure in the current style, and write it in its formats.

    The legend, below the panels, has every label once.

    Args:
        draw: returns the figure, without legend and title.
        path: the files, without suffix. Their folder is made.
        title: one line above the panels.
        caption: what is drawn, and the settings, for PATH.txt.

    Raises:
        InputError: a file cannot be written.
    """
    path, style = epath.Path(path), current()
    make_folder(path.parent)
    with warnings.catch_warnings(), matplotlib.rc_context(style.settings):
        # A folder's name in a legend may have characters that the font lacks, or leave
        # no room for the panels.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure = draw()
        _add_legend(figure, style)
        if not style.untitled:
            _add_title(figure, title, style)
        for kind in style.formats:
            content, undated = io.BytesIO(), {"pdf": "CreationDate", "svg": "Date"}
            metadata = {undated[kind]: None} if kind in undated else None
            figure.savefig(content, format=kind, dpi=200, metadata=metadata)
            replace_file(path.with_name(f"{path.name}.{kind}"), content.getvalue())
    text = f"{title}\n\n{caption}\n"
    replace_file(path.with_name(f"{path.name}.txt"), text)


def _characters(style, size):
    """Return about how many characters fit into the width, at a relative size."""
    return int(style.width * 72 / (0.55 * size * style.font_size))


def _add_title(figure, title, style):
    """Add a title of one line, in smaller letters if it is long."""
    share = _characters(style, 1.2) / max(1, len(title))
    figure.suptitle(as_text(title), fontsize=1.2 * style.font_size * min(1, share))


def _add_legend(figure, style):
    """Add the legend below the panels, and its height to the figure."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    size, sample = 0.833, 8  # of "small", and the characters of a line's sample
    room = max(10, _characters(style, size) - sample)
    labels = [_wrapped(label, room) for label in handles]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(len(labels), (room + sample) // (longest + sample)))
    rows = math.ceil(len(labels) / columns)
    lines = max(rows, sum(label.count("\n") + 1 for label in labels) / columns)
    width, height = figure.get_size_inches()
    added = (1.5 * lines + 2) * size * style.font_size / 72
    figure.set_size_inches(width, height + added)
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns)


def _wrapped(label, width):
    r"""Break a label into lines, at spaces if possible, and not within "\$"."""
    line = rf"(?:\\*[^\\\n]|\\+(?=\n|$)){{1,{width}}}"
    return "\n".join(re.findall(rf"{line}(?=\s|$)|{line}", label))
