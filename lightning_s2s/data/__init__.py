"""From a manifest of spoken dialogues to batches."""
