"""Figure object (a chart with the rows it draws), and export to PNG, SVG, PDF and CSV without a browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import altair as alt
import polars as pl
import vl_convert

from palimpsest.data.errors import UserError, nearest

Style = Literal["screen", "paper"]
Width = Literal["single", "double"]

FORMATS = ("png", "svg", "pdf", "csv")
STYLES = ("screen", "paper")
INCHES = {"single": 3.25, "double": 6.75}
"""Column width -> inches."""
_DESIGN = {"single": 400.0, "double": 830.0}
"""Column width -> layout width of a figure, pixels, before it is scaled to the column; 12 px text then has 7 points."""
_DPI = 300
_NARROWEST = 0.5
"""Smallest share of its width to which a panel is narrowed; beyond it the whole figure is scaled."""
_LEGIBLE = 1.35
"""Largest factor by which the whole figure is scaled down; beyond it text would be smaller than 5 points."""
FIXED = "fixed"
"""Prefix of the names of chart parts that must not be narrowed."""
_CHILDREN = ("hconcat", "vconcat", "concat")


class Figure(NamedTuple):
    """A chart and exactly the rows it draws."""

    chart: alt.TopLevelMixin
    rows: pl.DataFrame

    def titled(self, title: str, subtitle: str = "") -> Figure:
        """Copy of the figure with another title, and a subtitle."""
        text = alt.TitleParams(title, subtitle=subtitle) if subtitle else title
        return Figure(self.chart.properties(title=text), self.rows)

    def save(
        self,
        path: Path | str,
        *,
        style: Style = "screen",
        width: Width = "double",
        formats: Collection[str] = FORMATS,
    ) -> str:
        """Write the figure and its rows; :func:`save` has the arguments."""
        return save(self, path, style=style, width=width, formats=formats)

    def _repr_mimebundle_(self, *arguments: Any, **settings: Any) -> Any:
        """Chart that a notebook displays for the figure."""
        return self.chart._repr_mimebundle_(*arguments, **settings)


def save(
    figure: Figure | alt.TopLevelMixin,
    path: Path | str,
    name: str | None = None,
    rows: pl.DataFrame | None = None,
    *,
    style: Style = "screen",
    width: Width = "double",
    formats: Collection[str] = FORMATS,
) -> str:
    """Write a figure to ``path`` as ``.png``, ``.svg``, ``.pdf`` and, its rows, ``.csv``; each file is written
    atomically.

    The style ``paper`` fits the figure to a column: exactly 3.25 (``single``) or 6.75 inches (``double``) wide, 7-point
    text, 300 dots per inch, no title (it belongs in the caption; a subtitle stays). ``screen`` keeps the layout, at
    twice the pixels.

    Args:
        figure: result of a figure function, or an Altair chart, whose CSV holds its inline data.
        path: path of the files; a suffix ``.png``, ``.svg``, ``.pdf`` or ``.csv`` is removed. If ``name`` is given, a
            directory.
        name: name of the files in the directory ``path``.
        rows: rows for the CSV of an Altair chart.
        style: ``screen`` or ``paper``.
        width: column width of ``paper``.
        formats: formats to write.

    Returns:
        The SVG as text.

    Raises:
        UserError: if style, width or a format is unknown, or the figure would be illegible in the column.
    """
    if style not in STYLES:
        raise UserError(f"style={style!r} is not a style of figures{nearest(str(style), STYLES)}")
    if width not in INCHES:
        raise UserError(f"width={width!r} is not a column width{nearest(str(width), INCHES)}")
    if strangers := sorted(set(formats) - set(FORMATS)):
        raise UserError(
            f"formats={strangers[0]!r} is not a file format of figures{nearest(strangers[0], FORMATS)}"
        )
    chart, drawn = (figure.chart, figure.rows) if isinstance(figure, Figure) else (figure, rows)
    target = Path(path) / name if name is not None else Path(path)
    if name is None and target.suffix[1:] in FORMATS:
        target = target.with_suffix("")
    specification = chart.to_dict()
    drawn = _inline_rows(specification) if drawn is None else drawn
    if style == "paper":
        drawing = _on_paper(specification, width)
        # Printers count 72 points an inch, and so does vl-convert; SVG's own inch says so to browsers.
        points = _sized(drawing, 72 * INCHES[width], "")
        svg, dots = _sized(drawing, INCHES[width], "in"), {"scale": 1.0, "ppi": float(_DPI)}
    else:
        svg = points = vl_convert.vegalite_to_svg(specification)
        dots = {"scale": 2.0}
    svg = _compact(svg)
    forms: dict[str, Callable[[], bytes]] = {
        "png": lambda: vl_convert.svg_to_png(points, **dots),
        "svg": svg.encode,
        "pdf": lambda: vl_convert.svg_to_pdf(points),
        "csv": csv_of(drawn).encode,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (suffix for suffix in FORMATS if suffix in formats):
        write(target.with_name(f"{target.name}.{suffix}"), forms[suffix]())
    return svg


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary name, flush, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


_NUMBER = re.compile(r"[+-]?[0-9][0-9.,]*(e[+-]?[0-9]+)?( ?\[.*\])?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def inert(cell: str) -> str:
    """Cell that no spreadsheet reads as a formula: text that would start one gets an apostrophe in front."""
    return f"'{cell}" if cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell


def csv_of(rows: pl.DataFrame) -> str:
    """CSV text of rows; no cell is read as a formula by a spreadsheet (:func:`inert`)."""
    plain = flat(rows)
    texts = [name for name, dtype in plain.schema.items() if dtype == pl.String]
    starts = [pl.col(name).str.starts_with(sign).any() for name in texts for sign in _FORMULA]
    if starts and plain.select(pl.any_horizontal(starts)).item():
        plain = plain.with_columns(pl.col(texts).map_elements(inert, return_dtype=pl.String))
    return plain.rename({name: inert(name) for name in plain.columns}).write_csv()


def flat(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with lists and structs converted to JSON text, which CSV can hold."""
    nested = [name for name, dtype in rows.schema.items() if dtype.is_nested()]
    return rows.with_columns(
        pl.Series(
            name, [json.dumps(value, ensure_ascii=False, default=str) for value in rows[name].to_list()]
        )
        for name in nested
    )


def _inline_rows(specification: dict[str, Any]) -> pl.DataFrame:
    """One table with the rows of every inline data set of a chart specification."""
    tables = [
        pl.DataFrame(values, infer_schema_length=None)
        for node in _nodes(specification)
        if isinstance(values := node.get("values"), list) and values and isinstance(values[0], dict)
    ]
    tables += [
        pl.DataFrame(values, infer_schema_length=None)
        for values in specification.get("datasets", {}).values()
        if values
    ]
    return pl.concat(tables, how="diagonal_relaxed") if tables else pl.DataFrame()


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def _on_paper(specification: dict[str, Any], width: Width) -> str:
    """The SVG, laid out for a column."""
    title = specification.pop("title", None)
    if isinstance(title, dict) and title.get("subtitle"):
        # What stands beneath the title qualifies the figure; the caption does not say it.
        specification["title"] = {"text": title["subtitle"], "fontWeight": "normal", "fontSize": 11}
    config = specification.setdefault("config", {})
    config["padding"] = 2
    if width == "single":
        _stack(specification)
        config.setdefault("legend", {})["columns"] = 2
    views = list(_views(specification))
    natural = [float(view["width"]) for view in views]
    target, share = _DESIGN[width], 1.0
    tried: list[tuple[float, float]] = []
    for _ in range(4):
        for view, full in zip(views, natural, strict=True):
            view["width"] = round(full * share, 2)
        svg: str = vl_convert.vegalite_to_svg(specification)
        wide = _width(svg)
        if abs(wide - target) < 1:
            break
        tried.append((share, wide))
        slope = wide / share
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            slope = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0])
        if slope <= 0:
            break
        following = max(_NARROWEST, share + (target - wide) / slope)
        if following == share:
            break
        share = following
    if wide > _LEGIBLE * target:
        raise UserError(
            f"width={width!r} is too narrow for this figure: its type would be {7 * target / wide:.1f} points; "
            + ("save it with width='double'" if width == "single" else "draw fewer panels")
        )
    return svg


def _stack(node: dict[str, Any]) -> None:
    """Put panels that are side by side below each other."""
    if "hconcat" in node:
        node["concat"] = node.pop("hconcat")
        node["columns"] = 1
    if "columns" in node:
        node["columns"] = 1 if len(node.get("concat", [])) < 4 else 2
    for key in _CHILDREN:
        for child in node.get(key, []):
            _stack(child)


def _views(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Parts of a specification with a width, except those whose width is set by their text."""
    if isinstance(node.get("width"), int | float) and not str(node.get("name", "")).startswith(FIXED):
        yield node
    for key in (*_CHILDREN, "layer"):
        for child in node.get(key, []):
            yield from _views(child)
    if isinstance(node.get("spec"), dict):
        yield from _views(node["spec"])


def _compact(svg: str) -> str:
    """SVG of the same drawing in fewer bytes: coordinates in hundredths of a pixel, the font named once, invisible
    elements removed.
    """

    def short(match: re.Match[str]) -> str:
        return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")

    places = r'( (?:d|transform)=")([^"<>]*)"'
    svg = re.sub(places, lambda match: match[1] + re.sub(r"\d+\.\d{3,}", short, match[2]) + '"', svg)
    svg = re.sub(r'<path class="foreground"[^<>]* d=""[^<>]*/>', "", svg)
    svg = re.sub(r'<path class="background"[^<>]* d="M0,0h0v0h0Z"[^<>]*/>', "", svg)
    # The whole is one image: its parts have no roles, and nothing in it is clicked.
    silent = r'pointer-events="none"|opacity="1"|aria-hidden="true"|aria-roledescription="[^"<>]*"|role="graphics-\w+"'
    noise = f" (?:{silent})"
    svg = re.sub(r"<(?:g|path|text|line|rect)\b[^<>]*>", lambda match: re.sub(noise, "", match[0]), svg)
    fonts = re.findall(r'<text[^<>]* (font-family="[^"<>]*")', svg)
    if not fonts:
        return svg
    font = max(set(fonts), key=fonts.count)
    svg = re.sub(rf"(<text[^<>]*) {re.escape(font)}", r"\1", svg)
    return svg.replace("<svg ", f"<svg {font} ", 1)


def _width(svg: str) -> float:
    match = re.search(r'<svg[^>]*?\bwidth="([0-9.]+)"', svg)
    assert match is not None  # vl-convert writes it
    return float(match.group(1))


def _sized(svg: str, width: float, unit: str) -> str:
    """The SVG at another width; its viewBox keeps the layout."""
    high = re.search(r'<svg[^>]*?\bheight="([0-9.]+)"', svg)
    assert high is not None
    tall = float(high.group(1)) * width / _width(svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\bwidth="[0-9.]+"', f'width="{width:g}{unit}"', opening, count=1)
    opening = re.sub(r'\bheight="[0-9.]+"', f'height="{tall:.4f}{unit}"', opening, count=1)
    return f"{opening}>{rest}"
