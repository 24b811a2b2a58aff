"""What merging bought: each merged model against the single ones and the weighted average.

pairing     the values of several models on the same documents
paired      statistics of their differences: pure functions
comparing   all comparisons of a run
record      `comparison.json`: what it holds
table       the comparisons as tables
"""
