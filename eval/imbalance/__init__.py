"""Does the position of a sample in the training order show in its loss?

losses      the loss of each sample under a model
loss_table  a run's losses and positions, brought together by sample
effect      the within-sample contrast and its test: pure functions
curves      losses along the positions, and what a merged model keeps of that
results     all of it for one epoch, and in plain words
figures     the paper's figures 1, 3 and 4
analysis    `ordermerge imbalance`: all of it for a run
"""
