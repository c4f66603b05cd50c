"""Cnn8Rnn: audio to sound events through an artifact's graphs.

`recognizer` opens an artifact, `windows` cuts a recording, `heads` makes scores of the network's logits, `events` finds
events in them, `framewise` keeps them where they are asked for, `outputs` and `heatmap` write files.
"""
