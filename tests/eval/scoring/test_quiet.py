import logging
import sys

import pytest
from tqdm import tqdm

from ordermerge.eval.scoring.quiet import quiet


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
