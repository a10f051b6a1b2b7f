"""Slides drawn as a PowerPoint file: one master, native tables and charts, pictures and notes."""

import io
from pathlib import Path

import jinja2
from lxml import etree
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.dml.color import RGBColor
from pptx.enum.chart import XL_CHART_TYPE, XL_LEGEND_POSITION, XL_TICK_MARK
from pptx.opc.constants import RELATIONSHIP_TYPE
from pptx.oxml import parse_xml
from pptx.util import Inches, Pt

_DESIGN = Path(__file__).with_name("slides.xml")
_WIDTH, _HEIGHT = 13.333, 7.5  # inches
_LEFT, _TOP, _BODY, _BOTTOM = 0.6, 1.65, 12.13, 6.8  # of what is between title and footer
_CAPTION = 0.95  # height of two lines below it
_DARK = (7.75, 0.6, 5.1, 6.3)  # left, top, width and height of a picture beside the dark panel


def presentation(slides, pictures, note):
    """`pptx.Presentation` of a list of `Slide`.

    Args:
        slides: `Slide`s.
        pictures: dict from the path of a figure to the bytes of a PNG.
        note: caveats, in the footer of each slide.
    """
    from pneumo_lib.plots import style  # matplotlib

    design = jinja2.Template(_DESIGN.read_text(encoding="utf-8"))
    design = design.make_module({"style": vars(style)})
    deck = _empty_deck(design)
    for slide in slides:
        shown = slide.figure or slide.table or slide.chart
        layout = 0 if slide.dark else 1 if shown else 2
        page = deck.slides.add_slide(deck.slide_layouts[layout])
        title, body, footer = page.placeholders
        title.text, body.text = slide.title, "\n".join(slide.points)
        footer.text = f"{slide.source}  ·  {note}"
        page.notes_slide.notes_text_frame.text = slide.notes
        height = _BOTTOM - _TOP - (_CAPTION if slide.points else 0)
        if not slide.points:
            body._element.getparent().remove(body._element)
        if slide.chart:
            _add_chart(page, slide.chart, (_LEFT, _TOP, _BODY, height), style)
        elif slide.figure:
            picture = page.shapes.add_picture(io.BytesIO(pictures[slide.figure]), 0, 0)
            _fit(picture, *(_DARK if slide.dark else (_LEFT, _TOP, _BODY, height)))
            picture._element.nvPicPr.cNvPr.set("descr", slide.title)
        elif slide.table:
            _add_table(page, slide.table, height, design)
    return deck


def _empty_deck(design):
    """Deck without slides; theme, master and three layouts are those of slides.xml."""
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(_WIDTH), Inches(_HEIGHT)
    for layout in list(deck.slide_layouts)[3:]:
        deck.slide_layouts.remove(layout)
    master = deck.slide_master
    theme, styles, *shapes = parse_xml(design.master())
    for part, new in zip((master, *deck.slide_layouts), shapes, strict=True):
        part._element.replace(part._element.cSld, new)
    master._element.replace(master._element.find(styles.tag), styles)
    part = master.part.part_related_by(RELATIONSHIP_TYPE.THEME)
    root = etree.fromstring(part.blob)
    for new in theme:
        old = root.find(f".//{new.tag}")
        old.getparent().replace(old, new)
    part._blob = etree.tostring(root)
    return deck


def _fit(picture, left, top, width, height):
    """Makes a picture as large as its place, in inches, allows, and puts it in the middle."""
    ratio = min(Inches(width) / picture.width, Inches(height) / picture.height)
    picture.width, picture.height = int(ratio * picture.width), int(ratio * picture.height)
    picture.left = int(Inches(left + width / 2) - picture.width / 2)
    picture.top = int(Inches(top + height / 2) - picture.height / 2)


def _add_table(page, rows, height, design):
    size, letters = table_points(rows), _column_letters(rows)
    widths = [Inches(min(_BODY / sum(letters), 0.0095 * size) * n) for n in letters]
    line = Inches(min(0.95, (height - 0.3) / len(rows)))
    columns = list(zip(*rows, strict=True))
    numeric = [all(cell[:1] in "+-–[(0123456789" for cell in column[1:]) for column in columns]
    place = Inches(_LEFT), Inches(_TOP)
    frame = design.table(rows, *place, widths, line, size, numeric)
    page.shapes._spTree.append(parse_xml(frame))


def _column_letters(rows):
    """How many letters wide each column is; headings may break between words."""
    return [
        3 + max(map(len, (*column[0].split(), *column[1:], column[0][::2])))
        for column in zip(*rows, strict=True)
    ]


def table_points(rows):
    """Points of the letters of a table, 18 to 24, of which no line breaks if 18 are enough."""
    return int(max(18, min(24, 72 * _BODY / (0.52 * sum(_column_letters(rows))))))


def _add_chart(page, chart, place, style):
    """Adds a native chart: numbers at its bars, or an axis from 0 to 1 for lines."""
    networks = {name.partition(" (")[0]: colour for name, colour, _ in style.BACKBONES.values()}
    colours = style.ERRORS | networks | {"all background": style.GREY}
    colours |= {"images": style.GREY, "positive": style.CLASSES["pneumothorax"]}
    data = CategoryChartData()
    data.categories = chart["categories"]
    for name, values in chart["series"].items():
        data.add_series(name, values, chart["formats"][name])
    kind = XL_CHART_TYPE[chart["kind"]]
    drawn = page.shapes.add_chart(kind, *map(Inches, place), data).chart
    drawn.font.size, drawn.has_title, drawn.has_legend = Pt(20), False, len(data) > 1
    if len(data) > 1:
        drawn.legend.position, drawn.legend.include_in_layout = XL_LEGEND_POSITION.TOP, False
    axis, line = drawn.value_axis, kind == XL_CHART_TYPE.LINE_MARKERS
    axis.has_major_gridlines, axis.visible, axis.minimum_scale = False, line, 0
    drawn.category_axis.reverse_order = not line  # bars would begin at the bottom
    drawn.category_axis.major_tick_mark = XL_TICK_MARK.NONE
    if max(value or 0 for values in chart["series"].values() for value in values) <= 1:
        axis.maximum_scale, axis.major_unit = 1, 0.2
    for number, series in enumerate(drawn.plots[0].series):
        colour = colours.get(series.name, (style.BLUE, style.SKY, style.GREY)[number % 3])
        if line:
            series.smooth, series.format.line.width = False, Pt(4)
            series.format.line.color.rgb = RGBColor.from_string(colour[1:])
            continue
        for place, name in enumerate(chart["categories"]):
            fill = series.points[place].format.fill
            fill.solid()
            named = colours.get(name.partition("\n")[0], colour) if len(data) == 1 else colour
            fill.fore_color.rgb = RGBColor.from_string(named[1:])
        series.format.fill.solid()  # of the legend
        series.format.fill.fore_color.rgb = RGBColor.from_string(colour[1:])
        drawn.plots[0].gap_width, drawn.plots[0].has_data_labels = 45, True
        if kind == XL_CHART_TYPE.BAR_STACKED:  # a part of nothing needs no number
            drawn.plots[0].data_labels.number_format = "0;;"
