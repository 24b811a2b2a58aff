"""The experiment file.

schema           its keys, types and defaults
load             reads and checks it, one sentence a problem
changes          its keys as `--set` changes them
key_value        values as a command line gives them: key=value,key=value, JSON
library_fields   sections whose keys are the fields of a library's own configuration class; unknown keys
"""

STAGES = ("train", "merge", "eval")  # of an experiment; here, where reading them costs a command line nothing
