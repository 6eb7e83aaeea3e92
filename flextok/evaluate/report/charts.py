"""Line charts as inline SVG, coloured by the page's style sheet so that they follow its light and dark modes.

Our own SVG rather than an embedded chart library: it is there without JavaScript, prints, and weighs some kilobytes a chart,
where the library alone would weigh a megabyte. Its lines carry their values, which the page's script shows; on
the logarithmic scale they are not repeated.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from flextok.evaluate.report.ticks import log_ticks, nice_ticks

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 40
MAX_X_TICKS = 9
COLOURS = 6
"""Of lines: classes c1.. of the style sheet."""
SHADES = 10
"""Of lines that stand in an order: classes s0.. of the style sheet."""
# More points than pixels only make the page heavier.
MAX_POINTS = 200
SHORT = 14
"""Of the strokes of a short mark."""
MOST_TOLD = 5
"""Places of a mark that its chart's description names."""
HEAD = 26
"""Height of the line with title and legend in a file of its own."""
FILE_STYLE = """
svg { background: #fff; font: 11px system-ui, sans-serif; } text { fill: #5c6370; } .axis { font-size: 12px; }
.title { font-weight: 600; fill: #1b1e24; } .grid { stroke: #dfe2e7; } .dot { fill: currentColor; }
.line { fill: none; stroke: currentColor; stroke-width: 2; } .level { stroke: currentColor; stroke-dasharray: 5 4; }
.legend { fill: currentColor; } .mark { stroke: #9a5b00; stroke-width: 1.5; }
.c1 { color: #2563c9; } .c2 { color: #c2541b; } .c3 { color: #64748b; } .c4 { color: #8a3ffc; }
.c5 { color: #0f7b6c; } .c6 { color: #b4246f; }
"""


Scale = Callable[[float], float]
"""From a value to a place in the drawing."""


@dataclass(frozen=True)
class Line:
    """A line through the points (x, y); `colour` is in 1..COLOURS."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    markers: bool = True
    ends: Sequence[tuple[float, float]] = ()
    """Of the interval of each y, where they have one."""
    shade: int | None = None
    """In 0..SHADES - 1: instead of its colour, where lines stand in an order."""
    is_dashed: bool = False
    most_points: int = MAX_POINTS

    @property
    def style(self) -> str:
        """Its classes in the style sheet."""
        colour = f"c{self.colour}" if self.shade is None else f"s{self.shade}"
        return f"{colour} dashed" if self.is_dashed else colour

    def drawn(self) -> list[tuple[float, float]]:
        """The points that are drawn, at most some `most_points`: of more, the least and the largest of each few, so that what
        stands out still does."""
        points = list(zip(self.x, self.y, strict=True))
        if len(points) <= self.most_points:
            return points
        found = [points[0]]
        few = math.ceil(2 * len(points) / self.most_points)
        for start in range(1, len(points) - 1, few):
            part = points[start : min(start + few, len(points) - 1)]
            found += sorted({min(part, key=_height), max(part, key=_height)})
        return [*found, points[-1]]


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line, for what does not depend on x."""

    label: str
    y: float
    colour: int = 3


@dataclass(frozen=True)
class Mark:
    """Places along x at which something happened."""

    label: str
    x: Sequence[float]
    is_short: bool = False
    """At the lower edge only, where there may be many."""


@dataclass(frozen=True)
class Chart:
    """A chart of lines over one x axis."""

    title: str
    x_label: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    note: str = ""
    log2_x: bool = False
    from_zero: bool = False
    log_first: bool = False
    """Shown on its logarithmic scale until that is switched off, if it has one."""
    marks: Sequence[Mark] = ()

    @property
    def has_log(self) -> bool:
        """Whether all its values can stand on a logarithmic scale."""
        return bool(heights := self._heights()) and min(heights) > 0

    def svg(self, log_y: bool = False) -> Markup:
        """The chart without its title and legend, as an <svg> element whose lines carry their values."""
        begin = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}" data-axis="{}">').format(
            "log" if log_y else "linear", WIDTH, HEIGHT, self._described(log_y), self.x_label
        )
        return Markup("").join([begin, *self._marks(log_y), Markup("</svg>")])

    def file(self) -> bytes:
        """The chart with its title and the names of its lines as an SVG file, for where there is no style sheet."""
        begin = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="0 {} {} {}"><style>{}</style>'
        ).format(2 * WIDTH, 2 * (HEIGHT + HEAD), -HEAD, WIDTH, HEIGHT + HEAD, Markup(FILE_STYLE))
        head = [_text(LEFT, 4 - HEAD / 2, "start", self.title, "title")]
        for place, line in enumerate(reversed(self.lines)):
            head.append(_text(WIDTH - RIGHT - 60 * place, 4 - HEAD / 2, "end", line.label, f"legend {line.style}"))
        return Markup("").join([begin, *head, *self._marks(), Markup("</svg>")]).encode()

    def _described(self, log_y: bool) -> str:
        """In words, with the ends of each line."""
        ends = (
            f"{line.label} from {short(line.y[0])} to {short(line.y[-1])}".strip()
            for line in self.lines
            if len(line.y) > 0
        )
        levels = (f"{level.label} {short(level.y)}" for level in self.levels)
        marks = (f"{mark.label} at {', '.join(map(short, mark.x[:MOST_TOLD]))}" for mark in self.marks)
        scale = ", logarithmic" if log_y else ""
        return f"{self.title}{scale}, over {self.x_label}: {'; '.join([*ends, *levels, *marks])}"

    def _heights(self) -> list[float]:
        of_lines = [y for line in self.lines for y in (*line.y, *itertools.chain(*line.ends))]
        return of_lines + [level.y for level in self.levels]

    def _marks(self, log_y: bool = False) -> Iterator[Markup]:
        """Grid, ticks, levels and lines."""
        heights = self._heights() or [0.0, 1.0]
        low, high = min(heights), max(heights)
        y_ticks = log_ticks(low, high) if log_y else nice_ticks(min(low, 0.0) if self.from_zero else low, high)
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
        xs = [x for each in (*self.lines, *self.marks) for x in each.x]
        places = [self._place(x) for x in xs] or [0.0, 1.0]
        first, last = min(places), max(places)

        def px(x: float) -> float:
            share = (self._place(x) - first) / (last - first) if last > first else 0.5
            return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

        def py(y: float) -> float:
            share = math.log(high / y) / math.log(high / low) if log_y else (high - y) / (high - low)
            return round(TOP + share * (HEIGHT - TOP - BOTTOM), 1)

        for tick in y_ticks:
            yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, WIDTH - RIGHT, py(tick), py(tick)
            )
            yield _text(LEFT - 6, py(tick) + 3.5, "end", short(tick))
        for tick in self._x_ticks(xs):
            yield _text(px(tick), HEIGHT - BOTTOM + 16, "middle", short(tick))
        yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", self.x_label, "axis")
        for level in self.levels:
            yield Markup(
                '<line class="level c{}" x1="{}" x2="{}" y1="{}" y2="{}" data-label="{}" data-y="{}">'
                "<title>{}: {}</title></line>"
            ).format(
                level.colour, LEFT, WIDTH - RIGHT, py(level.y), py(level.y), level.label, _exact(level.y),
                level.label, short(level.y),
            )  # fmt: skip
        for mark in self.marks:
            yield _mark(mark, px)
        told = ""
        for line in self.lines:
            values = Markup() if log_y else _values(line, told)
            yield from _line(line, values, self.x_label, px, py)
            told = _places(line)

    def _place(self, x: float) -> float:
        return math.log2(x) if self.log2_x else x

    def _x_ticks(self, xs: Sequence[float]) -> list[float]:
        if not xs:
            return []
        if self.log2_x:
            each = sorted(set(xs))
            return each[:: math.ceil(len(each) / MAX_X_TICKS)]
        return [tick for tick in nice_ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]


def _height(point: tuple[float, float]) -> float:
    return point[1]


def _mark(mark: Mark, px: Scale) -> Markup:
    """One path of strokes, each once at a place of the drawing."""
    top = HEIGHT - BOTTOM - SHORT if mark.is_short else TOP
    places: dict[float, float] = {}
    for x in mark.x:
        places.setdefault(px(x), x)
    strokes = "".join(f"M{place} {top}V{HEIGHT - BOTTOM}" for place in places)
    return Markup('<path class="mark" data-label="{}" data-x="{}" d="{}"><title>{}</title></path>').format(
        mark.label, " ".join(map(_exact, places.values())), strokes, mark.label
    )


def _values(line: Line, told: str) -> Markup:
    """What the script reads of a line; its places only where they are other than those `told` of the line before."""
    values = Markup(' data-label="{}" data-y="{}"').format(line.label, " ".join(f"{y:.4g}" for _, y in line.drawn()))
    if (places := _places(line)) != told:
        values += Markup(' data-x="{}"').format(places)
    if line.ends:
        values += Markup(' data-ends="{}"').format(" ".join(f"{low:.3g},{high:.3g}" for low, high in line.ends))
    return values


def _places(line: Line) -> str:
    return " ".join(_exact(x) for x, _ in line.drawn())


def _line(line: Line, values: Markup, x_label: str, px: Scale, py: Scale) -> Iterator[Markup]:
    """Band of the intervals, line, and points that say their values."""
    drawn, style = line.drawn(), line.style
    if line.ends:
        upper = [f"{px(x)},{py(high)}" for x, (_, high) in zip(line.x, line.ends, strict=True)]
        lower = [f"{px(x)},{py(low)}" for x, (low, _) in zip(line.x, line.ends, strict=True)]
        yield Markup('<polygon class="band {}" points="{}"/>').format(style, " ".join([*upper, *lower[::-1]]))
    yield Markup('<polyline class="line {}"{} points="{}"/>').format(
        style, values, " ".join(f"{px(x)},{py(y)}" for x, y in drawn)
    )
    if line.markers or len(drawn) == 1:
        for x, y in drawn:
            yield Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}, {} {}: {}</title></circle>').format(
                style, px(x), py(y), line.label, x_label, short(x), short(y)
            )


def short(value: float) -> str:
    """A number for reading."""
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _exact(value: float) -> str:
    return f"{value:.6g}"


def _text(x: float, y: float, anchor: str, text: str, style: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(style, x, y, anchor, escape(text))
