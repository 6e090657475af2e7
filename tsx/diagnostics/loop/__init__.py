"""How a loop trains: modes, rates, accumulation, the size of a step.

accumulation     gradients zeroed, weighed or clipped wrongly
accumulated      a step judged by its backward passes
gradient_tracks  gradients followed from a loss to the step
weigh            what a loss is a mean of; the condition of a line
intervals        what is due every so many steps and never comes
modes            left in eval, scored in train mode
scoring          in which mode a model is scored
rates            learning rates that do not fit
schedules        each step of a scheduler, and its line
updates          how far one step moves the parameters
"""
