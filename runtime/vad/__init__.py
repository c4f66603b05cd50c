"""Voice activity detection by silero: which stretches of a recording are recognised at all."""
