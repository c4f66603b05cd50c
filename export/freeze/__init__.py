"""Freeze: a verified artifact becomes a bundle, one signed file that a box installs."""
