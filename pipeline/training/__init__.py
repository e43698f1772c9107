"""`imgindex train`: a labeled folder listed and decoded, a training and what it leaves behind."""
