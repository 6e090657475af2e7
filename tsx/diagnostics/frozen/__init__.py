"""Parameters that do not move, and why.

parameters      the detector: looks, suspects, reports
causes          why one does not move
holders         which optimizers hold which
probes          what is measured of suspects
report          one finding for all that one cause holds still
samples         a few numbers of each, compared
shadow          the same step in more digits
strangers       used, but unknown to the model
tracks          which stand still, look after look
gradient_paths  where the gradients of a call end
skipped_steps   steps that never come
"""
