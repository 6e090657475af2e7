"""NaN and infinity: a bad step, what it came from, what is kept of it.

origin            the operation, line and module of the first bad value
causes            why an operation made it of good ones
attention_causes  why attention did: its mask, or its scores
cause             what a cause is; overflow, where no other is seen
bad_step          what is known of a bad step without running it again
held_call         a call held on to, and made again
trials            a bad call run again: its origin, a fresh model, the batch before, its samples
postmortem        what to say of a bad step of a loop of one's own
dump              a bad step kept on the disk
packing           arguments of a call as JSON and named tensors
grad_norm         the norm of all gradients
grad_guard        whether a step is about to take a bad gradient
step_policy       whether a bad step halts, is left out, or taken
"""
