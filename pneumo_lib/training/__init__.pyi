from . import projections as projections
from .projections import fit_projections as fit_projections
from .projections import principal_projection as principal_projection
