"""The report of a distillation: its rows, text and picture, and the statistics of retention."""
