"""What is learned, and where: JSON in, JSON out."""

from pyreft.config.intervention import InterventionConfig
from pyreft.config.reft import ReftConfig, require_disjoint

__all__ = ["InterventionConfig", "ReftConfig", "require_disjoint"]
