"""DoRA, the method: Distribution-aware Optimization for Robust Alignment (arXiv 2504.05831)."""
