"""The built-in kinds: one file for each; all files of this directory are imported here.

    kind       edit added to h            rows of the subspace
    loreft     R^T (act(W h + b) - R h)   orthonormal
    noreft     P^T (act(W h + b) - P h)   free
    direft     R^T  act(W h + b)          orthonormal
    nodireft   P^T  act(W h + b)          free
    consreft   R^T (b - R h)              orthonormal
    lobireft   R^T  b                     orthonormal

Names are upstream's. The paper's DiReFT (eq. 3) is `nodireft` here; upstream's `direft` keeps
the rows orthonormal.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
