"""What prediction needs, and nothing of training."""
