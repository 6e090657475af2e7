"""What a model may see: attention's masks, the future, other samples.

attention        masks that say the opposite, rows that see nothing
attention_sites  what one attention may see
padding          where a batch is padded
leaks            the future, and other samples of the batch
leak_trial       the probes of one model
leak_causes      the mechanism that let something cross
probes           a model run again with a part of its input changed
crossings        where two recorded runs first differ
layout           which axis is time and which is the batch
"""
