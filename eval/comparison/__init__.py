"""What merging bought: each merged model against the single ones and the weighted average.

documents   the values of several models on the same documents
compare     all comparisons of a run, by `eval/statistics`
record      `comparison.json`: what it holds
table       the comparisons as tables
"""
