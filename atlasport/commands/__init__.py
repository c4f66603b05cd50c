"""One module per command; each imports its stage only when it runs."""
