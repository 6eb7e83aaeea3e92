"""Line charts as inline SVG, coloured by the page's style sheet so that they follow its light and dark modes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 40
Y_TICKS = 5
MAX_X_TICKS = 9
# More points than pixels only make the page heavier.
MAX_POINTS = 300
HEAD = 26
"""Height of the line with title and legend in a file of its own."""
FILE_STYLE = """
svg { background: #fff; font: 11px system-ui, sans-serif; } text { fill: #5c6370; } .axis { font-size: 12px; }
.title { font-weight: 600; fill: #1b1e24; } .grid { stroke: #dfe2e7; } .dot { fill: currentColor; }
.line { fill: none; stroke: currentColor; stroke-width: 2; } .level { stroke: currentColor; stroke-dasharray: 5 4; }
.legend { fill: currentColor; }
.c1 { color: #2563c9; } .c2 { color: #c2541b; } .c3 { color: #64748b; } .c4 { color: #8a3ffc; }
"""


@dataclass(frozen=True)
class Line:
    """A line through the points (x, y); `colour` 1..4 is a class of the style sheet."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    markers: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line, for what does not depend on x."""

    label: str
    y: float
    colour: int = 3


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

    def svg(self) -> Markup:
        """The chart without its title and legend, as an <svg> element."""
        begin = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, self.title)
        return Markup("").join([begin, *self._marks(), Markup("</svg>")])

    def file(self) -> bytes:
        """The chart with its title and the names of its lines as an SVG file, for where there is no style sheet."""
        begin = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" viewBox="0 {} {} {}"><style>{}</style>'
        ).format(2 * WIDTH, 2 * (HEIGHT + HEAD), -HEAD, WIDTH, HEIGHT + HEAD, Markup(FILE_STYLE))
        head = [_text(LEFT, 4 - HEAD / 2, "start", self.title, "title")]
        for place, line in enumerate(reversed(self.lines)):
            head.append(_text(WIDTH - RIGHT - 60 * place, 4 - HEAD / 2, "end", line.label, f"legend c{line.colour}"))
        return Markup("").join([begin, *head, *self._marks(), Markup("</svg>")]).encode()

    def _marks(self) -> list[Markup]:
        """Grid, ticks, levels and lines."""
        points = [(x, y) for line in self.lines for x, y in zip(line.x, line.y, strict=True)]
        heights = [y for _, y in points] + [level.y for level in self.levels]
        low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
        y_ticks = nice_ticks(min(low, 0.0) if self.from_zero else low, high)
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
        places = [self._place(x) for x, _ in points] or [0.0, 1.0]
        first, last = min(places), max(places)

        def px(x: float) -> float:
            share = (self._place(x) - first) / (last - first) if last > first else 0.5
            return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

        def py(y: float) -> float:
            return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

        parts: list[Markup] = []
        for tick in y_ticks:
            parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, WIDTH - RIGHT, py(tick), py(tick)
            ))  # fmt: skip
            parts.append(_text(LEFT - 6, py(tick) + 3.5, "end", _short(tick)))
        for tick in self._x_ticks([x for x, _ in points]):
            parts.append(_text(px(tick), HEIGHT - BOTTOM + 16, "middle", _short(tick)))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle", self.x_label, "axis"))
        for level in self.levels:
            parts.append(
                Markup('<line class="level c{}" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}: {}</title></line>').format(
                    level.colour, LEFT, WIDTH - RIGHT, py(level.y), py(level.y), level.label, _short(level.y)
                )
            )
        for line in self.lines:
            stride = math.ceil(len(line.x) / MAX_POINTS) or 1
            drawn = list(zip(line.x, line.y, strict=True))[::stride]
            path = " ".join(f"{px(x)},{py(y)}" for x, y in drawn)
            parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(line.colour, path))
            if line.markers or len(drawn) == 1:
                parts += [
                    Markup(
                        '<circle class="dot c{}" cx="{}" cy="{}" r="3.5"><title>{}, {} {}: {}</title></circle>'
                    ).format(line.colour, px(x), py(y), line.label, self.x_label, _short(x), _short(y))
                    for x, y in drawn
                ]
        return parts

    def _place(self, x: float) -> float:
        return math.log2(x) if self.log2_x else x

    def _x_ticks(self, xs: Sequence[float]) -> list[float]:
        if not xs:
            return []
        if self.log2_x:
            each = sorted(set(xs))
            return each[:: math.ceil(len(each) / MAX_X_TICKS)]
        return [tick for tick in nice_ticks(min(xs), max(xs)) if min(xs) <= tick <= max(xs)]


def nice_ticks(low: float, high: float) -> list[float]:
    """About Y_TICKS round numbers which span low..high."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        spread = abs(low) or 1.0
        low, high = low - spread / 2, high + spread / 2
    raw = (high - low) / Y_TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _text(x: float, y: float, anchor: str, text: str, style: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(style, x, y, anchor, escape(text))


def _short(value: float) -> str:
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
