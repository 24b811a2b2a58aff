"""Scores by lm-evaluation-harness, for any list of models.

score       scores a list of models, each once on each task
harness     loads the tasks, runs one model through lm-eval; `quiet` keeps what it says to what a user can act on
ensemble    several models behind one; `calibration` of multiple-choice answers
checks      says what is wrong with an evaluation, before it is begun; `argument_checks` with what lm-eval hands on
tasks       finds the tasks; `task_files` tells what local ones consist of, `task_code` what their Python code reads
saved       lm-eval's own result and sample files: written, and read back
table       one table of metric ± standard error
explain     what went wrong, in one sentence; `hub` asks once whether the Hugging Face hub is there
"""
