"""The numerical work: backbones, engines, PCA and Annoy. Nothing here imports Beam."""
