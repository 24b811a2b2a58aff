"""`ordermerge inspect`: from model files alone, whether merging and resampling will matter.

family      which tensors a base model and its sub-models share, and where they are
stream      reads them once, side by side
changes     counts and sums over one piece of a tensor: pure functions
summary     from sums to shares and cosines, by tensor, layer and model
inspection  all of it; `tables`, `conclusions` and `figure` show it
"""
