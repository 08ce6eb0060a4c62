"""Upstream's modules, by its names: this folder is on the path of the package `pyreft`.

`pyreft.dataset`, `pyreft.reft_model`, `pyreft.reft_trainer` and `pyreft.utils` are imported from
here. `pyreft.config` and `pyreft.interventions` are folders of ours, which have upstream's names.
"""
