"""A Markdown report as one self-contained HTML file: pictures inlined, no network, light and dark, wide and narrow."""

import html
from collections.abc import Collection, Sequence
from pathlib import Path
from string import Template
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1a1a1a; --paper: #ffffff; --line: #d0d0d0; --shade: #f4f4f4; --link: #0057a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #44484d; --shade: #212429; --link: #7db8ee; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 54rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { margin-top: 2.4rem; padding-top: .6rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin-top: 1.6rem; font-size: 1.05rem; }
a { color: var(--link); }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom-width: 2px; }
td:not(:first-child) { white-space: nowrap; }
code { font: .88em ui-monospace, monospace; background: var(--shade); border-radius: 3px; padding: .1em .25em; }
pre { padding: .8rem; background: var(--shade); border-radius: 4px; overflow-x: auto; line-height: 1.4; }
pre code { padding: 0; background: none; }
figure { margin: 1.2rem 0; }
figure svg, figure img { width: 100%; max-width: 44rem; height: auto; color: var(--ink); fill: currentColor; }
figcaption { font-size: .9rem; }
</style>
</head>
<body>
$body
</body>
</html>
""")
# matplotlib's ink and paper: in the page these are the text's colour, and nothing.
_INK, _PAPER = "#000000", "fill: #ffffff"


def html_page(markdown: str, title: str, folder: Path, pictures: Collection[Path]) -> str:
    """Return a page; an image `NAME.png` is inlined from `NAME.svg` beside it, and follows the page's colours.

    An SVG may hold scripts: no other than the pictures named here is inlined, whatever the text refers to.

    Args:
        markdown: CommonMark with tables; HTML in it is shown as text.
        title: Of the page.
        folder: Where the images' paths start.
        pictures: The images that may be shown.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        caption, picture = html.escape(token.content), folder / str(token.attrs["src"])
        if picture not in pictures:
            return caption
        picture = picture.with_suffix(".svg")
        return (
            f'<figure role="img" aria-label="{caption}">{_inline(picture)}<figcaption>{caption}</figcaption></figure>'
        )

    def table_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return '<div class="table"><table>\n'

    def table_close(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    for rule in (image, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    return _PAGE.substitute(title=html.escape(title), body=parser.render(markdown))


def _inline(picture: Path) -> str:
    """Return an SVG file's element, without the XML head, in the page's colours."""
    try:
        text = picture.read_text(encoding="utf-8")
    except (OSError, ValueError):  # half of a pair, of a figure that is not drawn anew for the report
        return ""
    if "<svg" not in text or not text.endswith("</svg>\n"):
        return ""
    return text[text.index("<svg") :].replace(_PAPER, "fill: none").replace(_INK, "currentColor").strip()
