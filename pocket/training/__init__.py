"""How the pocket models are made, one folder each (`make pocket`)."""
