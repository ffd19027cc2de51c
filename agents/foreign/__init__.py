"""Policies that were trained elsewhere, read from their files or called as functions."""
