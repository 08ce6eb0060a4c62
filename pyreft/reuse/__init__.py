"""Reuse of results that no training step changes: they are computed once per example."""

from pyreft.reuse.plan import NotReusableError, Plan, plan_reuse
from pyreft.reuse.reuse import FrozenReuse, Report

__all__ = ["FrozenReuse", "NotReusableError", "Plan", "Report", "plan_reuse"]
