"""Experimental procedures, registered in `settings.EXPERIMENTAL` and imported on request."""
