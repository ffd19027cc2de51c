"""Studies that take many runs each; every one is a script."""
