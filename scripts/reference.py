"""Write docs/reference.md, the page of every key of an experiment: python scripts/reference.py."""

from pathlib import Path

from ordermerge.config.reference import reference_page

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

if __name__ == "__main__":
    PAGE.write_text(reference_page(), encoding="utf-8")
