"""The recipe checker: what is wrong with a mergekit recipe, before anything is read.

check            all problems at once: keys, values, parameters, models that are not there
coverage         the tensors that mergekit would load, and those it would lose
layout           whether the models fit together: architectures, layers, tensor names and shapes
checkpoint       a model's config and the headers of its files
warnings         what lets a merge run and come out wrong, from a few sampled values
companions       tokenizers, chat templates and end-of-text tokens that differ
config_meaning   config fields that make the same weights mean other things
references       the models that a recipe names; `staging` the files of them that transformers would load
merge_by_name    merging by tensor name, without mergekit's tables
"""
