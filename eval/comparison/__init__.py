"""What merging bought: each merged model against the single ones and the weighted average.

documents   the values of several models on the same documents
compare     all comparisons of a run, or of any models, by `eval/statistics`
folders     results on disk, whoever wrote them
noise       order noise apart from the documents'; `curve` the score of merges of k of K orders
record      `comparison.json`: what it holds
table       the comparisons as tables
"""
