"""NaN and infinity: a bad step, what it came from, what is kept of it.

origin       the operation, line and module of the first bad value
causes       why an operation made it of good ones
bad_step     what is known of a bad step without running it again
postmortem   a bad step run again, and what to say of it
dump         a bad step kept on the disk
packing      arguments of a call as JSON and named tensors
grad_norm    the norm of all gradients
grad_guard   whether a step is about to take a bad gradient
step_policy  whether a bad step halts, is left out, or taken
"""
