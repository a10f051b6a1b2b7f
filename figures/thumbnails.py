"""One page of thumbnails for each notebook, of the figures that `make figures` exported."""

import sys
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, WIDTH, HEIGHT, LINE, GAP = 4, 320, 180, 20, 8


def write_pages(folder):
    """Writes them into the subfolder `thumbnails` of the folder of the figures."""
    pages = folder / "thumbnails"
    pages.mkdir(exist_ok=True)
    paths = sorted(path for path in folder.glob("*.png"))
    for number, figures in groupby(paths, lambda path: path.stem[:2]):
        draw_page(list(figures)).save(pages / f"{number}.jpg", quality=80, optimize=True)


def draw_page(paths):
    rows = -(-len(paths) // COLUMNS)
    size = min(COLUMNS, len(paths)) * (WIDTH + GAP), rows * (HEIGHT + LINE + GAP)
    page, font = Image.new("RGB", size, "white"), ImageFont.load_default(14)
    for place, path in enumerate(paths):
        x, y = place % COLUMNS * (WIDTH + GAP), place // COLUMNS * (HEIGHT + LINE + GAP)
        image = Image.open(path).convert("RGB")
        image.thumbnail((WIDTH, HEIGHT))
        page.paste(image, (x + (WIDTH - image.width) // 2, y))
        ImageDraw.Draw(page).text((x, y + HEIGHT + 2), path.stem, "black", font)
    return page


if __name__ == "__main__":
    write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
