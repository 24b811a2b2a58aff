"""What the orders and the merges bought: scores by lm-evaluation-harness, and their tables.

    scoring     scores a list of models, each once on each task
    harness     runs one model through lm-eval
    checks      says what is wrong with an evaluation, before it is begun
    tasks       finds the tasks; `task_files` tells what local ones consist of
    task_data   reads users' own data for the task files in `task_pack/`
    explain     what went wrong, in one sentence; `hub` asks once whether the Hugging Face hub is there
    loaded      loads them, once for all models
    models      names, identity and completeness of what is scored
    saved       lm-eval's own result and sample files: written, and read back
    table       one table of metric ± standard error
    pairing     the values of several models on the same documents
    paired      statistics of their differences
    comparing   each merged model against the single ones and the weighted average
    comparison  `comparison.json`; comparison_table shows it
    inspect     what sub-models changed of their base model, from the files alone: `family` opens them, `stream` reads,
                `changes` counts; `inspect_summary`, `_report`, `_words` and `_figure` show it
    figures     one style for all figures, saved with their data

Importing this package is cheap: lm-eval and torch are imported where they are used.
"""
