"""Batches: their values, their labels, and whether they come again.

quality         sentinels, constant windows, scales that are off
batch_stats     measures of one batch, on its device
labels          labels that are never trained
targets         targets of another time than the next
sequences       which label belongs to which time of the input
trained_gaps    padding and gaps that a loss is trained on
repeats         batches that come again
repeated_noise  noise that comes again
checksums       what a tensor holds as one number
"""
