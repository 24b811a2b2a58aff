"""What the commands do: they join merge_methods, train and eval, which do not know each other.

run          `run`, `train`, `eval`, `check`: carries out the `plan`, whose merges are `recipes`
merging      one recipe to one model, whole or absent; `model_card` completes its card
report       `report`: report.md, and `html` makes report.html of it
losses       `losses`: each sample's loss under each model (`measure`); `step_losses` along the training
orders       `orders`: the orders before training
soup         `soup`: the merge of those models that score best together, chosen by `greedy`
"""
