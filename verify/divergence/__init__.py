"""Where an engine leaves the reference: the first layer, then operator, whose result is wrong by itself."""
