"""What is seen of one call and of the loop around it; judges nothing.

loop_lines    lines of the loop as they run, who called what
loop_source   the functions under way, as source
source_lines  lines that say a thing, in classes and functions
step_spy      which line of a loop changes a gradient or a weight
tape          one call: its functions, operations and modules
trace         one step run again under the eyes of every operation
cadence       which calls are traced
replay        a call run again as it was
reachable     modules that a function knows of
graph         which weights made an output, by autograd's graph
provenance    where a tensor comes from, by autograd's graph
loss_calls    torch's loss functions as they are called
gains         how much larger each matrix product makes things
places        places in source files, as they are told
"""
