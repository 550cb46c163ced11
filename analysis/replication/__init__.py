"""Replications: claims of the literature as tests that are declared before the runs, and judged over seeds."""
