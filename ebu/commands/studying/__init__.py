"""What study.py plans, plays and keeps."""
