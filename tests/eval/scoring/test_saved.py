"""lm-eval's files, written and read again."""

from pathlib import Path

import pytest
from lm_eval.loggers import EvaluationTracker

from ordermerge.eval.scoring.saved import save_results


def test_an_error_that_lm_eval_passes_over_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "model"
    with pytest.raises(
        OSError, match=r"lm-eval could not write its files to .*file/model \(\[Errno 20\] Not a directo"
    ):
        save_results(EvaluationTracker(output_path=str(folder)), {"results": {}, "samples": {}}, folder)
