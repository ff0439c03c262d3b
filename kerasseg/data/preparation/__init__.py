"""Folders that `tools/prepare_data.py` makes of a data set: how they are made, and how they are read."""
