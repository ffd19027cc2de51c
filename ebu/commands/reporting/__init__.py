"""What report.py reads, computes and writes."""
