"""Finds faults in a training loop: state in, findings out.

tracing/    one call, and the loop around it, as they run; judges nothing
nonfinite/  NaN and infinity: what they came from, a bad step kept and run again
masks/      what a model may see: attention, leaks of the future and of other samples
data/       batches: values, labels, targets, what comes again
loss/       what a loss is given, where it starts, leaps and stands
loop/       modes, learning rates, accumulation, the size of a step
frozen/     parameters that do not move, and why
weights/    how they start, what ties them, what a checkpoint says of them
routing/    routers of a mixture of experts, and their balancing loss
resources/  speed and memory: kernels, dtypes, compilation, waits, waste

watch         shows the detectors a model, through hooks on every optimizer
engine        hosts them: calls, steps and lines pass through here
panel         asks them, and guards the loop against them
detector      what a detector is: what it is shown, and how it speaks
roster        all of them, in order
reports       one fault, one finding
catalogue     every kind of finding in words: `docs/faults.md`
pace          how often to look
arguments     the tensors of a call: which is the batch and which the target
module_names  which module is inside which, by its name
config_lint   settings that contradict their run, before it starts
variants      two ways of computing one thing, compared
"""
