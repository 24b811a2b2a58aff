"""The tests in docs/contributing_a_method.md find a wrong method; tests/test_docs_commands.py follows the page."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing_a_method.md").read_text(encoding="utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
METHOD = BLOCKS["merge_methods/coordinate_median.py"]
TESTS = BLOCKS["tests/merge_methods/test_coordinate_median.py"]


def load(path: Path, name: str, code: str) -> ModuleType:
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("wrong", [".mean(dim=0)", ".max(dim=0).values", "[0]"])
def test_tests_of_the_page_find_a_wrong_method(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".median(dim=0).values" in METHOD
    name = "ordermerge.merge_methods.coordinate_median"
    method = load(tmp_path / "method.py", name, METHOD.replace(".median(dim=0).values", wrong))
    monkeypatch.setitem(sys.modules, name, method)
    tests = load(tmp_path / "page_tests.py", "page_tests", TESTS)
    with pytest.raises(AssertionError):
        for test in [test for name, test in vars(tests).items() if name.startswith("test_")]:
            test()
