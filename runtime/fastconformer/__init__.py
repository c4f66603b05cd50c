"""FastConformer: what every family over this encoder does, whatever its decoder.

`encoder` runs the graphs, `windows` cuts long recordings, `recognizer` goes through recordings, and `timestamps` and
`transcript` make words and segments of tokens.
"""
