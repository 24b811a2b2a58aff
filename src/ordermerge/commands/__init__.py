"""What the commands do: each joins merge_methods, train and eval, which do not know each other.

run         train, merge, evaluate, report over one run directory; `preview` shows its orders beforehand
losses      each sample's loss under each model (`measure`: one model); `steps` along the training
imbalance   from those losses to figures and words; `loss_table` and `positions` read what it needs
report      report.md, and `page` makes report.html of it; `scored_card` puts scores into model cards
soup        the merge of those models that score best together, chosen by `greedy`
"""
