"""One writer per format: graphs in, files out."""
