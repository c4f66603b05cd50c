"""A box: a folder on a machine without internet in which signed bundles are installed, switched and rolled back."""
