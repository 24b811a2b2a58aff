"""What the orders and the merges bought: scores, paired comparisons, and what happened inside the models.

    scoring/     any models through lm-evaluation-harness, each once on each task
    comparison/  each merged model against the single ones and the weighted average, on the same documents
    imbalance/   the loss of each sample against its position in the training order
    inspect/     what sub-models changed of their base model, from the files alone
    task_pack/   lm-eval tasks for users' own data, which `task_data` reads
    figures      one style for all figures, saved with their data; `run_figures` draws those of a report
    statistics   paired differences, tests, intervals: pure functions
    tables       tables in a terminal

Importing this package is cheap: lm-eval and torch are imported where they are used.
"""
