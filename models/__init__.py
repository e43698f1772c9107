"""The numerical work: backbones, engines, PCA, nearest neighbors. Nothing here imports Beam."""
