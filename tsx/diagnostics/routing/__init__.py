"""Routers of a mixture: who gets the tokens, and their balancing loss.

expert_load    collapse, starved experts, dropped tokens
router_layers  what each router did over the calls
routes         the routers of any model, and their choices
routed_rows    which experts got rows
aux_scale      the balancing loss against the routers' load
"""
