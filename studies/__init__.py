"""Studies of the small worlds, each a script, and the parts of `study.py` and `report.py`."""
