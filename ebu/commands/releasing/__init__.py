"""Folders for a model hub: their files, the model card, and how they are pushed."""
