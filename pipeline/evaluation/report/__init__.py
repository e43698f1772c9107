"""Pages about a generation: what an evaluation found, and what its images look like side by side."""
