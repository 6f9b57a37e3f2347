"""Curvature beyond the plain trace (`jaxkd.analysis.hessian`): what its estimators share, and the further analyses."""
