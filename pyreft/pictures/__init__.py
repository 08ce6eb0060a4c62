"""Pictures of what adapters do, for notebooks, cards and pages."""

from pyreft.pictures.angles import SubspaceAngles, subspace_angles
from pyreft.pictures.lens import Guess, LensRow, LogitLens, logit_lens
from pyreft.pictures.runs import plot_runs
from pyreft.pictures.strengths import EditStrengths, edit_strengths

__all__ = [
    "EditStrengths",
    "Guess",
    "LensRow",
    "LogitLens",
    "SubspaceAngles",
    "edit_strengths",
    "logit_lens",
    "plot_runs",
    "subspace_angles",
]
