"""The report's page in a real browser, narrow and wide, light and dark: nothing clipped, nothing over anything else."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ordermerge.commands.html import html_page
from ordermerge.commands.price_table import PricedModel, price_panel, price_table
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.comparison.table import markdown_comparison
from ordermerge.eval.run_figures import effect_figure, learning_figure, price_figure
from ordermerge.eval.scoring.table import Row

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCORES = {
    **{"base": 0.26, "order_0": 0.76, "order_1": 0.82, "order_2": 0.80, "annealed": 0.952, "longer": 0.955},
    **{"weighted_average": 0.954, "parameter_selection": 0.956, "parameter_selection_resample": 0.956, "tail": 0.942},
}
PRICES = {"base": 0.0, "longer": 3.0, "weighted_average": 3.0, "parameter_selection": 3.0, "tail": 1.3}
KINDS = {"base": "base model", "annealed": "controls", "longer": "controls"}
MEASURE = """() => {
  const box = part => part.getBoundingClientRect();
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const found = {overlaps: [], outside: [], clipped: [], texts: 0, small: 99, broken: [],
    hints: [...document.querySelectorAll("svg title")].map(title => title.textContent)};
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("g[id^=text_]")].filter(text => box(text).width > 0);
    found.texts += texts.length;
    texts.forEach((one, i) => {
      if (box(one).left < box(svg).left - 1 || box(one).right > box(svg).right + 1) found.outside.push(one.id);
      found.small = Math.min(found.small, box(svg).width / svg.viewBox.baseVal.width);
      texts.slice(i + 1).forEach(two => { if (over(box(one), box(two))) found.overlaps.push([one.id, two.id]); });
    });
  }
  for (const wide of document.querySelectorAll(".wide")) {
    if (wide.scrollWidth > wide.clientWidth + 1 && getComputedStyle(wide).overflowX !== "auto")
      found.clipped.push(wide.textContent.slice(0, 60));
  }
  for (const cell of document.querySelectorAll("td, th"))
    if (cell.scrollWidth > cell.clientWidth + 1) found.clipped.push(cell.textContent);
  const pieces = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (pieces.nextNode()) {
    const piece = document.createRange();
    piece.selectNodeContents(pieces.currentNode);
    if (pieces.currentNode.parentNode.closest("td, th") && !/\\s/.test(pieces.currentNode.data)
        && piece.getClientRects().length > 1) found.broken.push(pieces.currentNode.data);
  }
  found.beyond = document.documentElement.scrollWidth - innerWidth;
  return found;
}"""


def compared(model: str, reference: str, against: list[str]) -> Comparison:
    gain = SCORES[model] - SCORES[against[0]]
    return Comparison(
        *("worded_arithmetic", "exact_match", "strict-match", True, 500, model, reference, against),
        *(SCORES[model], SCORES[against[0]], gain, gain - 0.02, gain + 0.02, 0.001, 0.01, False, 0.04),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with each kind of table and figure that a run's report draws itself."""
    folder = tmp_path_factory.mktemp("page")
    merges = ["weighted_average", "parameter_selection", "parameter_selection_resample", "tail"]
    singles = ["order_0", "order_1", "order_2"]
    rows = [
        Row(name, "worded_arithmetic", "exact_match", "strict-match", score, 0.02, True, 500)
        for name, score in SCORES.items()
    ]
    models = [
        PricedModel(
            *(name, KINDS.get(name, "merges" if name in merges else "single runs")),
            *(PRICES.get(name, 3.0 if name in merges else 1.0), 2400, [name]),
        )
        for name in SCORES
    ]
    models.append(PricedModel("mean of single runs", "means of runs", 1.0, 2400, singles))
    against = {"single_mean": singles, "single_best": ["order_1"], "control": ["longer"]}
    found = [compared(model, reference, names) for model in merges for reference, names in against.items()]
    report = ComparisonReport(found, [], [], "test_score", None, 0.95, 0.8, 9999, 0, {}, {}, {}, {})
    panels = [price_panel(rows, models)]
    figures = [
        price_figure(panels, folder / "prices"),
        effect_figure(report, folder / "effects"),
        learning_figure({"order_0": [(5, 2.0)], "order_1": [(5, 1.9)]}, {}, folder / "short"),
        learning_figure({"order_0": [(i, 10.0**-i) for i in range(5)]}, {"order_0": [(4, 1.0)]}, folder / "long"),
    ]
    pictures = "\n\n".join(f"![what it shows]({png.name})" for png, *_ in figures)
    text = f"# a run\n\n## Prices\n\n{price_table(panels, models, report)}\n\n{pictures}\n\n## Differences\n\n"
    file = folder / "report.html"
    file.write_text(html_page(text + markdown_comparison(report), "a run", folder, [png for png, *_ in figures]))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_or_overlaps_and_nothing_is_fetched(
    page: Path, browser: Any, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, requests, messages = context.new_page(), [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(page.as_uri())
    found = tab.evaluate(MEASURE)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    context.close()
    assert requests == [page.as_uri()]
    assert messages == []
    assert found["beyond"] <= 0, "the page is wider than the window"
    assert found["clipped"] == []
    assert found["broken"] == [], "words of names, cut in the middle"
    assert "order_1: 0.820 (0.781 to 0.859), price 1" in found["hints"]
    assert "tail less the mean of the single models: +0.182 (0.162 to 0.202)" in found["hints"]
    assert found["texts"] > 40
    assert found["overlaps"] == []
    assert found["outside"] == []
    assert found["small"] >= 0.95, "figures' letters, in pixels a point: below, they cannot be read"
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)")
