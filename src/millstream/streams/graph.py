"""A flow as a picture: SVG, from its sources at the top to its end."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import msgspec

from .describing import Words, words
from .ends import FileSink, FunctionSink
from .progress import FlowProgress
from .shaping import Rowwise
from .tree import Source

if TYPE_CHECKING:
    from .flow import Flow

_WIDTH, _GAP, _LINE, _PAD = 300, 28, 15, 9
_SIGNS = 46
"""So many signs fit a line of a box."""

_FILLS = {"source": "#dcebf7", "row": "#f2f4f7", "state": "#fdf0d5", "meeting": "#ece4f5", "end": "#dff0df"}
_EDGES = {"source": "#3c78a8", "row": "#8a94a3", "state": "#b9852b", "meeting": "#7d5ba6", "end": "#4b8a4b"}
_INK, _SOFT = "#1f2933", "#52606d"


class Box(msgspec.Struct):
    """A part of the picture.

    Attributes:
        kind: ``source``, ``row``, ``state``, ``meeting`` or ``end``.
        words: What it says.
        x: Its middle.
        y: Its top.
    """

    kind: str
    words: Words
    x: float = 0
    y: float = 0

    @property
    def height(self) -> float:
        return 2 * _PAD + _LINE * (1 + len(self.words.lines))


class _Picture:
    """Boxes and the arrows between them, placed while the tree is gone through."""

    def __init__(self, flow: Flow, progress: FlowProgress | None) -> None:
        self.boxes: list[Box] = []
        self.arrows: list[tuple[Box, Box]] = []
        self._progress = progress
        self._sources: dict[Source, Box] = {}
        self._held = iter(progress.held if progress is not None else ())
        self._columns = 0
        last = self._grow(flow)
        if flow.sink is not None:
            last = self._join("end", _sink(flow, progress), [last])
        if flow.late is not None:
            stream, type = flow.late
            lines = (type,) if progress is None else (type, _rows(progress.late))
            aside = Box("end", Words(f"late rows → {stream}", lines), last.x + _WIDTH + _GAP, last.y)
            self.boxes.append(aside)

    def _column(self) -> float:
        self._columns += 1
        return (self._columns - 0.5) * (_WIDTH + _GAP)

    def _grow(self, flow: Flow) -> Box:
        source = flow.source
        if isinstance(source, Source):
            last = self._source(source)
        else:
            inputs = [self._grow(each) for each in source.inputs]
            last = self._join("meeting", self._counted(words(source)), inputs)
        for stage in flow.stages:
            if isinstance(stage, Rowwise):
                last = self._join("row", words(stage), [last])
            else:
                last = self._join("state", self._counted(words(stage)), [last])
        return last

    def _join(self, kind: str, said: Words, above: list[Box]) -> Box:
        box = Box(kind, said)
        box.x = sum(each.x for each in above) / len(above)
        box.y = max(each.y + each.height for each in above) + _GAP
        # Two branches of one source would stand in one column.
        taken = [each for each in self.boxes if abs(each.x - box.x) < _WIDTH and each.y + each.height > box.y]
        if taken:
            box.x = self._column()
        self.boxes.append(box)
        for each in above:
            if (each, box) not in self.arrows:
                self.arrows.append((each, box))
        return box

    def _source(self, source: Source) -> Box:
        if source in self._sources:
            return self._sources[source]
        said = words(source)
        if self._progress is not None:
            rows = self._progress.rows.get(source.stream, 0)
            rate = self._progress.rows_per_second.get(source.stream, 0.0)
            mark = self._progress.watermarks.get(source.stream)
            shown = "none yet" if mark is None else f"{mark:%Y-%m-%d %H:%M:%S}"
            said = Words(said.title, (*said.lines, f"{_rows(rows)}, {rate:,.1f}/s", f"watermark {shown}"))
        box = Box("source", said, self._column(), 0)
        self.boxes.append(box)
        self._sources[source] = box
        return box

    def _counted(self, said: Words) -> Words:
        held = next(self._held, None)
        return said if held is None else Words(said.title, (*said.lines, f"holds {_rows(held)}"))


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _sink(flow: Flow, progress: FlowProgress | None) -> Words:
    assert flow.sink is not None
    where, lines = flow.sink.stream, [flow.sink.type]
    if isinstance(flow.sink, FileSink):
        where, lines = flow.sink.folder, [f"{flow.sink.format} files"]
    elif isinstance(flow.sink, FunctionSink):
        where, lines = getattr(flow.sink.function, "__name__", "a function"), ["a function"]
    if flow.sink.name not in (f"{flow.sink.stream}/{flow.sink.type}", where):
        lines.append(f"named {flow.sink.name}")
    if progress is not None:
        lines.append(f"{_rows(progress.given)}, {progress.given_per_second:,.1f}/s; {progress.late:,} late")
        lines.append(f"at {progress.position:,}, {progress.behind:,} behind{', paused' if progress.paused else ''}")
    return Words(f"→ {where}", tuple(lines))


def graph(flow: Flow, progress: FlowProgress | None = None) -> str:
    """See `Flow.graph`."""
    picture = _Picture(flow, progress)
    left = min(box.x for box in picture.boxes) - _WIDTH / 2 - _GAP / 2
    right = max(box.x for box in picture.boxes) + _WIDTH / 2 + _GAP / 2
    height = max(box.y + box.height for box in picture.boxes) + _GAP
    width = right - left
    about = f'viewBox="{left:.0f} {-_GAP / 2:.0f} {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {about} font-family="sans-serif" font-size="11">',
        f'<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{_SOFT}"/></marker></defs>',
        f'<rect x="{left:.0f}" y="{-_GAP / 2:.0f}" width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        *(_arrow(*arrow, picture.boxes) for arrow in picture.arrows),
        *(line for box in picture.boxes for line in _box(box)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(above: Box, below: Box, boxes: list[Box]) -> str:
    top, bottom = above.y + above.height, below.y - 1
    middle = bottom - _GAP / 2
    between = [box for box in boxes if abs(box.x - above.x) < _WIDTH and top < box.y and box.y + box.height < bottom]
    if between:
        # Around what stands in the way.
        side = above.x - _WIDTH / 2 - _GAP / 4
        way = f"V{top + _GAP / 4:.1f}H{side:.1f}V{middle:.1f}H{below.x:.1f}V{bottom:.1f}"
    else:
        way = f"V{bottom:.1f}" if above.x == below.x else f"V{middle:.1f}H{below.x:.1f}V{bottom:.1f}"
    return f'<path d="M{above.x:.1f} {top:.1f}{way}" fill="none" stroke="{_SOFT}" marker-end="url(#to)"/>'


def _box(box: Box) -> list[str]:
    left = box.x - _WIDTH / 2
    parts = [
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{_WIDTH}" height="{box.height:.1f}" rx="6"'
        f' fill="{_FILLS[box.kind]}" stroke="{_EDGES[box.kind]}"/>'
    ]
    for number, line in enumerate((box.words.title, *box.words.lines)):
        y = box.y + _PAD + _LINE * (number + 0.75)
        style = f'font-weight="bold" fill="{_INK}"' if number == 0 else f'fill="{_SOFT}"'
        whole = f"<title>{escape(line)}</title>" if len(line) > _SIGNS else ""
        shown = line if len(line) <= _SIGNS else line[: _SIGNS - 1] + "…"
        parts.append(f'<text x="{left + _PAD:.1f}" y="{y:.1f}" {style}>{whole}{escape(shown)}</text>')
    return parts
