"""Imports without the garbage collector: its state before and after, and what it leaves out for good."""

import gc
import importlib
import sys

import pytest

from ordermerge.imports import quick_imports


@pytest.mark.parametrize("on", [True, False])
def test_collector_rests_in_the_block_and_is_as_before_after_it(on: bool) -> None:
    try:
        (gc.enable if on else gc.disable)()
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled() == on
        with pytest.raises(ImportError), quick_imports():
            importlib.import_module("no_such_module")
        assert gc.isenabled() == on
    finally:
        gc.enable()


def test_objects_are_left_out_for_good_only_where_something_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    with quick_imports():
        importlib.import_module("sys")
    assert gc.get_freeze_count() == 0
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with quick_imports():
        sys.modules["this"] = type(sys)("this")
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
