"""The emotion in a voice by its prosody: features, a logistic regression on them, and its training."""
