"""The bundle: an artifact packed, hashed and signed; written by freeze, read by the box."""
