"""Speed and memory: kernels, dtypes, compilation, waits, waste.

backends        which kernel attention ran in
precision       dtypes that cost speed and are not meant
compilation     what keeps torch.compile from helping
compiled_lines  the line that is compiled again for
memory          graphs that pile up, allocations that fail
pauses          time outside of the step, steps that get slower
reads           numbers read one by one, loaders begun for a batch
waste           work that a call does for nothing
"""
