"""The model repository that the NPU community publishes, written from an artifact and verify's results.

`evidence` reads and judges the results, `facts` makes of them the one model that the templates are given, `render`
fills the templates, `plots` draws, `kept` finds what people wrote, and `folder` puts everything in its place.
"""
