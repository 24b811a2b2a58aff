"""What the orders and the merges bought: scores by lm-evaluation-harness, and their tables.

    scoring   scores a list of models, each once
    harness   runs one model through lm-eval
    tasks     finds the tasks, and says what is wrong with them
    models    names, identity and completeness of what is scored
    saved     lm-eval's own result and sample files: written, and read back
    table     one table of metric ± standard error
    inspect   what sub-models changed of their base model, from the files alone: `family` opens them, `changes` counts,
              `inspect_summary`, `inspect_report`, `inspect_words` and `inspect_figure` show it
    figures   one style for all figures, saved with their data

Importing this package is cheap: lm-eval and torch are imported where they are used.
"""
