"""What the commands do: they join merge_methods, train and eval, which do not know each other.

init         `init`: files to start from, with a `tiny_model`
run          `run`, `train`: carries out the `plan`, whose merges are `recipes`, in `rounds`; `check_file`, `check_run`
merging      one recipe to one model; `first_pass` measures, `merge_output` puts it in place, `model_card` tells of it
frank_wolfe  `frank-wolfe`: merges along the gradient of a loss
evaluate     `eval`: scores models and recipes, which are a `temporary_merge`
compare      `compare`: any results; `run_comparison` those of a run; `noise` and `curve` what other orders would change
report       `report`: report.md, begun by the `price_table` of `prices`; `html` makes report.html of it
losses       `losses`: each sample's loss under each model (`measure`); `step_losses` along the training
orders       `orders`: the orders before training
soup         `soup`: the merge of those models that score best together, chosen by `greedy`
pareto       `pareto`: merges that trade one task's score for another's, by `surrogates` of the scores
"""
