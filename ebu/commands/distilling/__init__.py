"""What distill.py puts together: teachers, pipelines, the output directory, a baseline."""
