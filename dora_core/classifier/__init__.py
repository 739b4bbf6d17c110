"""Source classifiers: encoder, wide features, cross-fitting, scaling, diagnostics."""
