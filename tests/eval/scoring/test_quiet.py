import logging
import sys

import pytest
from tqdm import tqdm

from ordermerge.eval.scoring.quiet import quiet
from ordermerge.progress import Counted, ProgressLine


def test_quiet_shows_each_kind_of_warning_once_and_no_bars(capsys):
    logger = logging.getLogger("lm_eval.some.module")
    with quiet():
        for length in (88, 99):
            logger.warning(f"Left truncation, {length} tokens")
            logger.warning("Overwriting default num_fewshot of t from 1 to 2")
            logger.info("chatter")
        assert list(tqdm([1, 2], disable=False)) == [1, 2]
    assert capsys.readouterr().err == "lm-eval: Left truncation, 88 tokens\n"


def test_quiet_leaves_everything_as_it_was():
    logger = logging.getLogger("lm_eval")
    before = (list(logger.handlers), logger.propagate, tqdm.__init__)
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert (list(logger.handlers), logger.propagate, tqdm.__init__) == before


def test_quiet_leaves_a_configured_logger_alone(capsys):
    logger = logging.getLogger("lm_eval")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with quiet():
            logger.warning("as configured")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "as configured\n"


def test_requests_of_lm_eval_are_counted_and_its_bars_are_not_shown(capsys):
    counted = Counted("request", line=ProgressLine(live=False, clock=iter(range(0, 6100, 61)).__next__))
    with quiet(counted):
        counted.next("[1/1] base")
        bar = tqdm(total=4, desc="Running loglikelihood requests", disable=False)
        for _ in range(2):
            bar.update(2)
        bar.close()
        assert list(tqdm([1, 2], desc="Tokenizing inputs")) == [1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[1/1] base: 2/4", "[1/1] base: 4/4"]
