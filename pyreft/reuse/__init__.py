"""Reuse of what no training step changes: computed once for an example, and not again."""

from pyreft.reuse.plan import NotReusableError, Plan, plan_reuse
from pyreft.reuse.reuse import FrozenReuse, Report

__all__ = ["FrozenReuse", "NotReusableError", "Plan", "Report", "plan_reuse"]
