"""A Markdown report as one self-contained HTML file: pictures inlined, no network, light and dark, wide and narrow."""

import html
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
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
:root { --ink: #1a1a1a; --paper: #ffffff; --line: #d0d0d0; --shade: #f4f4f4; --link: #0057a0; --shadow: #0004;
  --blue: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #44484d; --shade: #212429; --link: #7db8ee; --shadow: #fff5;
    --blue: #4aa6de; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; padding: 1rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
main { min-width: 0; }
main > :not(.wide) { max-width: 54rem; }
h1 { margin: .4rem 0 1rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin-top: 2.4rem; padding-top: .6rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin-top: 1.6rem; font-size: 1.05rem; }
a { color: var(--link); }
nav { font-size: .92rem; }
nav a { display: inline-block; padding: .2rem .8rem .2rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
@media (min-width: 70rem) {
  body { display: grid; grid-template-columns: 12rem minmax(0, 1fr); gap: 0 2.5rem; padding: 1rem 2rem 4rem; }
  nav { position: sticky; top: 1rem; align-self: start; margin-top: .6rem; }
  nav a { display: block; }
}
/* Two covers scroll with the table, two shadows stay: a shadow shows where there is more. */
.wide { width: fit-content; max-width: 100%; margin: 1rem 0; overflow-x: auto;
  background: linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) left / .9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) right / .9rem 100% no-repeat scroll; }
table { width: max-content; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: .2rem; }
th { max-width: 12rem; border-bottom-width: 2px; vertical-align: bottom; }
td { white-space: nowrap; }
td.words { white-space: normal; max-width: min(34rem, 80vw); }
/* In a narrow window the names leave room for the numbers. */
@media (max-width: 40rem) {
  th, td { padding-right: .7rem; }
  th { max-width: 7.5rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; max-width: 7.5rem; }
}
code { font: .88em ui-monospace, monospace; background: var(--shade); border-radius: 3px; padding: .1em .25em; }
pre { padding: .8rem; background: var(--shade); border-radius: 4px; overflow-x: auto; line-height: 1.4; }
pre code { padding: 0; background: none; }
blockquote { margin: 0 0 1rem; padding: .1rem 1rem; border-left: 4px solid var(--link); background: var(--shade); }
figure { margin: 1.2rem 0; }
figure .wide { margin: 0; }
figure svg { display: block; max-width: max(100%, 28rem); height: auto; color: var(--ink); fill: currentColor; }
figcaption { font-size: .9rem; }
@media print { nav { display: none; } .wide { background: none; overflow: visible; } }
</style>
</head>
<body>
$contents<main>
$body</main>
</body>
</html>
""")
# matplotlib's paper and ink, in the page nothing and the text's colour; and a blue that is too dark for a dark page.
_COLOURS = {"fill: #ffffff": "fill: none", "#000000": "currentColor", "#0072b2": "var(--blue)"}
_LONG = 48  # a cell of more characters is wrapped


def html_page(markdown: str, title: str, folder: Path, pictures: Collection[Path]) -> str:
    """Return a page; an image `NAME.png` is inlined from `NAME.svg` beside it, and follows the page's colours.

    An SVG may hold scripts: no other than the pictures named here is inlined, whatever the text refers to. Headings of
    the second level make a table of contents.

    Args:
        markdown: CommonMark with tables; HTML in it is shown as text.
        title: Of the page.
        folder: Where the images' paths start.
        pictures: The images that may be shown.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        source, caption = str(token.attrs["src"]), html.escape(token.content)
        if folder / source not in pictures:
            return caption
        drawing = _inline((folder / source).with_suffix(".svg"))
        drawn = f'<div class="wide" tabindex="0" role="img" aria-label="{caption}">{drawing}</div>'
        return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"

    def table_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return '<div class="wide" tabindex="0" role="region" aria-label="table"><table>\n'

    def table_close(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    for rule in (image, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    tokens = parser.parse(markdown)
    contents = _contents(tokens)
    for cell, text in pairwise(tokens):
        if cell.type in ("td_open", "th_open"):
            _fit(cell, text)
    body = parser.renderer.render(tokens, parser.options, {})
    return _PAGE.substitute(title=html.escape(title), contents=contents, body=body)


def _fit(cell: Token, text: Token) -> None:
    """Let a long cell wrap between words, and a long name after an underscore rather than in the middle of a word."""
    if cell.type == "td_open" and len(text.content) > _LONG:
        cell.attrSet("class", "words")
    for part in text.children or ():
        if part.type == "text" and "_" in part.content:
            part.type, part.content = "html_inline", html.escape(part.content).replace("_", "_<wbr>")


def _contents(tokens: Sequence[Token]) -> str:
    """Return links to the headings of the second level, which are given the names that these need."""
    links = []
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            name = re.sub(r"\W+", "-", text.content.lower()).strip("-")
            heading.attrSet("id", name)
            links.append(f'<a href="#{name}">{html.escape(text.content)}</a>')
    return f'<nav aria-label="Contents">{" ".join(links)}</nav>\n' if links else ""


def _inline(picture: Path) -> str:
    """Return an SVG file's element, without the XML head, in the page's colours."""
    try:
        text = picture.read_text(encoding="utf-8")
    except (OSError, ValueError):  # half of a pair, of a figure that is not drawn anew for the report
        return ""
    if "<svg" not in text or not text.endswith("</svg>\n"):
        return ""
    drawing = text[text.index("<svg") :].strip()
    for ours, in_page in _COLOURS.items():
        drawing = drawing.replace(ours, in_page)
    return drawing
