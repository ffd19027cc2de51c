"""What a run keeps and says: checkpoints, logs, progress, videos, command-line parts."""
